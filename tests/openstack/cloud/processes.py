"""Programs: started in sessions of their own, remembered by pid and start time, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .place import LOG, LOOPBACK, PIDS, environment


class Failure(Exception):
    """What went wrong, in words for the person at the terminal."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is under way, again every few seconds, and how long it took."""
    start, done = time.monotonic(), threading.Event()

    def remind() -> None:
        while not done.wait(5):
            print(f"   … {what}: {time.monotonic() - start:.0f} s", flush=True)

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()
    print(f"   {what}: {time.monotonic() - start:.1f} s", flush=True)


def start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where there is none that runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


class Program:
    """A program that outlives this one. `prefix`: what runs its command elsewhere, in its own process."""

    def __init__(self, name: str, prefix: Sequence[object] = ()):
        self.name = name
        self.prefix = prefix
        self.record = PIDS / name
        self.log = LOG / f"{name}.log"

    @property
    def pid(self) -> int | None:
        """Its process, None when it does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, began = self.record.read_text().split()
            if start_time(int(pid)) == began:
                return int(pid)
        return None

    def start(self, *command: object, **more: str) -> None:
        """Starts it unless it runs. `more`: its environment, besides what all get."""
        if self.pid:
            return
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in (*self.prefix, *command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment(**more),
            )
        self.record.write_text(f"{process.pid} {start_time(process.pid)}\n")

    def signal(self, number: int, group: bool = False) -> None:
        """To its first process, or to its whole session."""
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if group else os.kill(pid, number)

    def stop(self, seconds: float = 8, group: bool = False) -> None:
        """Asks it to end, and ends what has not after `seconds`."""
        pid = self.pid
        if pid:
            self.signal(signal.SIGTERM, group)
            deadline = time.monotonic() + seconds
            while self.pid and time.monotonic() < deadline:
                reap()
                time.sleep(0.05)
            # Also what the first process left of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            while self.pid:
                reap()
                time.sleep(0.05)
        self.record.unlink(missing_ok=True)

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def reap() -> None:
    """Lets ended children of this very process go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def together(jobs: list[Callable[[], object]]) -> None:
    """Does all of them at the same time; the first failure is raised when all have ended."""
    failures: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def run(*command: object, log: str = "commands", stdin: str | None = None, **more: str) -> str:
    """Runs a command to its end; its output. Its errors go to the log."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        env=environment(**more),
        check=False,
    )
    with (LOG / f"{log}.log").open("a") as file:
        file.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        raise Failure(f"{' '.join(words[:4])} … ended with {done.returncode} (log: {LOG}/{log}.log)\n{last}")
    return done.stdout


def wait_until(
    what: str, probe: Callable[[], object], seconds: float, program: Program | None = None
) -> None:
    """Asks until the answer is true; at once a failure when the program has ended."""
    deadline = time.monotonic() + seconds
    while not probe():
        if program and not program.pid:
            raise Failure(f"{program.name} has ended; the end of {program.log}:\n{program.tail()}")
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds:.0f} s for {what}" + (f"; see {program.log}" if program else ""))
        time.sleep(0.1)


def listens(port: int, address: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection((address, port), 5).close()
        return True
    except OSError:
        return False


def answers(url: str) -> bool:
    """Whether HTTP is answered, with anything but a server's error."""
    try:
        urllib.request.urlopen(url, timeout=20).close()
        return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
