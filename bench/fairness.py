"""What callers wait for a first token where eight times more adapters are asked for than there are places."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from latency import Stream, gauges, percentile, request, until

PLACES = 8
ADAPTERS = 8 * PLACES
# Callers of the first adapter; each other one has one.
CALLERS = 8


@dataclass
class Crowd:
    """Callers, each of whom asks again as soon as it was answered."""

    port: int
    # A request of the adapter with this index, the caller's so many times.
    ask: Callable[[int, int], bytes]
    # Answers after which all of them leave.
    answers: int
    answered: int = 0
    # Seconds to the first token, of those who did not come first of all.
    waits: list[float] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    async def call(self, adapter: int) -> None:
        times = 0
        while True:
            stream = Stream(self.port, self.ask(adapter, times))
            self.streams.append(stream)
            begun = time.perf_counter()
            await stream.run()
            if times:
                self.waits.append(stream.seen[0] - begun)
            times += 1
            self.answered += 1

    async def run(self) -> float:
        """Tokens a second."""
        callers = [0] * CALLERS + list(range(1, ADAPTERS))
        begun = time.perf_counter()
        tasks = [asyncio.create_task(self.call(adapter)) for adapter in callers]
        try:
            await until(lambda: self.answered >= self.answers, tasks, 1200, f"{self.answers} answers")
            seconds = time.perf_counter() - begun
            tokens = sum(len(stream.seen) for stream in self.streams)
        finally:
            for stream in self.streams:
                stream.vanish()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tokens / seconds


class Fairness:
    """Two engines that differ in who is next: by what adapters had so far, and by arrival."""

    def __init__(self, engines: dict[str, object], adapters: list, prompt: Callable[[int], list[int]],
                 quick: bool) -> None:
        self.engines, self.adapters, self.prompt = engines, adapters, prompt
        # Two of each caller, and as many again.
        self.answers = 100 if quick else 280

    def ask(self, adapter: int, times: int) -> bytes:
        """As in the scheduler's own tests in virtual time: sizes that differ, the same for both engines."""
        prompt, answer = 16 + (adapter * 37 + times * 53) % 113, 16 + (adapter * 29 + times * 31) % 49
        return request(self.adapters[adapter].name, self.prompt(prompt), answer)

    def measure(self) -> dict[str, float]:
        found = {}
        for name, engine in self.engines.items():
            crowd = Crowd(engine.http_port, self.ask, self.answers)
            found[f"{name}_rate"] = asyncio.run(crowd.run())
            found[f"{name}_p99"], found[f"{name}_median"] = percentile(crowd.waits, 99), statistics.median(crowd.waits)
            while any(gauges(engine.metrics_url).values()):
                time.sleep(0.05)
        # Who comes first finds the machine otherwise than who comes second.
        self.engines = dict(reversed(self.engines.items()))
        return found
