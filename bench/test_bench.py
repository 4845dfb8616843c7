"""What decides whether a figure counts. Needs Python alone: `python3 -m unittest discover -s bench`."""

import asyncio
import contextlib
import io
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import agreement
import answers
import broken
import children
import digests
import fairness
import gpu
import latency
import machine
import qlora
import report
import rounds
import steplog
import widen

STAT = """cpu  100 0 100 1000 0 0 0 0 0 0
cpu0 50 1 40 500 7 2 3 4 9 9
cpu1 50 0 60 500 0 0 0 0 0 0
intr 12
"""


class TheWatch(unittest.TestCase):
    def test_counts_all_but_idle_and_waiting_and_only_our_cores(self):
        self.assertEqual(machine.busy_ticks(STAT, {0}), 50 + 1 + 40 + 2 + 3 + 4)
        self.assertEqual(machine.busy_ticks(STAT, {0, 1}), 100 + 110)

    def test_takes_a_process_with_all_below_it_and_none_beside_it(self):
        processes = {1: (0, 1000), 10: (1, 5), 11: (10, 7), 12: (11, 9), 20: (1, 100)}
        self.assertEqual(machine.tree_ticks(processes, 10), 21)

    def test_share_is_of_what_all_cores_could_do(self):
        before, after = machine.Ticks(100, 50, 0.0), machine.Ticks(320, 250, 1.0)
        self.assertAlmostEqual(machine.foreign_share(before, after, cores=2, hertz=100), 20 / 200)

    def test_rounding_against_us_is_no_negative_share(self):
        self.assertEqual(machine.foreign_share(machine.Ticks(0, 0, 0.0), machine.Ticks(9, 10, 1.0), 2, 100), 0.0)

    def test_does_not_take_our_own_work_for_anothers(self):
        watch = machine.Watch()
        before = watch.now()
        subprocess.run([sys.executable, "-c", burn(0.7)], check=True)
        after = watch.now()
        self.assertGreater(after.own - before.own, 0.3 * watch.hertz)

    def test_sees_what_is_not_ours(self):
        watch = machine.Watch()
        before = watch.now()
        # Its parent ends at once, and it goes to init.
        subprocess.run(["sh", "-c", f"{sys.executable} -c '{burn(1.5)}' >/dev/null 2>&1 &"], check=True)
        time.sleep(1.2)
        after = watch.now()
        foreign = (after.busy - before.busy) - (after.own - before.own)
        self.assertGreater(foreign, 0.3 * watch.hertz)


class InstructionSets(unittest.TestCase):
    def test_are_those_of_the_machine_and_each_has_a_cap_of_its_own(self):
        def names(flags):
            return [each.name for each in machine.instruction_sets(flags.split())]

        avx512 = "avx avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16"
        self.assertEqual(names(avx512), ["avx2", "avx512", "avx512_vnni", "avx512_bf16"])
        self.assertEqual(names(avx512 + " amx_tile amx_bf16 amx_int8")[-1], "amx")
        self.assertEqual(names("avx avx2 fma avx_vnni"), ["avx2", "avx_vnni"])
        self.assertEqual(names("asimd bf16 i8mm"), [])
        caps = [each.cap["ONEDNN_MAX_CPU_ISA"] for each in machine.INSTRUCTION_SETS]
        self.assertEqual(len(set(caps)), len(caps))

    def test_are_probed_each_in_a_process_that_is_told_its_cap(self):
        with tempfile.TemporaryDirectory() as folder:
            # In place of Python: says what it was asked for and told.
            fake = Path(folder) / "python"
            fake.write_text('#!/bin/sh\nprintf \'{"%s": "%s"}\' "$5" "$ONEDNN_MAX_CPU_ISA"\n')
            fake.chmod(0o755)
            here = {"flags": ["avx2", "fma", "amx_bf16", "amx_int8"]}
            with mock.patch.object(machine, "describe", lambda: here):
                found = machine.probe_ceilings(str(fake), 2, True)
        expected = {"f32,bf16,int8,dram": "", "f32_avx2": "AVX2", "bf16,int8_amx": "AVX512_CORE_AMX"}
        self.assertEqual(found, expected)


class Gpus(unittest.TestCase):
    def test_a_peak_is_above_what_was_in_use_before_and_ends_with_the_block(self):
        looks, calls = threading.Event(), []

        def used():
            calls.append(1)
            if len(calls) == 4:
                looks.set()
            return {1: 10, 2: 10, 3: 90}.get(len(calls), 40)

        with mock.patch.object(gpu, "INTERVAL", 0.001), gpu.Peak(used) as peak:
            self.assertTrue(looks.wait(10))
        self.assertEqual(peak.bytes(), 80)
        self.assertFalse(peak.thread.is_alive())

    def test_one_that_is_not_there_is_none(self):
        with mock.patch.dict("os.environ", {"PATH": "/nowhere"}):
            self.assertIsNone(gpu.describe())

    def test_both_trainers_last_words_are_known(self):
        for words in ("torch.OutOfMemoryError: CUDA out of memory. Tried", "step 1: the GPU's memory is full: take"):
            self.assertTrue(gpu.is_too_large(words))
        self.assertFalse(gpu.is_too_large("the trainer failed:\nstopped on request"))

    def test_one_that_others_compute_on_gives_no_figures(self):
        with mock.patch.object(gpu, "used_bytes", lambda: 1 << 30):
            self.assertIsNone(gpu.refuse_others())
        with mock.patch.object(gpu, "used_bytes", lambda: 5 << 30), self.assertRaises(SystemExit) as ended:
            gpu.refuse_others()
        self.assertIn("5.0 GiB", str(ended.exception))

    def test_an_engine_names_the_one_that_it_computes_on(self):
        self.assertTrue(gpu.is_named_in("0a1b2c-0.1.0-3d4e5f-NVIDIA-L40S", "NVIDIA L40S"))
        self.assertFalse(gpu.is_named_in("0a1b2c-0.1.0-3d4e5f-avx512f", "NVIDIA L40S"))

    def test_a_program_is_started_with_its_own_libraries(self):
        with tempfile.TemporaryDirectory() as folder:
            printing = Path(folder) / "printing"
            printing.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH $1"\n')
            printing.chmod(0o755)
            started = gpu.launcher(Path(folder) / "started", printing, Path("/a b/lib"))
            done = subprocess.run([started, "x y"], capture_output=True, text=True)
            self.assertEqual(done.stdout, "/a b/lib x y\n")


class Agreement(unittest.TestCase):
    def judge(self, losses, norms):
        reference = {"losses": [4.0, 3.0], "gradient_norms": [1.0, 2.0]}
        measured = {"losses": losses, "gradient_norms": norms}
        return agreement.agreement("ours", measured, "peft", reference, (0.02, 0.1))

    def test_is_of_losses_and_norms_and_says_how_far_they_are(self):
        said = self.judge([4.04, 3.0], [1.0, 2.1])
        self.assertEqual(said, "ours: losses within 1.000 %, gradient norms within 5.00 % of peft's")

    def test_what_is_another_training_or_none_counts_for_nothing(self):
        for losses, norms in (([4.2, 3.0], [1.0, 2.0]), ([4.0, 3.0], [1.0, 2.3]), ([4.0, 4.0], [1.0, 2.0]),
                              ([4.0, 3.0], [0.0, 2.0]), ([4.0, 3.0], [1.0, math.nan]), ([4.0], [1.0]),
                              ([math.nan, 3.0], [1.0, 2.0])):
            with self.assertRaises(RuntimeError, msg=(losses, norms)):
                self.judge(losses, norms)


def burn(seconds: float) -> str:
    # Of a processor's time, which a busy machine gives later.
    return f"import time\nwhile time.process_time() < {seconds}: pass"


class FakeWatch:
    """Says what a test wants it to."""

    def __init__(self, shares):
        self.shares = list(shares)

    def start(self):
        pass

    def stop(self):
        return self.shares.pop(0)


class Rounds(unittest.TestCase):
    def test_a_disturbed_round_is_thrown_away_whole_and_done_again(self):
        calls = []

        def contender(name):
            def measure():
                calls.append(name)
                return {"x": len(calls)}
            return measure

        watch = FakeWatch([0.0, 0.2, 0.0, 0.01, 0.0, 0.0])
        found = rounds.run_rounds({"a": contender("a"), "b": contender("b")}, 2, watch, limit=0.03, say=lambda _: None)
        self.assertEqual(calls, ["a", "b", "b", "a", "a", "b"])
        self.assertEqual(found.series("a", "x"), [4, 5])
        self.assertEqual(found.series("b", "x"), [3, 6])
        self.assertEqual(found.discarded, [{"contender": "b", "foreign": 0.2}])
        self.assertEqual(found.foreign, [0.01, 0.0])

    def test_a_machine_that_is_never_quiet_ends_it(self):
        with self.assertRaises(rounds.TooBusy):
            rounds.run_rounds({"a": dict}, 1, FakeWatch([0.5] * 9), limit=0.03, most_discarded=2, say=lambda _: None)

    def test_a_contender_that_computes_something_else_ends_the_benchmark(self):
        def wrong():
            raise RuntimeError("losses differ")

        args = types.SimpleNamespace(rounds=1, foreign=3)
        quiet = mock.patch.object(rounds.machine, "Watch", lambda: FakeWatch([0.0]))
        with quiet, contextlib.redirect_stdout(io.StringIO()), self.assertRaises(SystemExit) as ended:
            rounds.rounds_of({"a": wrong}, args, None)
        self.assertEqual(ended.exception.code, "error: losses differ")


class Turns(unittest.TestCase):
    def test_a_machine_that_slows_down_does_not_change_what_adapters_cost(self):
        speed = iter(100.0 - 2 * burst for burst in range(100))
        found = rounds.take_turns(lambda: next(speed), {"few": lambda: 0.9 * next(speed),
                                                        "many": lambda: 0.8 * next(speed)}, 3)
        self.assertAlmostEqual(found["few_turn"] / found["few_base"], 0.9)
        self.assertAlmostEqual(found["many_turn"] / found["many_base"], 0.8)
        self.assertEqual(next(speed), 100.0 - 2 * 13)

    def test_a_turn_that_others_slowed_is_not_the_one_that_is_given(self):
        few = iter([90.0, 10.0, 92.0])
        found = rounds.take_turns(lambda: 100.0, {"few": lambda: next(few)}, 3)
        self.assertEqual(found, {"none": 100.0, "few": 90.0, "few_turn": 90.0, "few_base": 100.0})


class Ratios(unittest.TestCase):
    def test_are_of_each_round_before_the_median_is_taken(self):
        row = report.compare("c", "m", [10, 40, 30], "p", [10, 20, 10], "higher")
        self.assertEqual((row.ours, row.peer_value, row.ratio, row.ratio_low, row.ratio_high), (30, 10, 2, 1, 3))

    def test_of_values_that_can_not_be_are_refused(self):
        for ours, theirs in (([1.0], [0.0]), ([float("nan")], [1.0]), ([1.0, 2.0], [1.0]), ([], [])):
            with self.assertRaises(ValueError):
                report.compare("c", "m", ours, "p", theirs, "higher")

    def test_are_judged_by_their_median_and_say_where_a_round_missed(self):
        def verdict(ours, better, bar):
            return report.compare("c", "m", ours, "p", [1.0] * len(ours), better, bar).verdict()

        self.assertEqual(verdict([2, 2, 2], "higher", 1.5), "met")
        self.assertEqual(verdict([1, 2, 2], "higher", 1.5), "met, not in every round")
        self.assertEqual(verdict([1, 1, 2], "higher", 1.5), "missed")
        self.assertEqual(verdict([0.1, 0.1, 0.1], "lower", 0.3), "met")
        self.assertEqual(verdict([0.1, 0.1, 0.9], "lower", 0.3), "met, not in every round")
        self.assertEqual(verdict([0.5, 0.5, 0.1], "lower", 0.3), "missed")
        self.assertEqual(verdict([1.0], "lower", None), "")

    def test_shares_are_of_the_sum_of_the_medians(self):
        found = report.shares({"read": [1.0, 1.0, 9.0], "token ids": [2.0, 3.0, 4.0]})
        self.assertEqual(found, "read 25 %, token ids 75 %")
        with self.assertRaises(ValueError):
            report.shares({"read": [0.0]})

    def test_the_better_peer_is_the_one_with_the_better_median(self):
        series = {"a": [1.0, 9.0, 1.0], "b": [2.0, 2.0, 2.0]}
        self.assertEqual(report.best_of(series, "higher")[0], "b")
        self.assertEqual(report.best_of(series, "lower")[0], "a")

    def test_a_report_has_its_rows_its_bars_and_what_was_thrown_away(self):
        made = report.Report("x", {"cpu": "c", "cores": 2}, {"quick": True}, {}, rounds=1, discarded=[{"foreign": 0.5}])
        made.rows.append(report.compare("case", "tokens/s", [1234.5], "peer", [1000.0], "higher", 2.0))
        text = made.markdown()
        self.assertIn("| case | tokens/s | 1,234 | peer | 1,000 | 1.23 | 1.23 to 1.23 | >= 2 | missed |", text)
        self.assertIn("1 thrown away", text)
        self.assertIn("no figures", text)
        self.assertEqual(made.document()["rows"][0]["bar"], 2.0)
        self.assertIn("c, 2 cores. Ceilings", text)
        made.machine |= {"gpu": "NVIDIA X", "gpu_memory_gib": 139.0, "driver": "580.1"}
        self.assertIn("c, 2 cores; NVIDIA X, 139.0 GiB, driver 580.1. Ceilings", made.markdown())

    def test_numbers_have_three_digits(self):
        found = [report.number(value) for value in (0.0123456, 1.5, 12345.6, 0)]
        self.assertEqual(found, ["0.0123", "1.50", "12,346", "0"])


class Answers(unittest.TestCase):
    def test_equal_ones_are_no_distance_away_and_others_are(self):
        self.assertEqual(answers.divergences([-1.0, -2.0], [-1.0, -2.0]), [0.0, 0.0])
        self.assertAlmostEqual(answers.mean(answers.divergences([-1.0, -1.0], [-1.1, -0.9])), 0.005, places=4)

    def test_the_estimate_is_the_divergence(self):
        import math
        import random

        p, q = [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]
        drawn = random.Random(1).choices(range(3), p, k=200_000)
        found = answers.mean(answers.divergences([math.log(p[i]) for i in drawn], [math.log(q[i]) for i in drawn]))
        self.assertAlmostEqual(found, sum(a * math.log(a / b) for a, b in zip(p, q)), places=3)

    def test_nothing_is_timed_that_is_farther_than_its_counterpart_or_has_no_adapter(self):
        def judge(ours, peer, *most):
            # As noisy as tokens are, with these means.
            terms = {"ours": [ours * (0.5 + n % 3 / 2) for n in range(300)], "peer": [peer] * 300}
            return answers.judge_answers(terms, 1.0, "peer", *most)

        self.assertEqual(judge(0.001, 0.001), [])
        self.assertEqual(judge(0.00102, 0.001), [], "within the noise")
        self.assertEqual(len(judge(0.0012, 0.001)), 1)
        self.assertEqual(judge(0.0012, 0.001, 2.0), [], "within what it may be")
        self.assertEqual(len(judge(0.0024, 0.001, 2.0)), 1)
        self.assertEqual(len(judge(0.001, 0.9)), 1)

    def test_the_interval_of_a_ratio_holds_it_and_is_of_pairs(self):
        theirs = [1.0 + n % 7 for n in range(500)]
        self.assertEqual([round(end, 6) for end in answers.ratio_interval([2 * v for v in theirs], theirs)], [2.0, 2.0])
        low, high = answers.ratio_interval(theirs[::-1], theirs)
        self.assertTrue(0.85 < low < 1.0 < high < 1.2)

    def test_an_engine_that_took_no_notice_of_a_quantisation_is_found_out(self):
        self.assertFalse(answers.is_quantised({"ours": 1e-9, "peft bf16": 4e-5}))
        self.assertTrue(answers.is_quantised({"ours": 1e-4, "peft bf16": 4e-5}))


class Gaps(unittest.TestCase):
    def test_are_of_one_stream_each_and_reach_into_the_time(self):
        seen = [[0.0, 1.0, 5.0, 6.0], [4.5, 4.75]]
        self.assertEqual(latency.gaps(seen, 2.0, 4.6), [4.0, 0.25])
        self.assertEqual(latency.gaps(seen, 0.0, 9.0), [1.0, 4.0, 1.0, 0.25])

    def test_a_percentile_is_one_of_the_values(self):
        values = [float(n) for n in range(1, 101)]
        self.assertEqual([latency.percentile(values, p) for p in (50, 99, 100)], [50.0, 99.0, 100.0])
        self.assertEqual(latency.percentile([3.0, 1.0], 99), 3.0)


class Crowds(unittest.TestCase):
    def test_ask_again_once_they_were_answered_and_wait_apart_from_the_first_wave(self):
        asked = []

        async def answer(reader, writer):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                asked.append(await reader.readuntil(b"."))
                writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\ndata: {}\n\n")
                await writer.drain()
            writer.close()

        async def crowd():
            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                found = fairness.Crowd(port, lambda adapter, times: b"%d %d." % (adapter, times), answers=200)
                return found, await found.run()

        found, rate = asyncio.run(crowd())
        self.assertEqual(asked.count(b"0 0."), fairness.CALLERS)
        self.assertEqual({asked.count(b"%d 0." % adapter) for adapter in range(1, fairness.ADAPTERS)}, {1})
        callers = fairness.CALLERS + fairness.ADAPTERS - 1
        self.assertGreaterEqual(found.answered, 200)
        self.assertEqual(len(found.waits), found.answered - callers)
        self.assertGreater(rate, 0)

    def test_a_refusal_ends_them_with_what_was_answered(self):
        async def crowd():
            async def refuse(_, writer):
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\n\r\n")
                await writer.drain()
                writer.close()

            async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
                await fairness.Crowd(server.sockets[0].getsockname()[1], lambda *_: b".", answers=1).run()

        with self.assertRaisesRegex(RuntimeError, "429"):
            asyncio.run(crowd())


@dataclass(frozen=True)
class Folder:
    name: str
    folder: str
    path: str


class BrokenAdapters(unittest.TestCase):
    def test_are_sixty_of_which_each_differs_from_the_whole_one_and_that_one_stays_as_it_is(self):
        header = {name: {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16 * n, 16 * n + 16]} for n, name in
                  enumerate("ab")}
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + bytes(32)
        with tempfile.TemporaryDirectory() as place:
            store = Path(place)
            whole = Folder("whole", "adapters/whole", str(store / "adapters/whole"))
            Path(whole.path).mkdir(parents=True)
            (Path(whole.path) / broken.WEIGHTS).write_bytes(data)
            (Path(whole.path) / broken.CONFIG).write_text('{"r": 16}')
            found = broken.write(store, whole)
            found = broken.write(store, whole)
            self.assertEqual((len(found), len({each.folder for each in found})), (60, 60))
            for each in found:
                path = store / each.folder
                config = json.loads((path / broken.CONFIG).read_text())
                self.assertTrue((path / broken.WEIGHTS).read_bytes() != data or config["r"] > 256, each.name)
            self.assertEqual((Path(whole.path) / broken.WEIGHTS).read_bytes(), data)


class Messages(unittest.TestCase):
    def test_numbers_and_texts_are_read_back_and_zeros_left_out(self):
        inner = digests.encode([(1, "a"), (2, 0), (3, 300), (5, True), (6, ""), (7, None)])
        self.assertEqual(digests.decode(inner), [(1, b"a"), (3, 300), (5, 1)])
        self.assertEqual(digests.decode(digests.encode([(4, inner), (4, b"")])), [(4, inner), (4, b"")])

    def test_parts_do_not_run_into_each_other(self):
        one = digests.FieldHasher().field(b"ab").field(b"c").finish()
        other = digests.FieldHasher().field(b"a").field(b"bc").finish()
        self.assertNotEqual(one, other)

    def test_the_order_of_keys_does_not_change_a_digest(self):
        one, other = {"b": 1, "a": [{"y": 2, "x": 3}]}, {"a": [{"x": 3, "y": 2}], "b": 1}
        self.assertEqual(digests.of_json(one), digests.of_json(other))


class Logs(unittest.TestCase):
    def test_the_first_line_of_a_step_counts_and_other_lines_do_not(self):
        line = lambda time, message, step: json.dumps({"timestamp": time, "fields": {"message": message, "step": step}})
        found = steplog.step_times([
            "not JSON", line("2026-01-01T00:00:01.500000Z", "training", 1), line("2026-01-01T00:00:02Z", "saved", 2),
            line("2026-01-01T00:00:04.000000Z", "training", 3), line("2026-01-01T00:00:09Z", "training", 3),
        ])
        self.assertEqual(set(found), {1, 3})
        self.assertEqual(found[3] - found[1], 2.5)

    def test_the_time_between_two_entries_is_that_of_the_last_ones(self):
        line = lambda at, says: json.dumps({"timestamp": f"2026-01-01T00:00:{at}Z", "fields": {"message": says}})
        said = [("01.250000", "source read"), ("03.250000", "source read"), ("05.000000", "dataset built")]
        lines = ["7", *(line(*it) for it in said)]
        self.assertEqual(steplog.between(lines, "source read", "dataset built"), 1.75)
        with self.assertRaisesRegex(RuntimeError, "dataset built"):
            steplog.between(lines[:3], "source read", "dataset built")


class Children(unittest.TestCase):
    def test_are_ended_with_what_they_started(self):
        with tempfile.TemporaryDirectory() as folder:
            child = children.Child(["sh", "-c", "sleep 60 & echo $!; wait"], Path(folder) / "log")
            limit = time.monotonic() + 10
            while not (text := child.log.read_text().strip()) and time.monotonic() < limit:
                time.sleep(0.02)
            children.stop_all()
            self.assertIsNotNone(child.process.returncode)
            time.sleep(0.1)
            state = Path(f"/proc/{text}/stat")
            self.assertTrue(not state.exists() or " Z " in state.read_text())

    def test_one_that_fails_while_one_waits_for_it_says_why(self):
        with tempfile.TemporaryDirectory() as folder:
            child = children.Child(["sh", "-c", "echo no such model; exit 3"], Path(folder) / "log")
            with self.assertRaisesRegex(RuntimeError, "no such model"):
                children.wait_until_answers(child, "http://127.0.0.1:1/", 10)
            children.stop_all()


class WhatAProxyAdds(unittest.TestCase):
    def test_is_told_at_the_median_and_at_the_99th_percentile_and_is_never_nothing(self):
        direct = {"p50_us": 40.0, "p99_us": 90.0}
        self.assertEqual(latency.added({"p50_us": 65.0, "p99_us": 190.0}, direct), {"added_p50_us": 25.0, "added_p99_us": 100.0})
        self.assertEqual(latency.added({"p50_us": 39.0, "p99_us": 90.0}, direct), {"added_p50_us": 1.0, "added_p99_us": 1.0})


def bf16(values):
    """As their upper halves; the values have no lower ones."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def normed_product(x, weight, matrix, outputs, eps):
    """RMS norm, then a matrix."""
    scale = math.sqrt(sum(value * value for value in x) / len(x) + eps)
    inner = [w * value / scale for w, value in zip(weight, x)]
    return [sum(a * b for a, b in zip(matrix[row * len(x):(row + 1) * len(x)], inner)) for row in range(outputs)]


class Widening(unittest.TestCase):
    def test_more_inputs_leave_a_normed_product_as_it_is(self):
        numbers = random.Random(1)
        draw = lambda count: [numbers.randrange(-64, 64) / 32 for _ in range(count)]
        x, weight, matrix, eps = draw(6), draw(6), draw(4 * 6), 0.01
        wide_norm = struct.unpack("<8f", widen.widened_norm(bf16(weight), 8))
        bits = struct.unpack("<40H", widen.widened_matrix(bf16(matrix), (4, 6), (5, 8), 2))
        wide_matrix = [struct.unpack("<f", struct.pack("<I", each << 16))[0] for each in bits]
        found = normed_product(x + [0.0, 0.0], wide_norm, wide_matrix, 5, eps * 6 / 8)
        expected = normed_product(x, weight, matrix, 4, eps)
        self.assertEqual(found[4], 0.0)
        for mine, other in zip(found, expected):
            self.assertAlmostEqual(mine, other, places=5)

    def test_the_demos_base_gets_inputs_that_are_multiples_of_a_block(self):
        with tempfile.TemporaryDirectory() as place:
            target = Path(place) / "base"
            config = widen.widen(qlora.DEMO / "base-model", target, 256)
            header, data = widen.read(target / widen.WEIGHTS)
            before, old = widen.read(qlora.DEMO / "base-model" / widen.WEIGHTS)
            self.assertEqual(set(header), set(before))
            for name, entry in header.items():
                if len(entry["shape"]) == 2:
                    self.assertEqual(entry["shape"][1] % 256, 0, name)
            heads = (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
            self.assertEqual(heads, (8, 4, 32))
            name = "model.layers.1.self_attn.o_proj.weight"
            at, was = header[name]["data_offsets"][0], before[name]["data_offsets"][0]
            self.assertEqual(data[at + 512:at + 512 + 384], old[was + 384:was + 768], "the second row")
            self.assertEqual(data[at + 384:at + 512], bytes(128))
            self.assertTrue((target / "tokenizer.json").exists())
            self.assertEqual(json.loads((target / "config.json").read_text()), config)


class FineTunes(unittest.TestCase):
    def scored(self, q8, q4):
        return {
            "bf16": [qlora.Scored(2.0, 5.0, 9), qlora.Scored(2.1, 5.0, 9)],
            "Q8_0": [qlora.Scored(q8 * loss, 5.01, 9) for loss in (2.0, 2.1)],
            "Q4_K": [qlora.Scored(q4 * loss, 5.2, 9) for loss in (2.0, 2.1)],
        }

    def test_are_held_against_their_bars(self):
        rows, problems = qlora.judge(self.scored(1.01, 1.04), qlora.Scored(4.9, 5.001, 9))
        self.assertEqual(problems, [])
        self.assertEqual([row["met"] for row in rows], [None, True, True])
        self.assertIn("| Q4_K | 5.2000 | 2.1320 | 1.0400 | 1.0400 to 1.0400 | <= 1.05 | met |", qlora.table(rows))
        rows, problems = qlora.judge(self.scored(1.03, 1.06), qlora.Scored(4.9, 5.001, 9))
        self.assertEqual(([row["met"] for row in rows], len(problems)), ([None, False, False], 2))

    def test_that_learn_nothing_or_quantise_nothing_are_no_figures(self):
        found = self.scored(1.0, 1.0)
        found["Q8_0"] = [qlora.Scored(2.0, 5.0, 9)] * 2
        self.assertIn("not quantised", qlora.judge(found, qlora.Scored(4.9, 5.0, 9))[1][0])
        found = self.scored(1.0, 2.4)
        self.assertTrue(any("nothing was learned" in each for each in qlora.judge(found, qlora.Scored(4.9, 5.0, 9))[1]))
        self.assertIn("widening", qlora.judge(self.scored(1.0, 1.0), qlora.Scored(4.9, 5.1, 9))[1][0])


if __name__ == "__main__":
    unittest.main()
