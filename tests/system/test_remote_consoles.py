"""Consoles over TCP, as Nova's proxies are told of them."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from harness import Fault, Instance, SerialViewer, VncViewer, wait_for
from harness.viewers import CELL, RAW, TIGHT, connect

#: On loopback, and not where another worker's service listens.
HOST = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
FIRST, LAST = 10000, 10999


def opened(instance: Instance, protocol: str, **fields) -> dict:
    body = {"address": HOST, "first_port": FIRST, "last_port": LAST, **fields}
    return instance.service.client.put(f"{instance.path}/remote-consoles/{protocol}", body).json()


def listens(console: dict) -> bool:
    try:
        socket.create_connection((console["address"], console["port"]), timeout=5).close()
    # Reset is who was in the queue of a port as it closed.
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True


# The port.


def test_the_same_port_until_another_is_asked_for(instance):
    console = opened(instance, "serial")
    assert console["protocol"] == "serial" and console["address"] == HOST
    assert FIRST <= console["port"] <= LAST
    assert opened(instance, "serial") == console
    other = opened(instance, "serial", first_port=20000, last_port=20999)
    assert other["port"] >= 20000 and listens(other) and not listens(console)
    vnc = opened(instance, "vnc", first_port=20000, last_port=20999)
    assert vnc["port"] != other["port"]
    for protocol in ("serial", "vnc", "vnc"):
        instance.service.client.delete(f"{instance.path}/remote-consoles/{protocol}")
    assert not listens(other) and not listens(vnc)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("first_port", {"first_port": 0}),
        ("last_port", {"last_port": FIRST - 1}),
        ("address", {"address": "192.0.2.1"}),
        ("address", {"address": "nowhere"}),
        ("last_port", {"last_port": 65536}),
        ("password", {"password": "x"}),
    ],
)
def test_what_cannot_be_listened_on_is_refused(instance, field, body):
    with pytest.raises(Fault) as fault:
        opened(instance, "serial", **body)
    assert fault.value.status == 400 and field in (fault.value.field or fault.value.detail)


def test_a_protocol_that_there_is_not_is_refused(instance):
    with pytest.raises(Fault) as fault:
        opened(instance, "spice")
    assert (fault.value.status, fault.value.field) == (400, "protocol")


def test_no_free_port_is_said(instance):
    with socket.create_server((HOST, 20500)), pytest.raises(Fault) as fault:
        opened(instance, "serial", first_port=20500, last_port=20500)
    assert fault.value.status == 507 and "20500" in fault.value.detail


def test_what_cannot_be_opened_leaves_what_is(instance):
    console = opened(instance, "serial")
    with socket.create_server((HOST, 20500)), pytest.raises(Fault):
        opened(instance, "serial", first_port=20500, last_port=20500)
    assert listens(console) and opened(instance, "serial") == console


def test_it_is_the_same_after_the_service_was_away(service, busybox):
    instance = service.spawn(busybox)
    try:
        consoles = [opened(instance, protocol) for protocol in ("serial", "vnc")]
        service.kill()
        service.start()
        with SerialViewer(connect(consoles[0])) as viewer:
            viewer.type(b"\recho still-$((40+2))\r")
            viewer.read_until(b"still-42")
        with VncViewer(connect(consoles[1])) as viewer:
            viewer.update()
        assert [opened(instance, protocol) for protocol in ("serial", "vnc")] == consoles
    finally:
        instance.delete()
    wait_for("the ports to close", lambda: not any(listens(console) for console in consoles))
    wait_for("no more of them", lambda: not (service.run_dir / "consoles").exists())
    service.kill()
    service.start()
    assert not any(listens(console) for console in consoles)


def test_a_deleted_instance_has_no_viewers(service, busybox):
    instance = service.spawn(busybox)
    with SerialViewer(connect(opened(instance, "serial"))) as viewer:
        viewer.type(b"\r")
        viewer.read_until(b"#")
        instance.delete()
        viewer.read_to_the_end()
    with pytest.raises(Fault) as fault:
        opened(instance, "serial")
    assert fault.value.status == 404


# The bytes.


def test_what_it_said_is_said_again_and_all_type(instance):
    console = opened(instance, "serial")
    instance.sh("echo said-before > /dev/console")
    with SerialViewer(connect(console)) as one, SerialViewer(connect(console)) as other:
        one.read_until(b"said-before")
        other.read_until(b"said-before")
        one.type(b"\recho $((6*7))-answers\r")
        other.read_until(b"42-answers")
        other.type(b"echo $((6*8))-answers\r")
        one.read_until(b"48-answers")


def test_one_that_does_not_run_says_so_and_keeps_its_last_words(service, busybox):
    instance = service.spawn(busybox)
    try:
        console = opened(instance, "serial")
        instance.sh("echo last-words > /dev/console")
        instance.wait_console("last-words")
        instance.action("stop", timeout=0)
        with SerialViewer(connect(console)) as viewer:
            said = viewer.read_to_the_end()
        assert b"last-words" in said and b"SHUTDOWN" in said, said
        instance.action("start")
        with SerialViewer(connect(console)) as viewer:
            viewer.type(b"\recho again-$((1+1))\r")
            viewer.read_until(b"again-2")
    finally:
        instance.delete()


def test_one_who_does_not_read_holds_nobody_up(instance):
    console = opened(instance, "serial")
    with SerialViewer(connect(console)), SerialViewer(connect(console)) as reader:
        instance.sh("seq 1 60000 > /dev/console; echo the-very-end > /dev/console", timeout=120)
        reader.read_until(b"the-very-end", timeout=60)


def test_more_than_enough_viewers_are_sent_away(instance):
    console = opened(instance, "serial")
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(SerialViewer(connect(console))) for _ in range(16)]
        viewers[0].type(b"\recho $((6*7))-answers\r")
        for viewer in viewers:
            viewer.read_until(b"42-answers")
        with SerialViewer(connect(console)) as late:
            assert late.read_to_the_end() == b""
    wait_for("room", lambda: _answers(console))


def _answers(console: dict) -> bool:
    with SerialViewer(connect(console)) as viewer:
        viewer.socket.settimeout(5)
        try:
            viewer.type(b"\r")
            return viewer.socket.recv(1) != b""
        except ConnectionError:
            return False


# The picture.


def say(viewer: VncViewer, text: str) -> None:
    """On an empty screen, at its second row."""
    viewer.type(f"clear; echo; echo {text}; sleep 1000\r")
    blank = viewer.cell(23, 79)
    drawn = lambda: viewer.cell(1, 0) != blank and viewer.cell(0, 0) == blank  # noqa: E731
    viewer.wait_for(f"{text} to be drawn", drawn)
    # All that one write brought is there.
    time.sleep(0.2)
    viewer.update(False)


@pytest.mark.parametrize(("encodings", "used"), [((TIGHT, RAW), {TIGHT}), ((RAW,), {RAW}), ((), {RAW})])
@pytest.mark.parametrize("version", [b"003.008", b"003.003"])
def test_what_is_typed_is_drawn(instance, encodings, used, version):
    console = opened(instance, "vnc")
    with VncViewer(connect(console), encodings, version) as viewer:
        assert (viewer.width, viewer.height) == (80 * CELL[0], 24 * CELL[1])
        viewer.update(False)
        viewer.key(0xFF0D)
        say(viewer, "HELLOE")
        cells = [viewer.cell(1, column) for column in range(7)]
        assert cells[2] == cells[3], "an L is an L"
        assert cells[1] == cells[5], "an E is an E"
        assert len(set(cells)) == 5, "H, E, L, O and nothing"
        assert viewer.used == used
        with VncViewer(connect(console), encodings) as other:
            # Once it has been told what was said before.
            other.wait_for("the same picture", lambda: other.pixels == viewer.pixels)
        # Ctrl-C, which shows as ^C; then comes the prompt.
        before = viewer.cell(3, 2)
        viewer.socket.sendall(b"\4\1\0\0\0\0\xff\xe3")
        viewer.key(ord("c"))
        viewer.socket.sendall(b"\4\0\0\0\0\0\xff\xe3")
        viewer.wait_for("the prompt", lambda: viewer.cell(3, 2) != before)


def test_a_picture_comes_only_when_something_changed(instance):
    with VncViewer(connect(opened(instance, "vnc"))) as viewer:
        with pytest.raises(TimeoutError):
            for _ in range(10):
                viewer.update(timeout=2)
        instance.sh("echo news > /dev/console")
        viewer.socket.settimeout(20)
        assert viewer.take(1) == b"\0"


def test_the_screen_goes_on_after_a_stop_and_a_start(service, busybox):
    instance = service.spawn(busybox)
    try:
        with VncViewer(connect(opened(instance, "vnc"))) as viewer:
            viewer.update(False)
            instance.action("stop", timeout=0)
            before = bytes(viewer.pixels)
            viewer.wait_for("its end to be told", lambda: bytes(viewer.pixels) != before)
            instance.action("start")
            time.sleep(1.5)
            viewer.key(0xFF0D)
            say(viewer, "OO")
            assert viewer.cell(1, 0) == viewer.cell(1, 1)
    finally:
        instance.delete()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"RFB 003.008\n\x02",
        b"RFB 003.008\n\x01\x01" + b"\x07" * 40,
        b"RFB 003.008\n\x01\x01\x00\0\0\0\x08\x08\0\0" + b"\0" * 40,
        b"RFB 003.008\n\x01\x01\x06\0\0\0\xff\xff\xff\xff",
    ],
)
def test_what_is_no_rfb_ends_its_connection_alone(instance, said):
    console = opened(instance, "vnc")
    with SerialViewer(connect(console)) as stranger:
        stranger.type(said)
        stranger.read_to_the_end()
    with VncViewer(connect(console)) as viewer:
        viewer.update()


def test_one_who_never_agrees_is_sent_away(instance):
    with SerialViewer(connect(opened(instance, "vnc"))) as silent:
        assert silent.read_to_the_end() == b"RFB 003.008\n"


def test_the_size_is_the_screens_while_it_is_looked_at(instance):
    with VncViewer(connect(opened(instance, "vnc"))) as viewer:
        viewer.update(False)
        wait_for("the size", lambda: instance.sh("stty size < /dev/console").strip() == "24 80")
