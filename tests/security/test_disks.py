"""The nodes of an instance's disks: they are for reading, and there are no others'.

The kernel that has a disk's file system mounted trusts its blocks. A compiled program
(probe_disks.c) tries from inside to write to them, and to get at a neighbour's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.program import compiled, injected

pytestmark = pytest.mark.each_runtime

FLAVOR = {"vcpus": 1, "memory_mb": 96, "root_gb": 1, "ephemeral_gb": 1}
#: What one who may only read can do with a disk.
READING = {"read", "read after it was cleared"}


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(Path(__file__).with_name("probe_disks.c"), tmp_path_factory.mktemp("disks"))


@pytest.fixture(scope="module")
def machine(service, busybox, probe):
    instance = service.spawn(busybox, files=[injected(probe, "/bin/probe")], flavor=FLAVOR)
    instance.wait_console("is up")
    yield instance
    instance.discard()


@pytest.fixture
def spare(tmp_path: Path) -> Iterator[str]:
    """A loop device of the host's, on which everything may be tried."""
    file = tmp_path / "spare"
    file.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True)
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=False)


def possible(said: str) -> set[str]:
    """What a run of the program, which must get to its end, could do."""
    *lines, end = said.splitlines()
    assert end == "done" and len(lines) >= 4, said
    return {line.removeprefix("POSSIBLE: ") for line in lines if line.startswith("POSSIBLE: ")}


def test_the_program_can_do_what_it_tries(probe, spare):
    """On the host, whose root may write: else its refusals would prove nothing."""
    numbers = os.stat(spare).st_rdev
    command = [probe, spare, str(os.major(numbers)), str(os.minor(numbers))]
    unshared = ["unshare", "--mount", "--propagation", "private"]
    done = possible(subprocess.run([*unshared, *command], capture_output=True, text=True, check=True).stdout)
    # Not to read it after it was cleared: nobody else used it.
    assert {"read", "write", "open to write", "write by proc's link"} <= done, done
    assert {"make a node in /tmp", "open what was made"} <= done, done


@pytest.mark.parametrize("disk", ["vda", "vdb"])
def test_its_own_disks_can_only_be_read(machine, disk):
    assert possible(machine.sh(f"/bin/probe /dev/{disk}")) == READING
    machine.sh("echo still > /root/there; echo still > /mnt/there; sync")
    assert machine.sh("cat /root/there /mnt/there").split() == ["still", "still"]


def test_a_neighbours_disk_cannot_be_had(machine, neighbour):
    number = int(neighbour.sh("cat /sys/block/vda/dev").split(":")[1])
    done = possible(machine.sh(f"/bin/probe /dev/vda 7 {number}"))
    assert done == READING
    # With a node that the host itself has made, the cgroup of devices stands alone before it.
    node = machine.service.run_dir / "i" / machine.id / "dev" / "foreign"
    os.mknod(node, 0o666 | 0o060000, os.makedev(7, number))
    os.chmod(node, 0o666)
    try:
        assert machine.sh("test -b /dev/foreign && echo there") == "there"
        assert possible(machine.sh("/bin/probe /dev/foreign")) == set()
    finally:
        node.unlink()


def test_a_disk_that_the_host_adds_is_there_at_once(machine):
    """What hot plug stands on: a node is no mount, and opens if the cgroup of devices lets it."""
    dev = machine.service.run_dir / "i" / machine.id / "dev"
    before = machine.sh("cat /proc/self/mountinfo | wc -l")
    like = os.stat(dev / "vda")
    os.mknod(dev / "vdz", like.st_mode, like.st_rdev)
    os.chown(dev / "vdz", like.st_uid, like.st_gid)
    try:
        said = machine.sh("head -c 4096 /dev/vdz | wc -c; cat /proc/self/mountinfo | wc -l")
        assert said.split() == ["4096", before]
    finally:
        (dev / "vdz").unlink()


def test_no_program_runs_from_dev(machine):
    machine.sh("cp /bin/busybox /dev/program; chmod 4755 /dev/program")
    try:
        refused = machine.run("/bin/sh", "-c", "/dev/program true")
        assert refused.returncode != 0 and "ermission denied" in refused.stderr
    finally:
        machine.sh("rm /dev/program")
