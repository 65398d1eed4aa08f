"""FUSE and TUN devices in an instance: what they give is the instance's, and nothing waits for it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Fault, wait_for
from harness.program import compiled, injected

FLAVOR = {"vcpus": 1, "memory_mb": 96, "root_gb": 1}
TUN = {**FLAVOR, "extra_specs": {"berth:tun": "true"}}


@pytest.fixture(scope="module")
def program(program, tmp_path_factory) -> Path:
    return compiled(Path(__file__).with_name("probe_fuse.c"), tmp_path_factory.mktemp("probe"))


@pytest.fixture
def guest(spawn, program):
    instance = spawn(flavor=FLAVOR, files=[injected(program, "/bin/probe")])
    instance.wait_console("is up")
    return instance


def served(instance, how: str, point: str) -> None:
    """Has a program inside serve a file system there."""
    instance.sh(f"mkdir -p {point}; : > /ready; /bin/probe serve {how} {point} > /ready 2>&1 &")
    wait_for("the file system", lambda: instance.sh("cat /ready") == "ready")


def waits(instance) -> None:
    """Has a program inside wait for it, which has no end."""
    instance.sh("cat /srv/file > /dev/null 2>&1 &")
    wait_for("somebody to wait", lambda: "request_wait_answer" in places(instance))


def places(instance) -> str:
    """Where in the kernel the instance's threads wait."""
    found = []
    for pid in instance.pids():
        for thread in Path(f"/proc/{pid}/task").glob("*/wchan"):
            with contextlib.suppress(OSError):
                found.append(thread.read_text())
    return " ".join(found)


@contextlib.contextmanager
def connections() -> Iterator[Path]:
    """The host's list of FUSE connections."""
    point = Path("/sys/fs/fuse/connections")
    mounted = not any(point.iterdir())
    if mounted:
        subprocess.run(["mount", "-t", "fusectl", "fusectl", point], check=True)
    try:
        yield point
    finally:
        if mounted:
            subprocess.run(["umount", point], check=True)


def block(instance) -> range:
    """The host's ids that are the instance's."""
    _, first, size = map(int, Path(f"/proc/{instance.pids()[0]}/uid_map").read_text().split())
    return range(first, first + size)


def connected(ids: range) -> int:
    """How many of them are of the instance with these ids."""
    with connections() as point:
        return sum(entry.stat().st_uid in ids for entry in point.iterdir())


@pytest.mark.each_runtime
def test_a_flavor_says_which_there_are(spawn, program, service, application):
    probe = injected(program, "/bin/probe")
    usual = spawn(flavor=FLAVOR, files=[probe])
    other = spawn(flavor={**TUN, "extra_specs": {"berth:tun": "true", "berth:fuse": "false"}}, files=[probe])
    for instance, fuse, tun in ((usual, True, False), (other, False, True)):
        instance.wait_console("is up")
        for path, there in (("/dev/fuse", fuse), ("/dev/net/tun", tun)):
            assert (instance.run("ls", path).returncode == 0) is there, path
            # Who has the node of another mount still does not open it.
            assert instance.sh(f"/bin/probe open {path} || true").startswith("POSSIBLE") is there, path
        assert instance.run("/bin/probe", "open", "/dev/null").stdout.startswith("POSSIBLE")
    assert usual.sh("stat -c '%F %a %u:%g %t:%T' /dev/fuse") == "character special file 666 0:0 a:e5"
    assert other.sh("stat -c '%F %a %u:%g %t:%T' /dev/net/tun") == "character special file 666 0:0 a:c8"
    alone = service.spawn(application, command=["sleep", "600"], flavor=TUN)
    try:
        assert alone.sh("ls /dev | grep -e fuse -e net || true") == ""
    finally:
        alone.discard()


def test_what_a_server_says_opens_no_device(guest):
    served(guest, "disk", "/srv")
    assert guest.sh("stat -c '%F %t:%T' /srv/file") == "block special file 7:0"
    assert guest.run("/bin/probe", "open", "/srv/file").stdout.startswith("refused")
    assert guest.run("/bin/probe", "fuseblk", "/dev/vda", "/mnt").stdout.startswith("refused")


def test_the_host_neither_waits_for_nor_believes_a_server(guest, service):
    served(guest, "open", "/srv")
    waits(guest)
    with pytest.raises(PermissionError):
        list(Path(f"/proc/{guest.pids()[0]}/root/srv").iterdir())
    # In the places of what the service leaves and looks at inside.
    for point in ("/run", "/etc", "/dev/pts", "/tmp"):
        served(guest, "open", point)
    assert guest.stats()["memory"]
    guest.action("quiesce")
    guest.action("unquiesce")
    assert "is up" in guest.console()
    with pytest.raises(Fault, match="did not freeze"):
        guest.action("pause")
    assert guest.state == "RUNNING"
    assert guest.run("true").returncode == 0
    guest.action("stop", timeout=3)
    guest.action("start")
    guest.wait_state("RUNNING")


@pytest.mark.parametrize(
    "verb,body", [("stop", {"timeout": 1}), ("reboot", {"type": "HARD"}), ("delete", None)]
)
def test_a_server_that_waits_for_itself_ends_with_its_instance(guest, verb, body):
    served(guest, "self", "/srv")
    wait_for("the server to wait", lambda: "request_wait_answer" in places(guest))
    ids = block(guest)
    assert connected(ids) == 1
    if verb == "delete":
        guest.delete()
    else:
        guest.action(verb, **body)
    assert connected(ids) == 0
    if verb == "reboot":
        guest.wait_console("is up")


def test_a_connection_of_another_instance_stays(guest, spawn, program):
    other = spawn(flavor=FLAVOR, files=[injected(program, "/bin/probe")])
    other.wait_console("is up")
    served(other, "all", "/srv")
    served(guest, "self", "/srv")
    wait_for("the server to wait", lambda: "request_wait_answer" in places(guest))
    guest.action("stop", timeout=1)
    assert connected(block(other)) == 1 and other.sh("ls -d /srv/file") == "/srv/file"


def test_an_interface_is_the_instances_own(spawn, program, service):
    probe = injected(program, "/bin/probe")
    first = spawn(flavor=TUN, vifs=[service.vif()], files=[probe])
    second = spawn(flavor=TUN, files=[probe])
    second.wait_console("is up")
    for instance in (first, second):
        instance.sh("/bin/probe tun tun7 > /said 2>&1 &")
        wait_for("the interface", lambda instance=instance: instance.sh("cat /said") == "has tun7")
    assert not Path("/sys/class/net/tun7").exists()
    # One of the host's, that is there for whoever may take it.
    host = ["ip", "tuntap", "{}", "dev", "berthtun0", "mode", "tun", "user", "0"]
    subprocess.run([word.format("add") for word in host], check=True)
    try:
        taken = first.sh("/bin/probe tun berthtun0 > /said 2>&1 & sleep 1; cat /said; ls /sys/class/net")
        assert "has berthtun0" in taken and "berthtun0" in taken.split("\n", 1)[1]
        # Which is one of its own by that name: the host's has no reader.
        assert (
            "NO-CARRIER"
            in subprocess.run(
                ["sh", "-c", "ip link set berthtun0 up; ip link show berthtun0"],
                capture_output=True,
                text=True,
            ).stdout
        )
    finally:
        subprocess.run([word.format("del") for word in host[:-2]], check=True)
    # An interface that has another kind's name is not taken over.
    assert first.run("/bin/probe", "tun", "eth0").stdout.startswith("refused")
    first.action("stop")
    first.action("start")
    assert "tun7" not in first.sh("ls /sys/class/net")
