"""What streams feel of others, and how soon a place is free: times of single events, not of whole answers."""

import asyncio
import json
import math
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable

STREAMS = 4
# Gaps between tokens with nobody beside: so many before, and as many after.
QUIET_TOKENS = 50
CLIENTS = 1000


def request(model: str, prompt: list[int], new_tokens: int) -> bytes:
    body = json.dumps({
        "model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )


class Stream:
    """One stream, read as it comes."""

    def __init__(self, port: int, asked: bytes) -> None:
        self.port, self.asked = port, asked
        # When each event arrived.
        self.seen: list[float] = []
        self.writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(self.asked)
        first = True
        while text := await reader.read(1 << 16):
            now = time.perf_counter()
            if first and not text.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the engine answers {text[:500]!r}")
            first = False
            self.seen += [now] * text.count(b"data: {")
        self.writer.close()

    def vanish(self) -> None:
        """As a client does that is killed."""
        if self.writer:
            self.writer.transport.abort()


async def until(holds: Callable[[], bool], tasks: list[asyncio.Task], seconds: float, what: str) -> None:
    limit = time.perf_counter() + seconds
    while not holds():
        for task in tasks:
            if task.done() and task.exception():
                raise task.exception()
        if time.perf_counter() > limit:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        await asyncio.sleep(0.005)


def gaps(seen: list[list[float]], begin: float, end: float) -> list[float]:
    """Seconds between the events of each stream, of those gaps that lie in the time or reach into it."""
    return [
        later - earlier for times in seen for earlier, later in zip(times, times[1:]) if later > begin and earlier < end
    ]


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many percent are at most."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def added(alone: dict, direct: dict) -> dict:
    """Microseconds that a proxy adds at the median and at the 99th percentile; at least 1, so that ratios are numbers."""
    return {f"added_{at}_us": max(1.0, alone[f"{at}_us"] - direct[f"{at}_us"]) for at in ("p50", "p99")}


async def felt(port: int, asked: list[bytes], action: Callable[[], Awaitable[None]],
               looking: Callable[[], Awaitable[None]] | None = None) -> dict[str, float]:
    """The 99th percentile of the gaps between the tokens of streams, without the action and beside it.

    Without it is before and after: streams grow meanwhile, and each token attends to more of them. What looks on for
    the action does so all the time: it takes its share of the machine too.
    """
    streams = [Stream(port, one) for one in asked]
    tasks = [asyncio.create_task(stream.run()) for stream in streams]
    if looking:
        tasks.append(asyncio.create_task(looking()))

    async def more(tokens: int) -> None:
        goal = [len(stream.seen) + tokens for stream in streams]
        await until(
            lambda: all(len(stream.seen) >= most for stream, most in zip(streams, goal)), tasks, 300,
            f"{tokens} more tokens",
        )

    try:
        await until(lambda: all(len(stream.seen) > 20 for stream in streams), tasks, 120, "the streams' begin")
        quiet = time.perf_counter()
        await more(QUIET_TOKENS)
        begun = time.perf_counter()
        await action()
        ended = time.perf_counter()
        # The gap that the action's end lies in.
        await more(1)
        calm = time.perf_counter()
        await more(QUIET_TOKENS)
        over = time.perf_counter()
    finally:
        for stream in streams:
            stream.vanish()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    seen = [stream.seen for stream in streams]
    without = [gap for gap in gaps(seen, quiet, begun) + gaps(seen, calm, over) if gap > 0]
    beside = [gap for gap in gaps(seen, begun, ended) if gap > 0]
    return {"without": percentile(without, 99), "beside": percentile(beside, 99), "seconds": ended - begun}


def refused(metrics_url: str) -> int:
    """How many adapters an engine has refused."""
    with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=10) as answer:
        count = re.search(rb'^graftwork_engine_adapters\{state="Refused"\} (\d+)$', answer.read(), re.MULTILINE)
    return int(count[1]) if count else 0


def gauges(metrics_url: str) -> dict[str, float]:
    """An engine's running and waiting requests and used blocks."""
    with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=10) as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    wanted = {f"graftwork_engine_{name}": name for name in ("running_requests", "waiting_requests", "kv_blocks_used")}
    return {wanted[name]: float(value) for name, value in lines if name in wanted}


async def vanish(port: int, metrics_url: str, asked: list[bytes], places: int) -> float:
    """Seconds until no request and no block is left of so many clients, who all vanish at once in mid-stream."""
    streams = [Stream(port, one) for one in asked]
    tasks = [asyncio.create_task(stream.run()) for stream in streams]
    try:
        await until(lambda: sum(bool(stream.seen) for stream in streams) >= places, tasks, 300, "every place's stream")
        waiting = len(asked) - places
        limit = time.perf_counter() + 60
        while (await asyncio.to_thread(gauges, metrics_url))["waiting_requests"] < waiting:
            if time.perf_counter() > limit:
                raise TimeoutError(f"{waiting} requests do not wait")
    finally:
        for stream in streams:
            stream.vanish()
        begun = time.perf_counter()
        for task in tasks:
            task.cancel()
    while any((await asyncio.to_thread(gauges, metrics_url)).values()):
        if time.perf_counter() - begun > 120:
            raise TimeoutError("places or blocks stay taken after their clients left")
    took = time.perf_counter() - begun
    await asyncio.gather(*tasks, return_exceptions=True)
    return took


class Latency:
    """What is measured of our engine beside its throughput."""

    def __init__(self, engine, adapters: list, broken: list, prompt: Callable[[int], list[int]], quick: bool,
                 places: int) -> None:
        self.engine, self.adapters, self.broken, self.prompt = engine, adapters, broken, prompt
        self.places = places
        self.clients = 100 if quick else CLIENTS
        self.long = 1000 if quick else 4000

    def streams(self, count: int) -> list[bytes]:
        """Streams of different adapters that do not end by themselves."""
        return [request(self.adapters[index % 8].name, self.prompt(32), 4000) for index in range(count)]

    def measure(self) -> dict[str, float]:
        port = self.engine.http_port

        async def long_prompt() -> None:
            await Stream(port, request(self.adapters[0].name, self.prompt(self.long), 1)).run()

        # Written before: to write and to read a list of a thousand takes Python tens of milliseconds, which streams
        # would feel.
        states = self.engine.states()
        cold = [adapter.name for adapter in reversed(self.adapters) if states.get(adapter.name) == "verified"]
        asked = [request(name, self.prompt(16), 1) for name in cold[:10]]
        push = self.engine.written([*self.adapters, *self.broken])

        async def loads() -> None:
            await asyncio.gather(*(Stream(port, one).run() for one in asked))

        so_far = 0

        async def look() -> None:
            nonlocal so_far
            while True:
                so_far = await asyncio.to_thread(refused, self.engine.metrics_url)
                await asyncio.sleep(0.05)

        async def refusals() -> None:
            await asyncio.to_thread(self.engine.push, push)
            await until(lambda: so_far >= len(self.broken), [], 120, "the broken adapters' refusals")

        found = {}
        for name, action, looking in (
            ("long", long_prompt, None), ("loads", loads, None), ("broken", refusals, look),
        ):
            felt_there = asyncio.run(felt(port, self.streams(STREAMS), action, looking))
            found |= {f"{name}_{key}": value for key, value in felt_there.items()}
        states = self.engine.states()
        if any(states.get(adapter.name) != "refused" for adapter in self.broken):
            raise RuntimeError("the engine refused other adapters than the broken ones")
        self.engine.sync(self.adapters)
        found["vanish_s"] = asyncio.run(
            vanish(port, self.engine.metrics_url, self.streams(self.clients), self.places)
        )
        return found


def ten_thousand(engine, adapters: list, many: list, prompt: Callable[[int], list[int]]) -> tuple[str, bool]:
    """Many more adapters in one push: how long, how large, and what a request feels meanwhile."""
    def ask() -> float:
        return engine.generate([("base", prompt(16))], 1)

    async def beside() -> tuple[float, list[float]]:
        push = asyncio.create_task(asyncio.to_thread(engine.sync, [*adapters, *many]))
        times = []
        while not push.done():
            times.append(await asyncio.to_thread(ask))
        return (await push)[0], times

    without = percentile([ask() for _ in range(50)], 99)
    before = engine.child.resident_bytes()
    seconds, times = asyncio.run(beside())
    engine.wait_for([*adapters, *many], {"verified", "resident"}, 600)
    each = max(0, engine.child.resident_bytes() - before) / len(many)
    good = each <= 4096
    engine.sync(adapters)
    return (
        f"{len(many):,} adapters more in one push: registered after {seconds:.2f} s, {each:,.0f} bytes each (bar 4,096, "
        f"{'met' if good else 'missed'}); first tokens meanwhile within {max(times, default=0):.3f} s "
        f"({without:.3f} s without, p99)"
    ), good
