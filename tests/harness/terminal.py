"""The operator's view of a console: what is typed, and what comes."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time

from .service import BERTH, Instance, wait_for


class Terminal:
    """`berth console` on a pseudo terminal of the test's, or `berth exec --tty` of a command."""

    def __init__(self, instance: Instance, *command: str):
        self.master, slave = pty.openpty()
        verb = ["exec", "--tty"] if command else ["console"]
        words = [BERTH, *verb, "--socket", instance.service.socket, instance.id]
        self.process = subprocess.Popen(
            [*words, "--", *command] if command else words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_raw(self) -> None:
        """Until keys go over one by one, as they are."""
        wait_for("raw keys", lambda: not termios.tcgetattr(self.master)[3] & termios.ICANON)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read_until(self, text: bytes, timeout: float = 20) -> bytes:
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}; saw {self.seen[-500:]!r}"
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:  # the other end closed
                raise AssertionError(f"closed before {text!r}: {self.seen[-500:]!r}") from None
        return self.seen

    def close(self) -> None:
        os.close(self.master)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
