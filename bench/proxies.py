"""The proxies beside ours, a backend that costs next to nothing, and wrk: each a child in the foreground."""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import digests
from children import Child, free_ports, wait_until_answers
from shapes import write_json

# What an engine answers, with the version that it was asked for. sglang-router looks for the last names.
ANSWER = (
    '{"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "bench", '
    '"asked": "$http_x_graftwork_adapter", '
    '"choices": [{"index": 0, "text": " a few words of an answer", "logprobs": null, "finish_reason": "length"}], '
    '"usage": {"prompt_tokens": 64, "completion_tokens": 16, "total_tokens": 80}, "data": [], '
    '"model_path": "bench", "served_model_name": "bench", "is_generation": true, "status": "ok"}'
)
NGINX_MAIN = """daemon off;
pid {work}/{name}.pid;
error_log {work}/{name}.error.log crit;
worker_processes {workers};
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 3600;
  client_body_temp_path {work}/{name}-body;
  proxy_temp_path {work}/{name}-proxy;
  fastcgi_temp_path {work}/{name}-fastcgi;
  uwsgi_temp_path {work}/{name}-uwsgi;
  scgi_temp_path {work}/{name}-scgi;
  client_max_body_size 8m;
{rest}
}}
"""
HAPROXY = """global
  nbthread {threads}
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 3600s
  timeout server 3600s
  option http-keep-alive
  http-reuse always
frontend in
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance roundrobin
{servers}
"""


def start_backends(nginx: str, work: Path) -> tuple[Child, list[int]]:
    """Two addresses of one process with one worker."""
    ports = free_ports(2)
    servers = "".join(
        f"""  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      default_type application/json;
      add_header x-graftwork-adapter $http_x_graftwork_adapter;
      add_header x-graftwork-engine bench;
      return 200 '{ANSWER}';
    }}
  }}
""" for port in ports)
    child = start_nginx(nginx, work, "backend", 1, servers)
    for port in ports:
        wait_until_answers(child, f"http://127.0.0.1:{port}/health", 20)
    return child, ports


def start_nginx(nginx: str, work: Path, name: str, workers: int, rest: str) -> Child:
    file = work / f"{name}.conf"
    file.write_text(NGINX_MAIN.format(work=work, name=name, workers=workers, rest=rest))
    return Child([nginx, "-p", work, "-c", file], work / f"{name}.log")


def start_nginx_proxy(nginx: str, work: Path, backends: list[int], threads: int) -> tuple[Child, int]:
    port = free_ports(1)[0]
    servers = "".join(f"    server 127.0.0.1:{each};\n" for each in backends)
    child = start_nginx(nginx, work, "nginx", threads, f"""  upstream engines {{
{servers}    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}""")
    wait_until_answers(child, f"http://127.0.0.1:{port}/v1/models", 20)
    return child, port


def start_haproxy(haproxy: str, work: Path, backends: list[int], threads: int) -> tuple[Child, int]:
    port = free_ports(1)[0]
    servers = "".join(f"  server e{index} 127.0.0.1:{each}\n" for index, each in enumerate(backends))
    file = work / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, threads=threads, servers=servers))
    child = Child([haproxy, "-db", "-f", file], work / "haproxy.log")
    wait_until_answers(child, f"http://127.0.0.1:{port}/v1/models", 20)
    return child, port


def start_sglang(python: str, work: Path, backends: list[int]) -> tuple[Child, int]:
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{each}" for each in backends]
    child = Child(
        [python, "-m", "sglang_router.launch_router", "--worker-urls", *urls, "--policy", "round_robin",
         "--host", "127.0.0.1", "--port", port, "--prometheus-port", metrics, "--log-level", "error"],
        work / "sglang-router.log",
    )
    wait_until_completes(child, port, 60)
    return child, port


class Router:
    """Our router, and the operator's end of it."""

    def __init__(self, binary: Path, work: Path, backends: list[int]) -> None:
        self.operator = digests.Operator("bench-router", "bench-owner")
        self.port, grpc_port, metrics = free_ports(3)
        self.backends = backends
        file = work / "router.json"
        write_json(file, {
            "endpoint": "bench", "ownerUid": "bench-owner", "operatorKeys": [self.operator.public_key()],
            "enginesHost": f"127.0.0.1:{backends[0]}", "baseName": None,
            "models": [{"name": "bench", "version": 1, "digest": digests.of_bytes(b"1")}],
        })
        self.child = Child(
            [binary, "--config", file, "--pod-uid", "bench-router", "--listen-http", f"127.0.0.1:{self.port}",
             "--listen-grpc", f"127.0.0.1:{grpc_port}", "--listen-metrics", f"127.0.0.1:{metrics}",
             "--drain-delay", "0s"],
            work / "router.log", {"RUST_LOG": "warn"},
        )
        wait_until_answers(self.child, f"http://127.0.0.1:{metrics}/readyz", 30)
        import grpc

        channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.call = channel.unary_unary("/graftwork.router.v1.Router/Sync")
        self.push(None)
        wait_until_completes(self.child, self.port, 30)

    def push(self, weight: int | None) -> None:
        """A whole table (router.proto): version 1, and version 2 with `weight` percent of the callers."""
        self.send(self.table(weight))

    def send(self, table: bytes) -> None:
        self.call(table, timeout=10)

    def table(self, weight: int | None) -> bytes:
        """The signed call: Python takes longer to make one than the router to take it in."""
        version = lambda number: digests.encode([(1, number), (2, digests.of_bytes(str(number).encode()))])
        candidate = None
        if weight is not None:
            candidate = digests.encode([(1, version(2)), (2, weight), (3, True), (4, 120), (5, "salt")])
        model = digests.encode([(1, "bench"), (2, version(1)), (3, candidate)])
        engines = [
            (2, digests.encode([(1, f"engine-{index}"), (2, f"127.0.0.1:{port}")]))
            for index, port in enumerate(self.backends)
        ]
        body = digests.encode([(1, model), *engines])
        return self.operator.sign("graftwork.router.v1.Router/Sync", body)

    def change_ms(self, changes: int) -> list[float]:
        """Milliseconds from each push to the end of the first answer by the new table, asked for on one connection."""
        found = []
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        for index in range(changes):
            weight, expected = ((100, "bench@v2"), (0, "bench@v1"))[index % 2]
            table = self.table(weight)
            begun = time.perf_counter()
            self.send(table)
            while ask(connection) != expected:
                if time.perf_counter() - begun > 10:
                    raise TimeoutError(f"nobody gets {expected}")
            found.append(1000 * (time.perf_counter() - begun))
        connection.close()
        return found


def ask(connection: http.client.HTTPConnection) -> str | None:
    """The version that answered."""
    body = b'{"model": "bench", "prompt": "a", "max_tokens": 1}'
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the router answers {answer.status}")
    return answer.headers.get("x-graftwork-adapter")


def complete(port: int) -> tuple[int, str | None]:
    """One completion: status and the version that answered."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", b'{"model": "bench", "prompt": "a", "max_tokens": 1}',
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
        return answer.status, answer.headers.get("x-graftwork-adapter")


def wait_until_completes(child: Child, port: int, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            if complete(port)[0] == 200:
                return
        except (urllib.error.URLError, OSError) as error:
            if child.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"no completion through {child.name}: {error}\n{child.tail()}") from error
        time.sleep(0.1)


def load(wrk: str, work: Path, port: int, *, connections: int, seconds: float, most: int = 0,
         each=lambda: None) -> dict:
    """wrk with one thread: what it found. With `most`, it looks at every answer and ends after so many."""
    script = Path(__file__).resolve().parent / "post.lua"
    child = Child(
        [wrk, "-t", 1, "-c", connections, "-d", f"{max(1, round(seconds))}s", "--timeout", "10s", "-s", script,
         f"http://127.0.0.1:{port}/v1/completions", "--", most],
        work / "wrk.log",
    )
    if child.wait(seconds + 60, each) != 0:
        raise RuntimeError(f"wrk failed:\n{child.tail()}")
    lines = [line for line in child.log.read_text().splitlines() if line.startswith("FOUND ")]
    if not lines:
        sys.exit(f"error: wrk says nothing:\n{child.tail()}")
    return json.loads(lines[-1].removeprefix("FOUND "))
