"""Child processes: started, watched and ended by their own ids, whatever happens."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


class Child:
    """One process in a group of its own; its output goes to a file, or only its errors where one talks with it."""

    alive: list["Child"] = []

    def __init__(self, command: list, log: Path, env: dict[str, str] | None = None, talks: bool = False) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        # The script, where Python runs one.
        self.name = next((Path(part).name for part in map(str, command) if part.endswith(".py")), Path(command[0]).name)
        self.begun = time.monotonic()
        self.begun_unix = time.time()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command], env={**os.environ, **(env or {})}, start_new_session=True,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL, stdout=subprocess.PIPE if talks else file,
                stderr=file if talks else subprocess.STDOUT,
            )
        Child.alive.append(self)

    def peak_bytes(self) -> int:
        """The most memory that it had at a time; of the program itself, not of what forked it."""
        return self.status_bytes("VmHWM:")

    def resident_bytes(self) -> int:
        """The memory that it has."""
        return self.status_bytes("VmRSS:")

    def status_bytes(self, field: str) -> int:
        try:
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) << 10
        except OSError:
            pass
        return 0

    def ask(self, **command) -> dict:
        """One JSON line there, one back; without a command, the line that comes first."""
        if command:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(30)
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
        return json.loads(line)

    def wait(self, seconds: float, each: Callable[[], None] = lambda: None) -> int:
        """Its exit status; `each` is called every 20 ms."""
        limit = time.monotonic() + seconds
        while self.process.poll() is None:
            each()
            if time.monotonic() > limit:
                self.stop()
                raise TimeoutError(f"{self.name} did not end within {seconds:.0f} s; log: {self.log}")
            time.sleep(0.02)
        Child.alive.remove(self)
        return self.process.returncode

    def stop(self, seconds: float = 10) -> None:
        """SIGTERM, then SIGKILL, to it and to what it started."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10)):
            if self.process.poll() is None:
                try:
                    os.killpg(self.process.pid, number)
                except ProcessLookupError:
                    pass
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        if self in Child.alive:
            Child.alive.remove(self)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def stop_all() -> None:
    for child in list(Child.alive):
        child.stop(3)


def run_to_end(main: Callable[[], int]) -> None:
    """Runs `main`; on Ctrl-C, SIGTERM and errors alike no child is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        status = 130
    finally:
        stop_all()
    sys.exit(status)


def raise_open_files(wanted: int) -> None:
    """Lets this process and its children have so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            sys.exit(f"error: {wanted} open files are needed, the limit is {hard}: `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until_answers(child: Child, url: str, seconds: float) -> None:
    """Until `url` answers 200."""
    limit = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if child.process.poll() is not None:
            raise RuntimeError(f"{child.name} ended with {child.process.returncode}:\n{child.tail()}")
        if time.monotonic() > limit:
            raise TimeoutError(f"{url} does not answer after {seconds:.0f} s:\n{child.tail()}")
        time.sleep(0.1)
