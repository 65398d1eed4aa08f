"""Volumes end with their detach, and are nobody else's: a compiled program (probe_volumes.c) tries."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Fault
from harness.program import compiled, injected
from harness.service import wait_for

pytestmark = pytest.mark.each_runtime

FLAVOR = {"vcpus": 1, "memory_mb": 96, "root_gb": 1}
SIZE = 8 << 20


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(Path(__file__).with_name("probe_volumes.c"), tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def machine(service, busybox, probe):
    instance = service.spawn(busybox, files=[injected(probe, "/bin/probe")], flavor=FLAVOR)
    instance.wait_console("is up")
    yield instance
    instance.discard()


@pytest.fixture
def source(service) -> Iterator[Path]:
    """A file that becomes a volume."""
    directory = service.base / "volume"
    directory.mkdir()
    path = directory / "blocks"
    path.write_bytes(bytes(SIZE))
    yield path
    for loop in loops_of(path):
        subprocess.run(["losetup", "-d", loop], check=False)
    shutil.rmtree(directory)


@pytest.fixture
def volume(machine, source) -> Iterator[str]:
    """Path of the file's volume, attached as vdb."""
    path = f"{machine.path}/volumes/{uuid.uuid4()}"
    machine.service.client.put(path, {"source": {"file": {"path": str(source)}}})
    yield path
    machine.sh("touch /root/sign")
    try:
        machine.service.client.delete(f"{path}?force=true")
    except Fault as fault:
        assert fault.code == "volume-not-found"


def loops_of(path: Path) -> list[str]:
    said = subprocess.run(["losetup", "-j", path], capture_output=True, text=True, check=True).stdout
    return [line.split(":")[0] for line in said.splitlines()]


def hold(machine, how: str) -> None:
    """Has the program hold vdb, in the background."""
    machine.sh("rm -f /root/sign /root/said")
    machine.sh(f"/bin/probe hold /dev/vdb {how} /root/sign > /root/said 2>&1 < /dev/null & true")
    wait_for("the volume to be held", lambda: "holding" in machine.sh("cat /root/said"))


def attempts(machine) -> tuple[set[str], str]:
    """What the program can do, and all that it said, when it is told to try."""
    machine.sh("touch /root/sign")
    said = wait_for("the program to try", lambda: (s := machine.sh("cat /root/said")).endswith("done") and s)
    lines = [line for line in said.splitlines() if line.startswith("POSSIBLE: ")]
    return {line.removeprefix("POSSIBLE: ") for line in lines}, said


def refused_as_busy(machine, volume: str) -> str:
    with pytest.raises(Fault) as refused:
        machine.service.client.delete(volume)
    assert refused.value.code == "volume-busy"
    return refused.value.detail


def test_the_program_can_do_what_it_tries(machine, volume, source):
    """While the volume is attached: else its refusals would prove nothing."""
    hold(machine, "sent")
    done, said = attempts(machine)
    usual = {"write", "read", "open it again", "write directly", "discard", "write zeroes", "learn its size"}
    assert usual <= done and "write after that" in done, said
    assert not {"set its status", "set its capacity", "make its node"} & done, said
    assert source.read_bytes()[:1] == b"X"


def test_a_hidden_descriptor_is_noticed_and_ends_with_the_detach(machine, volume, source):
    hold(machine, "sent")
    assert "no process inside shows" in refused_as_busy(machine, volume)
    # It is as it was.
    machine.sh("printf kept | dd of=/dev/vdb bs=512 conv=sync,notrunc,fsync 2>/dev/null")
    machine.service.client.delete(f"{volume}?force=true")
    before = source.read_bytes()
    assert before[:4] == b"kept"
    done, said = attempts(machine)
    assert done == set(), said
    assert source.read_bytes() == before
    wait_for("the device to be free", lambda: loops_of(source) == [])


def test_a_descriptor_of_a_thread_of_a_process_without_its_first_is_found(machine, volume, source):
    hold(machine, "thread")
    assert "probe (pid " in refused_as_busy(machine, volume)
    before = source.read_bytes()
    machine.service.client.delete(f"{volume}?force=true")
    assert loops_of(source) == []
    assert machine.sh("touch /root/sign; sleep 0.3; cat /root/said") == "holding", "it is killed"
    assert source.read_bytes() == before


def test_a_mapping_is_found_and_ends_with_the_detach(machine, volume, source):
    hold(machine, "mapped")
    assert "probe (pid " in refused_as_busy(machine, volume)
    machine.service.client.delete(f"{volume}?force=true")
    assert loops_of(source) == [] and source.read_bytes() == bytes(SIZE)
    assert machine.sh("cat /root/said") == "holding", "it is killed"


def test_its_device_is_asked_for_nothing_but_blocks(machine, volume, source):
    said = machine.sh("/bin/probe ask /dev/vdb")
    *lines, end = said.splitlines()
    assert end == "done" and len(lines) >= 14, said
    assert [line for line in lines if line.startswith("POSSIBLE")] == ["POSSIBLE: write"], said
    of_loops = [line for line in lines if line.endswith(": ENOTTY")]
    assert len(of_loops) == 10, said
    # It still is what it was.
    assert loops_of(source) and machine.sh("head -c 1 /dev/vdb") == "x"


def test_another_instances_volume_cannot_be_had(machine, volume, neighbour):
    number = int(machine.sh("cat /sys/block/vdb/dev").split(":")[1])
    node = neighbour.service.run_dir / "i" / neighbour.id / "dev" / "foreign"
    os.mknod(node, 0o666 | 0o060000, os.makedev(7, number))
    os.chmod(node, 0o666)
    try:
        assert neighbour.sh("test -b /dev/foreign && echo there") == "there"
        for mode in ("<", "<>", ">"):
            tried = neighbour.run("/bin/sh", "-c", f": {mode} /dev/foreign")
            assert tried.returncode and "not permitted" in tried.stderr, mode
    finally:
        node.unlink()
    for place in ("/dev", "/tmp", "/dev/shm"):
        made = neighbour.run("/bin/mknod", f"{place}/made", "b", "7", str(number))
        assert made.returncode and "not permitted" in made.stderr, place
    for table in ("/proc/partitions", "/proc/diskstats"):
        assert f" {number} " not in neighbour.sh(f"cat {table}")


def test_its_number_is_of_no_use_after_the_detach(machine, volume, source):
    """Devices' numbers are given again, to another instance's disk perhaps."""
    number = int(machine.sh("cat /sys/block/vdb/dev").split(":")[1])
    machine.sh("ln /dev/vdb /dev/kept; mkdir -p /dev/shm/x; cp -a /dev/vdb /dev/copy 2>/dev/null; true")
    machine.service.client.delete(volume)
    assert machine.sh("test -b /dev/kept && echo there") == "there"
    tried = machine.run("/bin/sh", "-c", ": < /dev/kept")
    assert tried.returncode and "not permitted" in tried.stderr
    node = machine.service.run_dir / "i" / machine.id / "dev" / "again"
    os.mknod(node, 0o666 | 0o060000, os.makedev(7, number))
    try:
        tried = machine.run("/bin/sh", "-c", ": < /dev/again")
        assert tried.returncode and "not permitted" in tried.stderr
    finally:
        node.unlink()
        machine.sh("rm -f /dev/kept /dev/copy")


def test_a_read_only_volume_cannot_be_written(machine, source):
    path = f"{machine.path}/volumes/{uuid.uuid4()}"
    body = {"source": {"file": {"path": str(source)}}, "read_only": True}
    machine.service.client.put(path, body)
    try:
        for mode in ("<>", ">"):
            tried = machine.run("/bin/sh", "-c", f": {mode} /dev/vdb")
            assert tried.returncode and "not permitted" in tried.stderr, mode
        assert machine.sh("head -c 512 /dev/vdb | wc -c") == "512"
    finally:
        machine.service.client.delete(path)
    assert source.read_bytes() == bytes(SIZE)
