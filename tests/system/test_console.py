"""The console: its log, its bounds, its stream."""

import time

import pytest
from harness import Fault, Terminal, wait_for

pytestmark = pytest.mark.each_runtime


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


@pytest.fixture
def terminal(instance):
    with Terminal(instance) as terminal:
        yield terminal


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
    with Terminal(instance) as other:
        other.read_until(b"Attached")
        terminal.type(b"echo shared-$((1+1))\r")
        terminal.read_until(b"shared-2")
        other.read_until(b"shared-2")


def test_a_commands_end_is_told_at_once(instance):
    """Not after the time that what a command has left behind may go on writing."""

    def seconds() -> float:
        begun = time.monotonic()
        assert instance.run("true").returncode == 0
        return time.monotonic() - begun

    if instance.service.settings["runtime"]["program"] != "native":
        pytest.skip("how long a program's own processes hold the pipes is its affair")
    assert min(seconds() for _ in range(10)) < 0.2
