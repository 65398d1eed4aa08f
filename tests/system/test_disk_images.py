"""Disk images: the root file system is found, becomes a layer, and boots like any other."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import disklib
import imagelib
import pytest
from disklib import ESP, LINUX, ROOT_X86_64, Partition


def unpack(directory: Path, marker: str, **files: str) -> Path:
    """A tree that boots and says which it is."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    tree.file("marker", marker)
    tree.hardlink("twin", "marker")
    tree.file("data/owned", "x", 0o640, uid=33, gid=29)
    for name, content in files.items():
        tree.file(f"etc/{name}", content)
    directory.mkdir()
    with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
        archive.extractall(directory, numeric_owner=True)
    return directory


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """File systems: the root that is meant, another that boots too, and one without an init."""
    work = tmp_path_factory.mktemp("parts")
    plain = unpack(work / "root", "meant")
    other = unpack(work / "other", "other", fstab="LABEL=meant / ext4 defaults 0 1\n")
    (work / "boot/grub").mkdir(parents=True)
    (work / "boot/grub/grub.cfg").write_text("boot\n")
    return {
        "meant": disklib.ext(work / "meant", "12M", plain, "-t", "ext4", "-L", "meant"),
        "named": disklib.ext(work / "named", "12M", plain, "-t", "ext3", "-L", "cloudimg-rootfs"),
        "other": disklib.ext(work / "other.img", "12M", other, "-t", "ext4"),
        "boot": disklib.ext(work / "boot.img", "4M", work / "boot", "-t", "ext2", "-L", "BOOT"),
        "esp": b"\xeb\x3c\x90mkfs.fat".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20),
    }


LAYOUTS = {
    "by its type": lambda p, path: disklib.gpt(
        path, [Partition(ESP, p["esp"]), Partition(LINUX, p["other"]), Partition(ROOT_X86_64, p["meant"])]
    ),
    "by its label": lambda p, path: disklib.gpt(
        path, [Partition(LINUX, p["named"]), Partition(LINUX, p["other"]), Partition(ESP, p["esp"])]
    ),
    "by its partition's name": lambda p, path: disklib.gpt(
        path, [Partition(LINUX, p["other"]), Partition(LINUX, p["meant"], name="root")]
    ),
    "by the fstab": lambda p, path: disklib.gpt(
        path, [Partition(LINUX, p["other"]), Partition(LINUX, p["meant"])]
    ),
    "by its init": lambda p, path: disklib.gpt(
        path, [Partition(LINUX, p["boot"]), Partition(LINUX, p["meant"])]
    ),
    "on a disk with a master boot record": lambda p, path: disklib.mbr(
        path, [(0x82, bytes(1 << 20)), (0x83, p["meant"])]
    ),
    "as the whole disk": lambda p, path: path.write_bytes(p["meant"].read_bytes()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_root_is_found(service, parts, tmp_path, layout):
    path = tmp_path / "disk"
    LAYOUTS[layout](parts, path)
    image = service.import_image(path)
    shown = service.client.get(f"/v1/images/{image}")
    assert shown["format"] == "raw"
    assert shown["config"]["init"] == "busybox"
    (layer,) = shown["layers"]
    root = service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
    assert (root / "marker").read_text() == "meant"
    service.client.delete(f"/v1/images/{image}")


def test_a_compressed_qcow2_boots_and_is_used_like_any_other(service, parts, tmp_path):
    raw, path = tmp_path / "disk", tmp_path / "image.tar"
    LAYOUTS["by its type"](parts, raw)
    disklib.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, path)
    image = service.import_image(path)
    assert service.client.get(f"/v1/images/{image}")["format"] == "qcow2"
    instance = service.spawn(image)
    instance.wait_console("started")
    assert instance.sh("cat /marker") == "meant"
    assert instance.sh("stat -c '%a %u %g' /data/owned") == "640 33 29"
    assert instance.sh("stat -c %i /marker") == instance.sh("stat -c %i /twin")
    instance.sh("echo mine > /marker")
    instance.action("stop")
    instance.action("start")
    assert instance.sh("cat /marker") == "mine"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def test_what_is_no_disk_that_can_be_read_is_refused_with_the_remedy(service, tmp_path):
    path = tmp_path / "image"
    disklib.qemu_img("create", "-f", "qed", path, "1M")
    made = service.run_berth("image", "import", str(path))
    assert made.returncode != 0
    assert "qemu-img convert -O qcow2" in made.stderr
    assert subprocess.run(["ls", service.state_dir / "images/tmp"], capture_output=True).stdout == b""
