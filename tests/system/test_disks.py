"""An instance's disks, as programs inside find them: named, sized and listed as a machine's."""

from __future__ import annotations

import json
import re

import pytest
from harness.service import wait_for

FLAVOR = {"vcpus": 1, "memory_mb": 96, "root_gb": 2, "ephemeral_gb": 1}
GIB = 1 << 30


@pytest.fixture(scope="module")
def machine(service, busybox):
    instance = service.spawn(busybox, flavor=FLAVOR)
    instance.wait_console("is up")
    yield instance
    instance.discard()


def partitions(instance) -> dict[str, int]:
    """Names and bytes in the kernel's table."""
    _, _, *lines = instance.sh("cat /proc/partitions").splitlines()
    rows = [line.split() for line in lines]
    return {name: int(blocks) * 1024 for _, _, blocks, name in rows}


def sources(instance) -> dict[str, str]:
    """Where what is mounted comes from, as the table of mounts says it."""
    rows = [line.split() for line in instance.sh("cat /proc/mounts").splitlines()]
    return {place: source for source, place, *_ in rows}


@pytest.mark.each_runtime
def test_the_kernels_tables_have_its_disks_and_no_others(machine):
    assert partitions(machine) == {"vda": 2 * GIB, "vdb": GIB}
    counted = [line.split() for line in machine.sh("cat /proc/diskstats").splitlines()]
    assert [row[2] for row in counted] == ["vda", "vdb"] and {len(row) for row in counted} == {20}
    numbers = [f"{major}:{minor}" for major, minor, *_ in counted]
    for place, expected in (
        ("/sys/block", ["vda", "vdb"]),
        ("/sys/class/block", ["vda", "vdb"]),
        ("/sys/dev/block", sorted(numbers)),
        ("/sys/devices/virtual/block", ["vda", "vdb"]),
    ):
        assert machine.sh(f"ls {place}").split() == expected, place
    for disk, number, size in zip(("vda", "vdb"), numbers, (2 * GIB, GIB), strict=True):
        for dir in (f"/sys/block/{disk}", f"/sys/class/block/{disk}", f"/sys/dev/block/{number}"):
            values = machine.sh(f"cd {dir} && cat dev size ro removable queue/logical_block_size").split()
            assert values == [number, str(size // 512), "0", "0", "512"], dir
        events = dict(line.split("=") for line in machine.sh(f"cat /sys/block/{disk}/uevent").splitlines())
        major, minor = number.split(":")
        assert events == {"MAJOR": major, "MINOR": minor, "DEVNAME": disk, "DEVTYPE": "disk"}
        assert machine.sh(f"stat -c '%F %a %u:%g' /dev/{disk}") == "block special file 660 0:6"
        node = machine.sh(f"stat -c '%t %T' /dev/{disk}").split()
        assert [str(int(part, 16)) for part in node] == [major, minor]
        # The host's device counts on from an earlier instance's.
        assert set(machine.sh(f"cat /sys/block/{disk}/stat").split()) == {"0"}


@pytest.mark.each_runtime
def test_each_has_a_serial_number_that_finds_it(machine):
    serials = machine.sh("for disk in vda vdb; do cat /sys/block/$disk/serial; echo; done").split()
    plain = machine.id.replace("-", "")
    assert serials == [f"root-{plain}"[:20], f"ephemeral0-{plain}"[:20]]
    links = machine.sh("cd /dev/disk/by-id; for name in *; do echo $name $(readlink -f $name); done")
    found = dict(line.split() for line in links.splitlines())
    assert found == {f"virtio-{serials[0]}": "/dev/vda", f"virtio-{serials[1]}": "/dev/vdb"}


@pytest.mark.each_runtime
def test_what_is_mounted_comes_from_them(machine):
    found = sources(machine)
    assert (found["/"], found["/mnt"]) == ("/dev/vda", "/dev/vdb")
    for place, disk, size in (("/", "/dev/vda", 2 * GIB), ("/mnt", "/dev/vdb", GIB)):
        source, blocks, *_ = machine.sh(f"df -k {place} | tail -n 1").split()
        # A file system is somewhat smaller than its disk.
        assert source == disk and 0.9 * size <= int(blocks) * 1024 < size
    listed = re.findall(r"^Disk (/dev/\w+): .* (\d+) bytes", machine.sh("fdisk -l 2>/dev/null"), re.MULTILINE)
    assert listed == [("/dev/vda", str(2 * GIB)), ("/dev/vdb", str(GIB))]


@pytest.mark.each_runtime
def test_dev_has_what_it_always_had(machine, service, application):
    names = "null zero full random urandom tty console ptmx pts shm mqueue fd stdin stdout stderr core"
    other = service.spawn(application, command=["sleep", "600"], flavor=FLAVOR)
    try:
        for instance in (machine, other):
            assert set(names.split()) <= set(instance.sh("ls /dev").split())
            instance.sh("echo x > /dev/null; ! echo x > /dev/full")
            for name in ("zero", "urandom", "random", "vda"):
                assert instance.sh(f"head -c 16 /dev/{name} | wc -c") == "16"
            modes = instance.sh("stat -c '%a %u' /dev /dev/shm /dev/null").splitlines()
            assert modes == ["755 0", "1777 0", "666 0"]
            # All but nodes is its own to make.
            instance.sh("cd /dev; touch x; mkdir y; ln -s null z; rm x z; rmdir y")
            assert instance.sh("df -k /dev | tail -n 1").split()[1] == "65536"
    finally:
        other.discard()


@pytest.mark.each_runtime
def test_every_boot_has_a_new_dev(spawn):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    instance.sh("rm /dev/vdb /dev/full; echo left > /dev/left")
    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    look = "ls /dev/vda /dev/vdb /dev/full; ls /dev/left 2>/dev/null; true"
    assert instance.sh(look).split() == ["/dev/full", "/dev/vda", "/dev/vdb"]
    instance.action("stop")
    instance.action("start")
    assert instance.sh(look).split() == ["/dev/full", "/dev/vda", "/dev/vdb"]
    assert partitions(instance) == {"vda": 2 * GIB, "vdb": GIB}


def test_a_rescued_instance_boots_from_the_first_disk(spawn, busybox):
    instance = spawn(flavor=FLAVOR)
    instance.action("stop")
    instance.action("rescue", image_id=busybox)
    assert list(partitions(instance)) == ["vda", "vdb", "vdc"]
    found = sources(instance)
    assert (found["/"], found["/mnt/instance"], found["/mnt/ephemeral"]) == (
        "/dev/vda",
        "/dev/vdb",
        "/dev/vdc",
    )
    kinds = [link.split("-")[1] for link in instance.sh("ls /dev/disk/by-id").split()]
    assert sorted(kinds) == ["ephemeral0", "rescue", "root"]
    instance.action("unrescue")
    assert list(partitions(instance)) == ["vda", "vdb"]
    found = sources(instance)
    assert (found["/"], found["/mnt"]) == ("/dev/vda", "/dev/vdb")


def test_a_disk_that_has_grown_is_larger(spawn):
    instance = spawn(flavor=FLAVOR)
    instance.action("stop")
    instance.action("resize", flavor={**FLAVOR, "root_gb": 3})
    instance.action("start")
    assert partitions(instance) == {"vda": 3 * GIB, "vdb": GIB}
    assert instance.sh("cat /sys/block/vda/size") == str(3 * GIB // 512)


def test_util_linux_says_what_it_says_on_a_machine(spawn, debian):
    instance = spawn(image=debian, flavor={**FLAVOR, "memory_mb": 256})
    # As Tempest counts disks.
    header, *lines = instance.sh("lsblk -lb --nodeps").splitlines()
    at = header.index("TYPE")
    assert [line[at : at + 4] for line in lines] == ["disk", "disk"]
    columns = "NAME,SIZE,TYPE,MOUNTPOINT,FSTYPE,RO,LOG-SEC"
    found = json.loads(instance.sh(f"lsblk --json -b -o {columns}"))["blockdevices"]
    root, ephemeral = ([str(disk[name.lower()]) for name in columns.split(",")] for disk in found)
    assert root == ["vda", str(2 * GIB), "disk", "/", "ext4", "False", "512"]
    assert ephemeral == ["vdb", str(GIB), "disk", "/mnt", "ext4", "False", "512"]
    named = dict(re.findall(r'^(\S+): .*TYPE="(\w+)"', instance.sh("blkid"), re.MULTILINE))
    assert named == {"/dev/vda": "ext4", "/dev/vdb": "ext4"}
    assert instance.sh("findmnt -no SOURCE /; findmnt -no SOURCE /mnt").split() == ["/dev/vda", "/dev/vdb"]
    assert instance.sh("blockdev --getsize64 /dev/vda /dev/vdb").split() == [str(2 * GIB), str(GIB)]

    def state() -> str:
        """Empty while systemd does not yet listen."""
        return instance.run("systemctl", "is-system-running", "--wait").stdout.strip()

    # No unit waits for a device, and none has failed.
    failed = ("systemctl", "--failed", "--no-legend", "--plain")
    assert wait_for("systemd", state, 120) == "running", instance.run(*failed).stdout
