"""Snapshots of disk images as disks: the same layout, and what the instance made of the root."""

from __future__ import annotations

import io
import subprocess
import tarfile
import uuid
from pathlib import Path

import disklib
import imagelib
import pytest
from disklib import ESP, LINUX, Partition
from harness import Fault, wait_for

ROOT_UUID = "0b8f6e2e-5d1c-4c0e-9d5a-4d6f2a1c7b33"
PART_UUID = "5c0de5c0-de5c-4de5-80de-5c0de5c0de00"
MIB = 1 << 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A root file system that boots, with something of every kind."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    tree.file("etc/fstab", f"UUID={ROOT_UUID} / ext4 defaults 0 1\nLABEL=EFI /boot/efi vfat defaults 0 0\n")
    tree.file("data/owned", "x", 0o640, uid=33, gid=29)
    tree.file("data/gone", "x")
    tree.file("capable", "x", 0o755)
    directory = tmp_path_factory.mktemp("disk") / "tree"
    directory.mkdir()
    with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
        archive.extractall(directory, numeric_owner=True)
    subprocess.run(["setcap", "cap_net_raw+ep", directory / "capable"], check=True)
    return directory


def root_of(tree: Path, size: str, *options: str) -> Path:
    return disklib.ext(tree.parent / "root", size, tree, "-L", "the root", "-U", ROOT_UUID, *options)


def esp() -> bytes:
    """Bytes in the shape of an EFI system partition: what is in it is nobody's affair."""
    return (b"\xeb\x3c\x90mkfs.fat".ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0") + bytes(
        range(256)
    ) * 256


def boot(service, made, path: Path, **fields):
    """A running instance of a disk image; it says that it started."""
    instance = service.spawn(service.import_image(path), **fields)
    made.append(instance)
    instance.wait_console("started")
    return instance


def snapshot(instance, glance) -> Path:
    """A snapshot, sound in the eyes of qemu-img; the disk in it, byte by byte."""
    image = str(uuid.uuid4())
    instance.action("snapshot", **glance.to(image, format="qcow2"))
    file = glance.file(image)
    disklib.qemu_img("check", "-f", "qcow2", file)
    raw = file.with_suffix(".raw")
    disklib.qemu_img("convert", "-f", "qcow2", "-O", "raw", file, raw)
    return raw


def rows(disk: Path) -> list[tuple[int, int, int, dict]]:
    """The partitions as sfdisk, which checks both tables, sees them: number, start, size, all else."""
    told = subprocess.run(["sfdisk", "--dump", disk], capture_output=True, text=True, check=True)
    assert not told.stderr, told.stderr
    found = []
    for line in told.stdout.splitlines():
        if line.startswith(str(disk)):
            name, _, fields = line.removeprefix(str(disk)).partition(" : ")
            fields = dict(field.strip().partition("=")[::2] for field in fields.split(","))
            start, size = int(fields.pop("start")), int(fields.pop("size"))
            found.append((int(name), start * 512, size * 512, fields))
    return found


def cut(disk: Path, start: int, size: int) -> Path:
    """A part of a disk as a file."""
    part = disk.with_suffix(".part")
    with disk.open("rb") as whole, part.open("wb") as file:
        whole.seek(start)
        file.write(whole.read(size))
    return part


def check_root(disk: Path, start: int, size: int, **files: str) -> str:
    """The root is sound, is called what it was called, and holds these; its superblock as text."""
    part = cut(disk, start, size)
    checked = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = subprocess.run(["dumpe2fs", "-h", part], capture_output=True, text=True, check=True).stdout
    assert f"Filesystem UUID:          {ROOT_UUID}\n" in told
    assert "Filesystem volume name:   the root\n" in told
    for name, content in files.items():
        shown = subprocess.run(["debugfs", "-R", f"cat /{name}", part], capture_output=True, text=True)
        assert shown.stdout == content, name
    return told


def features(told: str) -> str:
    return next(line for line in told.splitlines() if line.startswith("Filesystem features:"))


def left_behind(service) -> list[Path]:
    """Temporary files of snapshots."""
    return [*service.state_dir.rglob("root.copy*"), *(service.state_dir / "images/tmp").iterdir()]


#: Sets an attribute as the instance's root would, for which it has no program.
SET_XATTR = """
import ctypes, os, sys
pid, path, name, value = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
for space in ("user", "mnt"):
    assert not libc.setns(os.open(f"/proc/{pid}/ns/{space}", os.O_RDONLY), 0), ctypes.get_errno()
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
os.setxattr(path, name, bytes.fromhex(value))
"""
CAPABILITY = "0100000200200000000000000000000000000000"


def set_xattr(instance, path: str, name: str, value: str) -> None:
    command = ["python3", "-c", SET_XATTR, str(min(instance.pids())), path, name, value]
    subprocess.run(command, check=True)


CHANGE = """
set -e
echo mine > /mine && ln /mine /data/twin && chown 7:8 /mine && chmod 4750 /mine
rm /data/gone && mkdir -p /new/dir && ln -s ../mine /new/link && mkfifo /new/pipe
touch /capable /data/own-capability && chmod 1777 /new
dd if=/dev/zero of=/holes bs=1 count=1 seek=50000000 2>/dev/null
"""
SHOW = """
stat -c '%n %a %u:%g %s %h' /mine /data/* /new /new/pipe /capable /holes
cat /mine /etc/fstab; readlink /new/link; [ /mine -ef /data/twin ] && echo linked
[ $(stat -c %b /holes) -lt 100 ] && echo sparse; ls -a / /data /new /lost+found
"""


def attributes(instance) -> str:
    """What `getcap` and a look at the store's files say, from the host."""
    layer = instance.service.client.get(f"/v1/images/{instance.get()['image_id']}")["layers"][-1]
    root = instance.service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
    shown = subprocess.run(
        ["getcap", "capable", "data/own-capability"], cwd=root, capture_output=True, text=True, check=True
    )
    colour = subprocess.run(
        ["python3", "-c", "import os, sys; print(os.getxattr('mine', 'user.colour').decode())"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout + colour.stdout


def test_the_same_layout_with_what_the_instance_wrote(service, glance, made, tree, tmp_path):
    first = tmp_path / "first"
    root = root_of(tree, "24M", "-t", "ext4", "-O", "^metadata_csum,^64bit", "-I", "128")
    boot_code = b"\xfaboot code".ljust(440, b"\x90")
    disklib.gpt(
        first,
        [Partition(ESP, esp(), name="EFI"), Partition(LINUX, root, name="the root", uuid=PART_UUID)],
        boot=boot_code,
    )
    instance = boot(service, made, first)
    shown = service.client.get(f"/v1/images/{instance.get()['image_id']}")
    assert MIB // 16 <= shown["disk"]["stored"] < 2 * MIB
    instance.sh(CHANGE)
    set_xattr(instance, "/data/own-capability", "security.capability", CAPABILITY)
    set_xattr(instance, "/mine", "user.colour", b"blue".hex())
    expected = instance.sh(SHOW)

    second = snapshot(instance, glance)
    assert not left_behind(service)
    assert rows(second) == rows(first)
    (_, esp_at, esp_size, _), (_, root_at, root_size, fields) = rows(second)
    assert fields["uuid"].lower() == PART_UUID
    before, after = first.read_bytes(), second.read_bytes()
    assert after[:root_at] == before[:root_at], "boot code, table, EFI system partition"
    assert after[esp_at : esp_at + esp_size] == esp().ljust(esp_size, b"\0")
    assert after[root_at + root_size :] == before[root_at + root_size :], "the second copy of the table"
    told = check_root(second, root_at, root_size, mine="mine\n")
    told_before = subprocess.run(["dumpe2fs", "-h", root], capture_output=True, text=True).stdout
    assert features(told) == features(told_before)
    assert f"{root_size // 4096 if 'Block size:               4096' in told else root_size // 1024}" in told

    copy = boot(service, made, second)
    assert copy.sh(SHOW) == expected
    assert attributes(copy) == "capable cap_net_raw=ep\ndata/own-capability cap_net_raw=ep\nblue\n"
    # A snapshot of the snapshot, of which more than the old root partition holds.
    copy.sh("echo more > /more; dd if=/dev/urandom of=/noise bs=1M count=40 2>/dev/null")
    noise = copy.sh("sha256sum < /noise")
    third = snapshot(copy, glance)
    (esp_row, (_, grown_at, grown_size, grown_fields)) = rows(third)
    assert esp_row == rows(first)[0]
    assert (grown_at, grown_fields) == (root_at, fields)
    assert grown_size > root_size
    assert third.read_bytes()[esp_at : esp_at + esp_size] == after[esp_at : esp_at + esp_size]
    check_root(third, grown_at, grown_size, mine="mine\n", more="more\n")
    again = boot(service, made, third)
    assert again.sh("cat /more; sha256sum < /noise") == f"more\n{noise}"
    assert not left_behind(service)


@pytest.mark.parametrize("layout", ["the whole disk", "a master boot record"])
def test_other_layouts(service, glance, made, tree, tmp_path, layout):
    disk = tmp_path / "disk"
    if layout == "the whole disk":
        disk.write_bytes(root_of(tree, "16M", "-t", "ext2").read_bytes())
        start, size = 0, disk.stat().st_size
    else:
        root = root_of(tree, "16M", "-t", "ext3")
        disklib.mbr(disk, [(0x82, bytes(MIB)), (0x83, root)])
        (_, (_, start, size, _)) = rows(disk)
    instance = boot(service, made, disk)
    instance.sh("echo mine > /mine")
    made_of_it = snapshot(instance, glance)
    assert made_of_it.stat().st_size == disk.stat().st_size
    told = check_root(made_of_it, start, size, mine="mine\n")
    assert ("has_journal" in told) == (layout != "the whole disk")
    if start:
        assert made_of_it.read_bytes()[:start] == disk.read_bytes()[:start]
    assert boot(service, made, made_of_it).sh("cat /mine") == "mine"


def test_a_root_that_is_not_the_last_does_not_grow(service, glance, made, tree, tmp_path):
    disk = tmp_path / "disk"
    disklib.gpt(
        disk, [Partition(LINUX, root_of(tree, "16M", "-t", "ext4"), name="root"), Partition(ESP, esp())]
    )
    instance = boot(service, made, disk)
    check_root(snapshot(instance, glance), *rows(disk)[0][1:3])
    instance.sh("dd if=/dev/urandom of=/noise bs=1M count=24 2>/dev/null")
    with pytest.raises(Fault) as fault:
        snapshot(instance, glance)
    assert "not the last" in fault.value.detail
    assert not left_behind(service)
    instance.sh("rm /noise")
    snapshot(instance, glance)


def test_what_is_no_disk_has_no_such_snapshot(service, instance, glance):
    with pytest.raises(Fault) as fault:
        instance.action("snapshot", **glance.to(str(uuid.uuid4()), format="qcow2"))
    assert (fault.value.code, fault.value.field) == ("invalid-input", "format")
    assert "docker-archive" in fault.value.detail
    assert not glance.begun.is_set()


def test_what_is_kept_goes_with_its_image_and_is_believed_only_as_it_was(
    service, glance, made, tree, tmp_path
):
    disk = tmp_path / "disk"
    disklib.gpt(
        disk, [Partition(ESP, esp()), Partition(LINUX, root_of(tree, "16M", "-t", "ext4"), name="root")]
    )
    instance = boot(service, made, disk)
    image = instance.get()["image_id"]
    kept = service.state_dir / "images/disks" / image
    assert kept.stat().st_size == disk.stat().st_size
    # A failed upload leaves nothing, and another attempt is free to succeed.
    glance.status = 500
    with pytest.raises(Fault) as fault:
        snapshot(instance, glance)
    assert fault.value.code == "glance-unavailable"
    assert not left_behind(service)
    glance.status = 204
    with kept.open("r+b") as file:
        file.seek(3 * MIB // 2)
        file.write(b"altered")
    with pytest.raises(Fault) as fault:
        snapshot(instance, glance)
    assert fault.value.code == "image-corrupt"
    assert not left_behind(service)
    # Cut off while the disk is being sent, and a file that an import left without a record.
    second = boot(service, made, disk)
    # More than the sockets between take.
    second.sh("dd if=/dev/urandom of=/noise bs=1M count=24 2>/dev/null")
    glance.begun.clear()
    glance.hold.clear()
    wanted = glance.to(str(uuid.uuid4()), format="qcow2")
    service.client.post(f"{second.path}/snapshot", wanted, headers={"Prefer": "respond-async"})
    assert glance.begun.wait(60)
    # The upload begins before there is a disk to send.
    wait_for("the disk in the making", lambda: left_behind(service))
    service.kill()
    glance.hold.set()
    orphan = kept.with_name(str(uuid.uuid4()))
    orphan.write_bytes(b"x")
    service.start()
    assert not left_behind(service)
    assert kept.exists() and not orphan.exists()
    second.sh("echo on > /on")
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert not kept.exists()
