"""Our engine as a process: its configuration, its pushes, and a client of its HTTP API that costs next to nothing."""

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import digests
from children import Child, free_ports, wait_until_answers
from shapes import AdapterFolder, write_json

STATES = ["unspecified", "registered", "verified", "resident", "refused"]


class Engine:
    """A running engine."""

    def __init__(self, binary: Path, work: Path, base: Path, base_digest: str, store: Path,
                 adapters: list[AdapterFolder], *, threads: int, streams: int, loaded: int,
                 quantization: str | None, name: str = "engine", flags: tuple[str, ...] = ()) -> None:
        self.operator = digests.Operator("bench-pod", "bench-owner")
        self.http_port, grpc_port, metrics_port = free_ports(3)
        config = {
            "endpoint": "bench", "ownerUid": "bench-owner", "operatorKeys": [self.operator.public_key()],
            "basePath": str(base), "baseDigest": base_digest, "baseName": "base", "maximumBatchSize": streams,
            "maximumLoadedAdapters": loaded, "maximumContextTokens": 4608, "adapters": [entry(a) for a in adapters],
            "threads": threads,
        }
        if quantization:
            config["quantization"] = quantization
        file = work / f"{name}.json"
        write_json(file, config)
        self.child = Child(
            [binary, "--config", file, "--store", store, "--pod-uid", "bench-pod",
             "--listen-http", f"127.0.0.1:{self.http_port}", "--listen-grpc", f"127.0.0.1:{grpc_port}",
             "--listen-metrics", f"127.0.0.1:{metrics_port}", "--drain-delay-seconds", "0", "--kv-cache-mib", "4096",
             "--maximum-waiting", "1024", *flags],
            work / f"{name}.log", {"RUST_LOG": "warn"},
        )
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        wait_until_answers(self.child, f"{self.metrics_url}/readyz", 600)
        import grpc

        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")

    def call(self, method: str, message: bytes) -> bytes:
        return self.channel.unary_unary(f"/graftwork.engine.v1.Engine/{method}")(message, timeout=120)

    def sync(self, adapters: list[AdapterFolder]) -> tuple[float, dict[str, str]]:
        """Pushes the whole list: seconds of the call alone, and the states that the engine answers with.

        Python takes longer to write and to read a list of a thousand than the engine takes for it.
        """
        seconds, reply = self.push(self.written(adapters))
        return seconds, read_states(reply)

    def written(self, adapters: list[AdapterFolder]) -> bytes:
        """A list, for `push`."""
        return encode_list(adapters)

    def push(self, adapters: bytes) -> tuple[float, bytes]:
        """As `sync`, of a list that was written before, with its answer unread."""
        push = self.operator.sign("graftwork.engine.v1.Engine/Sync", adapters)
        begun = time.perf_counter()
        reply = self.call("Sync", push)
        return time.perf_counter() - begun, reply

    def states(self) -> dict[str, str]:
        return read_states(self.call("Status", b""))

    def wait_for(self, adapters: list[AdapterFolder], states: set[str], seconds: float) -> float:
        """Until every adapter is in one of `states`: how long that took."""
        begun = time.monotonic()
        while True:
            known = self.states()
            missing = [a.name for a in adapters if known.get(a.name) not in states]
            if not missing:
                return time.monotonic() - begun
            if "refused" in known.values():
                raise RuntimeError(f"the engine refuses an adapter: {self.child.tail()}")
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"{len(missing)} adapters are in none of {states} after {seconds:.0f} s")
            # Reading a list of a thousand takes Python tens of milliseconds, which the engine does not get.
            time.sleep(0.3 if len(adapters) > 1 else 0.02)

    def post(self, path: str, body: dict, seconds: float = 600) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.load(answer)

    def revision(self) -> str:
        """What computes: base, build, instruction set."""
        body = json.dumps({"model": "base", "prompt": [0, 5], "max_tokens": 1, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.headers.get("x-graftwork-engine", "unknown")

    def logprobs(self, model: str, tokens: list[int]) -> list[float]:
        """Log-probability of every token but the first, teacher forced."""
        answer = self.post("/v1/completions", {
            "model": model, "prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0,
        })
        values = answer["choices"][0]["logprobs"]["token_logprobs"]
        if len(values) != len(tokens):
            raise RuntimeError(f"{len(values)} log-probabilities for {len(tokens)} tokens")
        return values[1:]

    def generate(self, requests: list[tuple[str, list[int]]], new_tokens: int, together: int = 32) -> float:
        """Greedy streams, so many together: seconds from the first byte sent to the last one received.

        Every stream must bring its `new_tokens`: `ignore_eos`, and counted by the engine's own usage.
        """
        bodies = [
            json.dumps({
                "model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True},
            }).encode()
            for model, prompt in requests
        ]
        return asyncio.run(stream_all(self.http_port, bodies, new_tokens, together))

    def stop(self) -> None:
        self.channel.close()
        self.child.stop()


def entry(adapter: AdapterFolder) -> dict:
    return {"name": adapter.name, "version": 1, "digest": adapter.digest, "folder": adapter.folder, "isDefault": True}


def encode_list(adapters: list[AdapterFolder]) -> bytes:
    """A `SyncRequest` (engine.proto)."""
    return digests.encode([
        (1, digests.encode([(1, a.name), (2, 1), (3, a.digest), (4, a.folder), (5, True)])) for a in adapters
    ])


def read_states(reply: bytes) -> dict[str, str]:
    found = {}
    for number, value in digests.decode(reply):
        if number == 5:
            fields = dict(digests.decode(value))
            found[fields[1].decode()] = STATES[fields.get(4, 0)]
    return found


async def stream_all(port: int, bodies: list[bytes], new_tokens: int, together: int) -> float:
    places = asyncio.Semaphore(together)

    async def one(body: bytes) -> None:
        async with places:
            await stream_one(port, body, new_tokens)

    begun = time.perf_counter()
    await asyncio.gather(*(one(body) for body in bodies))
    return time.perf_counter() - begun


async def stream_one(port: int, body: bytes, new_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    text = await reader.read(-1)
    writer.close()
    if not text.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the engine answers {text[:500]!r}")
    usage = text.rfind(b'"completion_tokens":')
    count = int(text[usage + 20:usage + 30].split(b",")[0].split(b"}")[0]) if usage >= 0 else 0
    if count != new_tokens or b"[DONE]" not in text:
        raise RuntimeError(f"a stream brought {count} tokens in place of {new_tokens}: {text[-300:]!r}")
