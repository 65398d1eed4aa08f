"""A guest that lets the service wait keeps nobody else waiting, and the service not for ever.

The service here does one piece of work on the host at a time. Each test asks it for something
that a guest holds up, then has everything done to another instance, and looks whether the first is
still under way: so it is by their order, not by a clock, that nobody waited.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Fault, wait_for
from harness.program import compiled, injected
from harness.service import BERTH

ASYNC = {"Prefer": "respond-async"}
HANG = "#!/bin/sh\necho > /hangs\nexec sleep 7171\n"
#: Guests that hang at once: more than the service has slots.
HANGING = 3
#: A first process that hears that it shall end, and does not.
DEAF = ["/bin/sh", "-c", "trap : TERM INT HUP; echo is up; while :; do sleep 1; done"]


@pytest.fixture(scope="module")
def settings():
    """One slot."""
    return {"service": {"concurrency": 1}}


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The program that holds a write up, as a file of an instance."""
    program = compiled(Path(__file__).with_name("probe_wait.c"), tmp_path_factory.mktemp("probe"))
    return injected(program, "/bin/probe")


def begin(instance, verb: str, body: dict) -> str:
    """Asks for it and does not wait: the operation's path."""
    answer = instance.service.client.post(f"{instance.path}/{verb}", body, headers=ASYNC)
    assert answer.status == 202
    return answer.headers["Location"]


def status(service, operation: str) -> str:
    return service.client.get(operation)["status"]


def ended(service, operation: str) -> dict:
    """How it ended, which it does by itself."""
    wait_for("the operation to end", lambda: status(service, operation) in ("succeeded", "failed"), 90)
    return service.client.get(operation)


@contextlib.contextmanager
def nobody_waits(service, busybox, operations: list[str]) -> Iterator[None]:
    """Everything is done to another instance, and a new one made, while these are under way."""
    other = service.spawn(busybox, vifs=[service.vif()])
    try:
        other.wait_console("is up")
        other.action("reboot", type="HARD")
        other.action("pause")
        other.action("unpause")
        other.action("quiesce")
        other.action("unquiesce")
        other.action("stop", timeout=0)
        other.action("start")
    finally:
        other.discard()
    assert [status(service, operation) for operation in operations] == ["running"] * len(operations)
    yield


def test_passwords_that_are_not_set(service, busybox, spawn):
    guests = [spawn() for _ in range(HANGING)]
    for guest in guests:
        script = base64.b64encode(HANG.encode()).decode()
        guest.sh(
            "path=$(which chpasswd || which passwd); rm -f $path;"
            f" echo {script} | base64 -d > $path && chmod 755 $path"
        )
    operations = [begin(g, "password", {"user": "root", "password": "x"}) for g in guests]
    for guest in guests:
        wait_for("the program to hang", lambda guest=guest: guest.run("test", "-e", "/hangs").returncode == 0)
    with nobody_waits(service, busybox, operations):
        for operation in operations:
            assert ended(service, operation)["fault"]["code"] == "timeout"


@pytest.mark.parametrize("verb,body", [("stop", {}), ("reboot", {"type": "SOFT"})], ids=["stop", "reboot"])
def test_guests_that_do_not_go_down(service, busybox, spawn, verb, body):
    guests = [spawn(command=DEAF) for _ in range(HANGING)]
    for guest in guests:
        guest.wait_console("is up")
    operations = [begin(guest, verb, body | {"timeout": 25}) for guest in guests]
    with nobody_waits(service, busybox, operations):
        for operation in operations:
            assert ended(service, operation)["status"] == "succeeded"
    assert {guest.state for guest in guests} == {"SHUTDOWN" if verb == "stop" else "RUNNING"}


def test_commands_that_do_not_end(service, busybox, spawn):
    guest = spawn()
    command = [BERTH, "exec", "--socket", service.socket, guest.id, "--", "/bin/sh", "-c", "echo; sleep 7172"]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(HANGING)]
    try:
        for program in programs:
            assert program.stdout.readline() == b"\n"
        with nobody_waits(service, busybox, []):
            assert [program.poll() for program in programs] == [None] * HANGING
    finally:
        for program in programs:
            program.kill()
            program.communicate()


@pytest.mark.parametrize("verb", ["quiesce", "snapshot"])
def test_disks_that_do_not_come_to_rest(service, busybox, spawn, holder, glance, verb):
    guest = spawn(files=[holder])
    guest.sh("(/bin/probe /held > /said 2>&1 & echo $! > /pid) < /dev/null > /dev/null 2>&1")
    wait_for("the write to begin", lambda: "waiting" in guest.sh("cat /said"))
    body = glance.to("7d5bb8c8-6d6d-4f0c-9a5c-000000000001") if verb == "snapshot" else {}
    operation = begin(guest, verb, body)
    # It has begun when writers wait, which the write under way is no part of.
    guest.sh("(echo > /late; echo > /written) < /dev/null > /dev/null 2>&1 &")
    with nobody_waits(service, busybox, [operation]):
        fault = ended(service, operation)["fault"]
        assert fault["code"] == "timeout" and "disks did not come to rest" in fault["detail"]
    assert (guest.state, guest.get()["quiesced"]) == ("RUNNING", False)
    # A second comes too early, and says so; it takes nothing for frozen that is not.
    with pytest.raises(Fault) as again:
        guest.action("quiesce")
    assert "goes on still" in again.value.detail or again.value.code == "timeout"
    # The service ends and starts all the same.
    service.stop()
    service.start()
    assert guest.state == "RUNNING"
    # Once it is over nothing stays frozen, and the disks come to rest as ever.
    guest.sh("kill $(cat /pid)")
    wait_for("writers to go on", lambda: guest.run("test", "-e", "/written").returncode == 0)
    guest.sh("echo > /again", timeout=20)
    guest.action("quiesce")
    guest.action("unquiesce")


def test_a_stop_ends_what_holds_a_disk_up(service, busybox, spawn, holder):
    guest = spawn(files=[holder])
    guest.sh("(/bin/probe /held > /said 2>&1 & echo $! > /pid) < /dev/null > /dev/null 2>&1")
    wait_for("the write to begin", lambda: "waiting" in guest.sh("cat /said"))
    operation = begin(guest, "quiesce", {})
    with nobody_waits(service, busybox, [operation]):
        pass
    guest.action("stop", timeout=0)
    assert ended(service, operation)["status"] == "failed"
    guest.action("start")
    guest.sh("echo > /again", timeout=20)
