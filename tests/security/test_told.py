"""What an instance is told of its neighbours and its host, and what the host's users are told of it.

A compiled program (probe_told.c) reads all of /proc and /sys from inside, and tries to see more.
"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest
from harness.program import compiled, injected
from harness.service import wait_for

pytestmark = pytest.mark.each_runtime

USERS = ["root", "1000"]
MARKER = "s3cret-of-a-tenant"


@pytest.fixture(scope="module")
def told_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that looks."""
    return compiled(Path(__file__).with_name("probe_told.c"), tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def machine(service, busybox, told_file):
    """An instance with the program in it."""
    files = [injected(told_file, "/bin/told")]
    flavor = {"vcpus": 1, "memory_mb": 96, "root_gb": 1, "ephemeral_gb": 1}
    instance = service.spawn(busybox, files=files, flavor=flavor, environment={"TENANTS": MARKER})
    instance.wait_console("is up")
    yield instance
    instance.discard()


def disks_of(instance) -> list[str]:
    """The host's names of its disks."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [file.parent.parent.name for file in files if instance.id in file.read_text()]


def told(instance, user: str, *arguments: str) -> list[str]:
    """What the program says inside, as one of its users; it has to get to its end."""
    result = instance.service.run_berth("exec", "--user", user, instance.id, "--", "/bin/told", *arguments)
    *lines, end = result.stdout.splitlines()
    assert end.startswith("done: ") and int(end.split()[1]) > 20, result.stdout + result.stderr
    return lines


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("root", ["/proc", "/sys"])
def test_nothing_is_told_of_others(machine, neighbour, user, root):
    of_neighbour, own = disks_of(neighbour), disks_of(machine)
    # What is not there to be told proves nothing.
    assert of_neighbour and own
    # What its own disks are called is no news of the host's, on a host that calls its so.
    own += ["vda", "vdb"]
    disks = [disk.name for disk in Path("/sys/block").iterdir() if disk.name not in own]
    assert set(of_neighbour) <= set(disks)
    words = [neighbour.id, neighbour.id.split("-")[0], str(machine.service.base)]
    assert told(machine, user, "find", root, *words, *(f"={disk}" for disk in disks)) == []


def test_the_program_finds_what_is_there(machine):
    """Its own disk in the table of its mounts, by its name and by a part of it."""
    lines = told(machine, "root", "find", "/proc", "=dev/vdb")
    assert any(line.endswith("/mounts: =dev/vdb") for line in lines)
    assert told(machine, "root", "find", "/proc", "=dev/vd") == []


@pytest.mark.parametrize("user", USERS)
def test_what_is_hidden_stays_hidden(machine, user):
    lines = told(machine, user, "uncover")
    assert not [line for line in lines if line.startswith("POSSIBLE")]
    assert [line for line in lines if line.startswith("tried: own users")], lines


def test_a_flavor_lets_root_mount_proc_and_sysfs(service, busybox, told_file):
    """As container engines do; it is hidden until then, and from users that make namespaces."""
    flavor = {"vcpus": 1, "memory_mb": 96, "root_gb": 1, "extra_specs": {"berth:fresh_proc": "true"}}
    instance = service.spawn(busybox, files=[injected(told_file, "/bin/told")], flavor=flavor)
    try:
        instance.wait_console("is up")
        assert instance.sh("ls /sys/block; cat /proc/cmdline").split() == ["vda", "init=/sbin/init"]
        assert not [line for line in told(instance, "1000", "uncover") if line.startswith("POSSIBLE")]
        lines = told(instance, "root", "uncover")
        # sysfs only read-only, as that which is there, where the runtime program has locked that.
        assert "POSSIBLE: here: mounting proc" in lines
        assert any(line.startswith("POSSIBLE: here: mounting sysfs") for line in lines)
    finally:
        instance.discard()


def test_an_application_is_told_no_more(service, application, neighbour, told_file):
    instance = service.spawn(application, files=[injected(told_file, "/bin/told")], command=["sleep", "600"])
    try:
        words = [neighbour.id, str(service.base), *(f"={disk}" for disk in disks_of(neighbour))]
        for root in ("/proc", "/sys"):
            assert told(instance, "0", "find", root, *words) == []
    finally:
        instance.discard()


def test_the_command_line_is_its_own(machine):
    host = Path("/proc/cmdline").read_text().strip()
    assert machine.sh("cat /proc/cmdline") == "init=/sbin/init" != host


def boot_id(instance) -> str:
    return str(uuid.UUID(instance.sh("cat /proc/sys/kernel/random/boot_id")))


def test_each_boot_has_an_id_of_its_own(spawn):
    instance = spawn()
    seen = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), boot_id(instance)]
    assert seen[1] == boot_id(instance)
    instance.action("reboot", type="HARD")
    seen.append(boot_id(instance))
    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    seen.append(boot_id(instance))
    assert len(set(seen)) == len(seen)
    one, other = (instance.sh("cat /proc/sys/kernel/random/uuid") for _ in range(2))
    assert one != other


# Reads all that it may of each process, until its input ends.
LOOK = """
import glob, select, sys
marker = sys.argv[1].encode()[::-1]
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            if marker in open(path, "rb").read(): print("TOLD:", path, flush=True)
        except OSError: pass
print("looked")
"""


def test_no_user_of_the_host_sees_a_tenants_environment(machine):
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command = [*nobody, "/usr/bin/python3", "-c", LOOK, MARKER[::-1]]
    looking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for tty in ([], ["--tty"]):
            arguments = ["exec", *tty, machine.id, "--", "/bin/sh", "-c", "sleep 1; echo $TENANTS"]
            assert MARKER in machine.service.run_berth(*arguments).stdout
        # It does find what is there to be seen.
        sleep = "import time; time.sleep(1.5)"  # A shell's child is a second shell for a moment.
        there = subprocess.Popen([*nobody, "/usr/bin/python3", "-c", sleep, MARKER])
        there.wait()
    finally:
        output, _ = looking.communicate("\n", timeout=30)
    lines = output.splitlines()
    assert lines.pop() == "looked"
    assert lines and set(lines) == {f"TOLD: /proc/{there.pid}/cmdline"}, output


def test_a_command_inside_gets_nothing_of_the_hosts(machine):
    """Its descriptors are those three; what told the runtime program of it is closed."""
    assert machine.sh("ls /proc/$$/fd; true").split() == ["0", "1", "2"]
