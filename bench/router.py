"""`make bench-router`: our router beside nginx, haproxy and sglang-router, before a backend that costs next to nothing.

And a million requests through a thousand changes of a canary's weight, each answer looked at.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import machine
import options
import proxies
from children import run_to_end
from latency import added, percentile
from report import Report, compare
from rounds import rounds_of

CONNECTIONS = 64
WEIGHTS = [0, 5, 50, 100, 25, 0, 100, 75]


def measure(wrk: str, work: Path, port: int, seconds: float, direct: dict | None) -> dict:
    """Requests a second from many connections; what one connection takes more than `direct`, of the backend alone."""
    full = proxies.load(wrk, work, port, connections=CONNECTIONS, seconds=seconds)
    if full["errors"]:
        raise RuntimeError(f"{full['errors']} of {full['requests']} requests failed under load")
    alone = proxies.load(wrk, work, port, connections=1, seconds=max(1, seconds / 3))
    found = {"rate": full["requests"] / full["seconds"], "p99_us": full["p99_us"], "alone_us": alone["p50_us"]}
    return found | (added(alone, direct) if direct else {})


def change_weights(router: proxies.Router, wrk: str, work: Path, requests: int, changes: int, rate: float) -> dict:
    """Weights change while requests run; after each push a request of our own must follow it."""
    done = wrong = 0
    # A third of the time is left for requests after the last change.
    pause = 0.65 * requests / rate / changes
    due = time.monotonic()

    def each() -> None:
        nonlocal done, wrong, due
        while done < changes and time.monotonic() >= due:
            weight = WEIGHTS[done % len(WEIGHTS)]
            router.push(weight)
            done += 1
            due += pause
            expected = {0: "bench@v1", 100: "bench@v2"}.get(weight)
            if expected and proxies.complete(router.port)[1] != expected:
                wrong += 1

    limit = 10 * requests / rate + 30
    found = proxies.load(
        wrk, work, router.port, connections=CONNECTIONS, seconds=limit, most=requests, each=each
    )
    router.push(None)
    return found | {"changes": done, "against_the_table": wrong}


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not found:
        sys.exit(f"error: {name} is not installed: `apt-get install {name}`; bench/run does it for root")
    return found


def version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def main() -> int:
    made = options.parser("router", __doc__)
    made.add_argument("--sglang-python", default=sys.executable, help="a Python with sglang-router")
    args = options.parse(made)
    seconds = 2 if args.quick else 10
    requests, changes = (20_000, 50) if args.quick else (1_000_000, 1_000)
    work = args.work / "router"
    work.mkdir(parents=True, exist_ok=True)
    wrk, nginx, haproxy = tool("wrk"), tool("nginx"), tool("haproxy")
    described = machine.describe()
    described["ceilings"] = machine.probe_ceilings(sys.executable, args.threads, args.quick)
    report = Report("router", described, options.settings(args) | {
        "connections": CONNECTIONS, "seconds": seconds, "requests": requests, "weight_changes": changes,
    }, {"nginx": version([nginx, "-v"]), "haproxy": version([haproxy, "-v"]), "wrk": version([wrk, "-v"])})

    print("== backend and proxies")
    _, backends = proxies.start_backends(nginx, work)
    router = proxies.Router(options.binary(args, "router"), work, backends)
    ports = {"ours": router.port}
    starts = {
        "nginx": lambda: proxies.start_nginx_proxy(nginx, work, backends, args.threads),
        "haproxy": lambda: proxies.start_haproxy(haproxy, work, backends, args.threads),
        "sglang-router": lambda: proxies.start_sglang(args.sglang_python, work, backends),
    }
    for name, start in starts.items():
        ports[name] = start()[1]
        print(f"   {name} answers")
    report.versions["sglang-router"] = version([
        args.sglang_python, "-c", "import importlib.metadata as m; print(m.version('sglang-router'))"
    ])
    if proxies.complete(router.port)[1] != "bench@v1":
        raise RuntimeError("our router does not name the version that answered")

    print("== warm-up")
    warm = proxies.load(wrk, work, backends[0], connections=CONNECTIONS, seconds=2)
    rates = {name: measure(wrk, work, port, 2, None)["rate"] for name, port in ports.items()}
    print(f"   backend alone {warm['requests'] / warm['seconds']:,.0f} requests/s; " +
          ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))

    def direct() -> dict:
        # As long as what it is taken from: a 99th percentile of fewer requests would be another figure.
        return proxies.load(wrk, work, backends[0], connections=1, seconds=max(1, seconds / 3))

    def change() -> dict:
        times = router.change_ms(20 if args.quick else 200)
        router.push(None)
        return {"change_ms": percentile(times, 99)}

    contenders = {
        name: lambda port=port: measure(wrk, work, port, seconds, direct()) for name, port in ports.items()
    } | {"ours, changes": change}
    values = rounds_of(contenders, args, report)
    case = f"{CONNECTIONS} connections"
    for peer, bar in (("sglang-router", 1.5), ("nginx", 0.5), ("haproxy", None)):
        report.rows.append(values.row(case, "requests/s", ("ours", "rate"), (peer, "rate"), bar))
    for peer in starts:
        for where, unit, metric in (
            ("1 connection", "added median, us", "added_p50_us"),
            ("1 connection", "added p99, us", "added_p99_us"),
            (case, "p99, us", "p99_us"),
        ):
            report.rows.append(values.row(where, unit, ("ours", metric), (peer, metric), None, "lower"))

    changes_ms = values.series("ours, changes", "change_ms")
    limits = [5.0] * len(changes_ms)
    report.rows.append(compare("a change of the table, to the first answer by it", "ms, p99", changes_ms, "5 ms", limits,
                               "lower", 1.0))

    print(f"== {requests:,} requests through {changes:,} changes of weight")
    found = change_weights(router, wrk, work, requests, changes, rates["ours"])
    good = (found["answers"] >= requests and found["changes"] == changes
            and not (found["failures"] or found["errors"] or found["mixed"] or found["against_the_table"]))
    report.checks.append(
        f"{found['answers']:,} answers through {found['changes']:,} changes of weight: {found['failures']} failures, "
        f"{found['errors']} errors of connections, {found['mixed']} with mixed versions, "
        f"{found['against_the_table']} against a table that was acknowledged (bar: 0 of each, "
        f"{'met' if good else 'missed'}); {found['stable']:,} of the stable version, "
        f"{found['candidate']:,} of the candidate"
    )
    report.notes.append("backend, proxy and load share the cores: figures of a whole machine, not of a proxy alone")
    report.write(args.out)
    return 0 if good else 1


if __name__ == "__main__":
    run_to_end(main)
