"""The console: its log, its bounds, its stream."""

import os
import pty
import select
import subprocess
import time

import pytest
from harness import Fault, wait_for
from harness.service import BERTH


def test_length_gives_the_last_bytes(instance):
    whole = instance.console()
    assert instance.console(10) == whole[-10:]
    assert instance.console(0) == ""
    assert instance.console(10**9) == whole


@pytest.mark.parametrize("length", ["-1", "x", "1.5", ""])
def test_a_bad_length_is_refused(instance, length):
    with pytest.raises(Fault) as fault:
        instance.service.client.request("GET", f"{instance.path}/console/output?length={length}")
    assert fault.value.status == 400
    assert fault.value.field == "length"


def test_the_log_is_bounded_and_keeps_its_beginning(instance):
    limit = 1 << 20
    instance.sh("seq 1 400000 > /dev/console; echo the-very-end > /dev/console", timeout=300)
    console = instance.wait_console("the-very-end")
    assert len(console) <= limit + (128 << 10)
    assert "boots" in console, "the first output was lost"
    assert "399999" in console
    files = (instance.service.state_dir / "instances" / instance.id).glob("console*")
    assert sum(file.stat().st_size for file in files) <= limit + (128 << 10)


def test_it_survives_a_stop_and_a_start(instance):
    instance.action("stop", timeout=30)
    stopped = instance.console()
    assert "goes down" in stopped
    instance.action("start")
    assert stopped.split("goes down")[0] in instance.console()


def test_every_byte_value_comes_through(instance):
    instance.sh(r"printf 'begin\001\033[31m\377\376end\n' > /dev/console")
    raw = b""

    def arrived():
        nonlocal raw
        answer = instance.service.client.request("GET", f"{instance.path}/console/output")
        raw = answer.body
        return b"end\r\n" in raw

    wait_for("the bytes", arrived)
    assert b"begin\x01\x1b[31m\xff\xfeend" in raw


class Terminal:
    """`berth console` on a pseudo terminal of the test's."""

    def __init__(self, instance):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [BERTH, "console", "--socket", instance.service.socket, instance.id],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

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


@pytest.fixture
def terminal(instance):
    terminal = Terminal(instance)
    yield terminal
    terminal.close()


def test_an_interactive_console(instance, terminal):
    terminal.type(b"\r")
    terminal.type(b"echo $((6*7))-answers\r")
    terminal.read_until(b"42-answers")
    assert "42-answers" in instance.wait_console("42-answers")


def test_the_detach_key_leaves_the_instance_running(instance, terminal):
    terminal.type(b"echo here\r")
    terminal.read_until(b"here")
    terminal.type(b"\x1d")  # Ctrl-]
    wait_for("berth console to end", lambda: terminal.process.poll() is not None)
    assert terminal.process.returncode == 0
    assert instance.state == "RUNNING"


def test_two_people_see_the_same(instance, terminal):
    other = Terminal(instance)
    try:
        other.read_until(b"Attached")
        terminal.type(b"echo shared-$((1+1))\r")
        terminal.read_until(b"shared-2")
        other.read_until(b"shared-2")
    finally:
        other.close()
