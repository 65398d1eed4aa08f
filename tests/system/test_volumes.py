"""Volumes: files and block devices of the host as further disks, attached, extended and detached."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Fault
from harness.service import wait_for

FLAVOR = {"vcpus": 1, "memory_mb": 96, "root_gb": 1}
MIB = 1 << 20


@pytest.fixture
def volumes(service) -> Iterator[Path]:
    """A directory for files that become volumes, beside the service's own."""
    directory = service.base / "volumes"
    directory.mkdir()
    yield directory
    service.delete_everything()
    left = {path.name: loops_of(path) for path in directory.iterdir() if path.is_file()}
    for loop in (loop for loops in left.values() for loop in loops):
        subprocess.run(["losetup", "-d", loop], check=False)
    shutil.rmtree(directory)
    assert not any(left.values()), left


def file(directory: Path, name: str = "volume", size: int = 64 * MIB) -> Path:
    path = directory / name
    with path.open("wb") as made:
        made.truncate(size)
    return path


@contextlib.contextmanager
def block_device(path: Path) -> Iterator[str]:
    """A block device that is the host's: a loop device of its own."""
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=True)
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def attach(instance, source: Path | str, **fields) -> dict:
    """Attaches a file, or a block device; gives the volume."""
    kind = "block" if Path(source).is_block_device() else "file"
    identity = fields.pop("id", None) or str(uuid.uuid4())
    body = {"source": {kind: {"path": str(source)}}, **fields}
    return instance.service.client.put(f"{instance.path}/volumes/{identity}", body).json()


def detach(instance, volume: dict, force: bool = False) -> None:
    query = "?force=true" if force else ""
    instance.service.client.delete(f"{instance.path}/volumes/{volume['id']}{query}")


def extend(instance, volume: dict) -> dict:
    return instance.service.client.post(f"{instance.path}/volumes/{volume['id']}/extend", {}).json()


def listed(instance) -> list[dict]:
    return instance.service.client.get(f"{instance.path}/volumes")["volumes"]


def loops_of(path: Path | str) -> list[str]:
    """The loop devices that have a file."""
    said = subprocess.run(["losetup", "-j", path], capture_output=True, text=True, check=True).stdout
    return [line.split(":")[0] for line in said.splitlines()]


def partitions(instance) -> dict[str, int]:
    """Names and bytes in the kernel's table."""
    _, _, *lines = instance.sh("cat /proc/partitions").splitlines()
    rows = [line.split() for line in lines]
    return {name: int(blocks) * 1024 for _, _, blocks, name in rows}


def write(instance, name: str, text: str) -> None:
    instance.sh(f"printf %s {text} | dd of=/dev/{name} bs=512 conv=sync,notrunc,fsync 2>/dev/null")


def assert_gone(instance, name: str, by_id: str) -> None:
    for place in (
        f"/dev/{name}",
        f"/dev/disk/by-id/{by_id}",
        f"/sys/block/{name}",
        f"/sys/class/block/{name}",
    ):
        assert instance.run("/bin/sh", "-c", f"test -e {place} || test -L {place}").returncode == 1, place
    assert name not in partitions(instance)
    assert f" {name} " not in instance.sh("cat /proc/diskstats")


@pytest.mark.each_runtime
def test_a_volume_comes_and_goes_while_the_instance_runs(spawn, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    path = file(volumes)
    mounts = instance.sh("cat /proc/self/mountinfo | wc -l")
    volume = attach(instance, path)
    try:
        assert (volume["device"], volume["bytes"], volume["status"]) == ("/dev/vdb", 64 * MIB, "attached")
        assert instance.sh("stat -c '%F %a %u:%g' /dev/vdb") == "block special file 660 0:6"
        by_id = f"virtio-{volume['id'][:20]}"
        assert instance.sh(f"readlink -f /dev/disk/by-id/{by_id}") == "/dev/vdb"
        assert partitions(instance)["vdb"] == 64 * MIB
        size = str(64 * MIB // 512)
        for dir in ("/sys/block/vdb", "/sys/class/block/vdb"):
            assert instance.sh(f"cat {dir}/size {dir}/ro {dir}/queue/logical_block_size").split() == [
                size,
                "0",
                "512",
            ]
        assert instance.sh("cat /sys/block/vdb/serial") == volume["id"][:20]
        number = instance.sh("cat /sys/block/vdb/dev")
        assert instance.sh(f"readlink -f /sys/dev/block/{number}").endswith("/block/vdb")
        node = [str(int(part, 16)) for part in instance.sh("stat -c '%t %T' /dev/vdb").split()]
        assert ":".join(node) == number
        # Hot plug is no mount, which the instance would keep.
        assert instance.sh("cat /proc/self/mountinfo | wc -l") == mounts
        write(instance, "vdb", "written")
        assert "/dev/vdb: 64 MB, 67108864 bytes" in instance.sh("fdisk -l /dev/vdb")
    finally:
        detach(instance, volume)
    assert_gone(instance, "vdb", by_id)
    assert instance.sh("cat /proc/self/mountinfo | wc -l") == mounts
    assert path.read_bytes()[:7] == b"written" and loops_of(path) == []
    assert listed(instance) == []
    with pytest.raises(Fault) as refused:
        detach(instance, volume)
    assert refused.value.code == "volume-not-found"


@pytest.mark.each_runtime
def test_it_is_there_after_every_kind_of_boot(spawn, service, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    attached = attach(instance, file(volumes, "running"))
    write(instance, "vdb", "kept")
    number = instance.sh("cat /sys/block/vdb/dev")

    def check(*more: str) -> None:
        assert list(partitions(instance)) == ["vda", "vdb", *more]
        assert instance.sh("head -c 4 /dev/vdb; ls /dev/vd*").split() == [
            "kept/dev/vda",
            "/dev/vdb",
            *(f"/dev/{name}" for name in more),
        ]
        write(instance, "vdb", "kept")

    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    check()
    assert instance.sh("cat /sys/block/vdb/dev") == number, "its device is not made anew"
    instance.action("reboot", type="HARD")
    check()
    for end in (service.stop, service.kill):
        end()
        service.start()
        check()
        assert instance.sh("cat /sys/block/vdb/dev"), "the instance has not noticed"
    instance.action("stop", timeout=0)
    assert loops_of(volumes / "running") == []
    # A device may have another name by the next start.
    (volumes / "running").rename(volumes / "renamed")
    body = {"source": {"file": {"path": str(volumes / "renamed")}}}
    moved = service.client.put(f"{instance.path}/volumes/{attached['id']}", body).json()
    assert moved == {**attached, **body}
    second = attach(instance, file(volumes, "stopped"))
    assert second["device"] == "/dev/vdc" and loops_of(volumes / "stopped") == []
    instance.action("start")
    check("vdc")
    # A boot from inside has what was attached and detached in the meantime.
    third = attach(instance, file(volumes, "third"))
    detach(instance, second)
    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    assert set(partitions(instance)) == {"vda", "vdb", "vdd"}
    write(instance, "vdd", "third")
    instance.action("stop", timeout=0)
    detach(instance, third)
    assert [volume["id"] for volume in listed(instance)] == [attached["id"]]
    instance.action("start")
    check()
    instance.delete()
    for name in ("renamed", "stopped", "third"):
        assert loops_of(volumes / name) == []
    assert (volumes / "renamed").read_bytes()[:4] == b"kept"


@pytest.mark.each_runtime
def test_it_grows_while_it_is_attached(spawn, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    path = file(volumes)
    volume = attach(instance, path)

    def sizes() -> list[int]:
        said = instance.sh("cat /sys/block/vdb/size; blockdev --getsize64 /dev/vdb").split()
        return [int(said[0]) * 512, int(said[1]), partitions(instance)["vdb"]]

    os.truncate(path, 128 * MIB)
    assert extend(instance, volume)["bytes"] == 128 * MIB
    assert sizes() == [128 * MIB] * 3
    os.truncate(path, 96 * MIB)
    with pytest.raises(Fault) as refused:
        extend(instance, volume)
    assert refused.value.code == "instance-invalid-state" and "only grows" in refused.value.detail
    os.truncate(path, 192 * MIB)
    instance.action("stop", timeout=0)
    assert extend(instance, volume)["bytes"] == 192 * MIB
    instance.action("start")
    assert sizes() == [192 * MIB] * 3
    with pytest.raises(Fault) as refused:
        extend(instance, {"id": str(uuid.uuid4())})
    assert refused.value.code == "volume-not-found"


def test_util_linux_formats_and_lists_it_as_on_a_machine(spawn, debian, volumes):
    instance = spawn(image=debian, flavor={**FLAVOR, "memory_mb": 256})
    attach(instance, file(volumes, size=256 * MIB))
    disks = json.loads(instance.sh("lsblk --json -b -o NAME,SIZE,TYPE,RO,LOG-SEC"))["blockdevices"]
    assert disks[1] == {
        "name": "vdb",
        "size": 256 * MIB,
        "type": "disk",
        "ro": False,
        "log-sec": 512,
    }
    instance.sh("mkfs.ext4 -q -L data /dev/vdb && e2fsck -f -n /dev/vdb")
    assert 'LABEL="data"' in instance.sh("blkid /dev/vdb")
    shown = json.loads(instance.sh("lsblk --json -o NAME,FSTYPE,LABEL /dev/vdb"))["blockdevices"]
    assert shown == [{"name": "vdb", "fstype": "ext4", "label": "data"}]
    assert instance.sh("systemctl is-system-running --wait") == "running"


def test_it_is_partitioned_inside(spawn, volumes):
    """The table is written and read; the kernel makes no devices of it, which is the host's right."""
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    path = file(volumes)
    attach(instance, path)
    instance.run("/bin/sh", "-c", "printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/vdb")
    assert "/dev/vdb1" in instance.sh("fdisk -l /dev/vdb")
    assert list(partitions(instance)) == ["vda", "vdb"]
    instance.action("stop", timeout=0)
    assert path.read_bytes()[510:512] == b"\x55\xaa"


def test_a_block_device_with_name_serial_and_without_the_right_to_write(spawn, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    with block_device(file(volumes)) as device:
        volume = attach(instance, device, device="vdq", serial="archive-1", read_only=True)
        again = attach(
            instance, device, id=volume["id"], device="/dev/vdq", serial="archive-1", read_only=True
        )
        assert (again, volume["device"]) == (volume, "/dev/vdq")
        assert instance.sh("readlink -f /dev/disk/by-id/virtio-archive-1") == "/dev/vdq"
        assert instance.sh("cat /sys/block/vdq/ro; head -c 512 /dev/vdq | wc -c").split() == ["1", "512"]
        assert instance.run("/bin/sh", "-c", "echo x > /dev/vdq").returncode != 0
        with pytest.raises(Fault) as refused:
            attach(instance, device, id=volume["id"])
        assert refused.value.code == "volume-exists"
        other = file(volumes, "other")
        for field, fields in (
            ("device", {"device": "vdq"}),
            ("device", {"device": "vda"}),
            ("device", {"device": "sdb"}),
            ("serial", {"serial": "archive-1"}),
            ("serial", {"serial": "a/b"}),
            ("multiattach", {"multiattach": True}),
        ):
            with pytest.raises(Fault) as refused:
                attach(instance, other, **fields)
            assert (refused.value.code, refused.value.field) == ("invalid-input", field)
        detach(instance, volume)
    assert loops_of(other) == []


def test_what_is_no_source_is_refused_and_leaves_nothing(spawn, service, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    good, odd = file(volumes), file(volumes, "odd", 1000)
    record = service.state_dir / "instances" / instance.id / "record.json"
    before = record.read_bytes()
    [root_disk] = [
        p for p in (service.state_dir / "instances" / instance.id).iterdir() if p.name == "root.disk"
    ]
    [root_device] = loops_of(root_disk)
    node = service.run_dir / "i" / instance.id / "dev" / "vda"

    def refused(kind: str, path: Path | str) -> str:
        body = {"source": {kind: {"path": str(path)}}}
        with pytest.raises(Fault) as fault:
            service.client.put(f"{instance.path}/volumes/{uuid.uuid4()}", body)
        assert (fault.value.code, fault.value.field) == ("invalid-input", f"source.{kind}.path"), path
        return fault.value.detail

    assert "berth's own" in refused("file", record) and "berth's own" in refused("file", root_disk)
    assert "berth's own" in refused("block", node)
    assert "in use on the host" in refused("block", root_device)
    assert "no block device" in refused("block", good) and "no block device" in refused("block", "/dev/null")
    assert "no file" in refused("file", "/dev/null") and "no file" in refused("file", volumes)
    assert "absolute" in refused("file", "volume") and "multiple of 512" in refused("file", odd)
    refused("file", volumes / "absent")
    with block_device(good) as device:
        assert device in refused("file", good)
        volume = attach(instance, device)
        [loop] = loops_of(device)
        assert "a volume's device already" in refused("block", loop)
        detach(instance, volume)
    assert json.loads(record.read_bytes()).get("volumes") is None
    assert json.loads(before)["definition"] == json.loads(record.read_bytes())["definition"]
    # What cannot be shown inside is not attached either.
    instance.sh("mkdir /dev/vdb")
    with pytest.raises(Fault) as fault:
        attach(instance, good)
    assert fault.value.code == "instance-invalid-state" and "directory" in fault.value.detail
    assert listed(instance) == [] and loops_of(good) == []
    assert list(partitions(instance)) == ["vda"]
    instance.sh("rmdir /dev/vdb")
    attach(instance, good)


def test_a_volume_is_one_instances_unless_all_say_otherwise(spawn, volumes):
    one, two = spawn(flavor=FLAVOR), spawn(flavor=FLAVOR)
    path = file(volumes)
    link = volumes / "link"
    link.symlink_to(path)
    volume = attach(one, path)
    for instance, source, fields in (
        (two, link, {}),
        (one, link, {}),
        (two, file(volumes, "x"), {"id": volume["id"]}),
    ):
        with pytest.raises(Fault) as refused:
            attach(instance, source, **fields)
        assert refused.value.code == "volume-exists" and volume["id"] in refused.value.detail
    one.action("stop", timeout=0)
    with pytest.raises(Fault) as refused:
        attach(two, path)
    assert refused.value.code == "volume-exists"
    detach(one, volume)
    one.action("start")
    with block_device(path) as device:
        alone = attach(one, device)
        with pytest.raises(Fault):
            attach(two, device, multiattach=True)
        detach(one, alone)
        shared = attach(one, device, multiattach=True)
        with pytest.raises(Fault):
            attach(two, device)
        attach(two, device, id=shared["id"], multiattach=True)
        one.sh("printf %s shared | dd of=/dev/vdb bs=512 conv=sync,notrunc,fsync 2>/dev/null")
        assert two.sh("head -c 6 /dev/vdb") == "shared"
        for instance in (one, two):
            detach(instance, shared)


@pytest.mark.each_runtime
def test_one_in_use_is_detached_by_force_alone(spawn, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    path = file(volumes)
    volume = attach(instance, path)
    instance.sh("(sleep 600 7<>/dev/vdb) >/dev/null 2>&1 & echo $! > /root/holder; sleep 0.2")
    with pytest.raises(Fault) as refused:
        detach(instance, volume)
    assert refused.value.code == "volume-busy"
    holders = [pid for pid in instance.pids() if os.path.exists(f"/proc/{pid}/fd/7")]
    assert holders and all(f"{pid} on the host" in refused.value.detail for pid in holders)
    assert "sleep (pid " in refused.value.detail
    # Nothing has changed.
    write(instance, "vdb", "still")
    assert partitions(instance)["vdb"] == 64 * MIB and listed(instance)[0]["status"] == "attached"
    detach(instance, volume, force=True)
    assert not set(holders) & set(instance.pids()) and loops_of(path) == []
    assert_gone(instance, "vdb", f"virtio-{volume['id'][:20]}")
    assert path.read_bytes()[:5] == b"still" and instance.state == "RUNNING"


def test_a_rescued_instance_keeps_its_volumes(spawn, busybox, volumes):
    instance = spawn(flavor=FLAVOR)
    volume = attach(instance, file(volumes), serial="data")
    instance.wait_console("is up")
    write(instance, "vdb", "mine")
    instance.action("stop", timeout=0)
    instance.action("rescue", image_id=busybox)
    # Its own root is the second disk now.
    assert list(partitions(instance)) == ["vda", "vdb", "vdc"]
    assert instance.sh("readlink -f /dev/disk/by-id/virtio-data; head -c 4 /dev/vdc").split() == [
        "/dev/vdc",
        "mine",
    ]
    assert listed(instance)[0]["device"] == "/dev/vdc"
    more = attach(instance, file(volumes, "more"))
    assert more["device"] == "/dev/vdd"
    instance.action("unrescue")
    assert instance.sh("readlink -f /dev/disk/by-id/virtio-data") == "/dev/vdb"
    assert [one["device"] for one in listed(instance)] == ["/dev/vdb", "/dev/vdd"]
    detach(instance, volume)
    detach(instance, more)


def test_a_resize_that_can_be_reverted_keeps_them(spawn, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    attach(instance, file(volumes))
    write(instance, "vdb", "mine")
    instance.action("resize", flavor={**FLAVOR, "root_gb": 2, "ephemeral_gb": 1}, keep=True, timeout=0)
    instance.action("start")
    # The flavor's disk has its usual name.
    assert list(partitions(instance)) == ["vda", "vdb", "vdc"]
    assert instance.sh("head -c 4 /dev/vdc") == "mine" and listed(instance)[0]["device"] == "/dev/vdc"
    instance.action("resize/revert")
    instance.action("start")
    assert list(partitions(instance)) == ["vda", "vdb"]
    assert instance.sh("head -c 4 /dev/vdb") == "mine"


def test_what_is_read_and_written_is_counted(spawn, service, volumes):
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")

    def counted() -> dict[str, dict]:
        return {block["name"]: block for block in instance.stats()["block"]}

    volume = attach(instance, file(volumes))
    # Its device may have been another's.
    fresh = counted()["vdb"]
    assert (fresh["write_bytes"], fresh["write_ops"], fresh["size"]) == (0, 0, 64 * MIB)
    instance.sh("dd if=/dev/zero of=/dev/vdb bs=1M count=8 conv=fsync 2>/dev/null")
    written = counted()["vdb"]
    assert 8 * MIB <= written["write_bytes"] < 9 * MIB and written["write_ops"] > 0
    service.kill()
    service.start()
    assert counted()["vdb"]["write_bytes"] == written["write_bytes"]
    detach(instance, volume)
    assert list(counted()) == ["root"]
    again = attach(instance, volumes / "volume")
    assert counted()["vdb"]["write_bytes"] == 0
    detach(instance, again)


def test_rates_of_the_flavor_hold_for_it(spawn, volumes):
    rate = 4 * MIB
    flavor = {**FLAVOR, "extra_specs": {"quota:disk_write_bytes_sec": str(rate)}}
    instance = spawn(flavor=flavor)
    instance.wait_console("is up")
    volume = attach(instance, file(volumes))
    number = instance.sh("cat /sys/block/vdb/dev")

    def rules() -> list[str]:
        group = instance.cgroup("blkio")
        files = [group / "blkio.throttle.write_bps_device", group / "io.max"]
        return [line for path in files if path.exists() for line in path.read_text().splitlines()]

    assert any(line.startswith(f"{number} ") and str(rate) in line for line in rules())
    detach(instance, volume)
    assert not any(line.startswith(f"{number} ") for line in rules())


def test_the_command_line(spawn, service, volumes):
    instance = spawn(flavor=FLAVOR)
    path = file(volumes)
    identity, device = service.berth("volume", "attach", instance.id, str(path), "--device", "vdk").split()
    assert device == "/dev/vdk"
    row = service.berth("volume", "list", instance.id).splitlines()[1].split()
    assert row[:2] == [identity, "/dev/vdk"] and row[-2:] == ["attached", str(path)]
    assert f"/dev/vdk 64.0 MiB, {identity} from {path}" in service.berth("show", instance.id)
    os.truncate(path, 128 * MIB)
    service.berth("volume", "extend", instance.id, "vdk")
    assert listed(instance)[0]["bytes"] == 128 * MIB
    service.berth("volume", "detach", instance.id, identity[:8])
    assert listed(instance) == []
    with block_device(path) as loop:
        service.berth("volume", "attach", instance.id, loop, "--read-only", "--multiattach", "--serial", "s")
        [volume] = listed(instance)
        assert volume["source"] == {"block": {"path": loop}} and volume["read_only"] and volume["multiattach"]
        service.berth("volume", "detach", instance.id, "/dev/vdb", "--force")
    refused = service.run_berth("volume", "detach", instance.id, "vdb")
    assert refused.returncode != 0 and "no volume" in refused.stderr


def test_kills_of_the_service_lose_and_leave_nothing(spawn, service, volumes):
    """kill -9 at random moments of attaches and detaches: record, host and inside agree afterwards."""
    instance = spawn(flavor=FLAVOR)
    instance.wait_console("is up")
    sources = [file(volumes, f"volume-{number}", 8 * MIB) for number in range(3)]
    ids = [str(uuid.uuid4()) for _ in sources]
    dice = random.Random(18)
    for _ in range(12):
        ended = threading.Event()

        def change(seed: int, ended: threading.Event = ended) -> None:
            own = random.Random(seed)
            while not ended.is_set():
                index = own.randrange(len(sources))
                with contextlib.suppress(Exception):  # refused, or the service is away
                    if own.random() < 0.5:
                        attach(instance, sources[index], id=ids[index])
                    else:
                        detach(instance, {"id": ids[index]}, force=own.random() < 0.3)

        workers = [threading.Thread(target=change, args=(dice.random(),)) for _ in range(2)]
        for worker in workers:
            worker.start()
        threading.Event().wait(dice.random() * 0.4)
        service.kill()
        ended.set()
        for worker in workers:
            worker.join()
        service.start()
        wait_for("the service to be at rest", lambda: instance.get()["task_state"] is None)
        known = {volume["id"]: volume for volume in listed(instance)}
        assert all(volume["status"] == "attached" for volume in known.values())
        expected = {"vda"} | {volume["device"].removeprefix("/dev/") for volume in known.values()}
        assert set(partitions(instance)) == expected == set(instance.sh("cd /dev; ls -d vd*").split())
        for identity, source in zip(ids, sources, strict=True):
            assert len(loops_of(source)) == (identity in known), source
        for name in expected - {"vda"}:
            write(instance, name, "alive")
    for volume in listed(instance):
        detach(instance, volume)
    assert all(loops_of(source) == [] for source in sources)
