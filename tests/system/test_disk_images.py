"""Disk images: the root file system is found, becomes a layer, and boots like any other."""

from __future__ import annotations

import io
import re
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


# -- systems on several partitions ------------------------------------------------

VAR, HOME, USR = (
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915",
    "8484680c-9521-48c6-9c11-b0720656f69e",
)


def split(work: Path, fstab: str, *places: str) -> tuple[Path, dict[str, Path]]:
    """A root without these directories' files, and a file system of each."""
    tree = unpack(work / "tree", "meant", fstab=fstab)
    for place in places:
        (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / place / "part").write_text(place)
    parts = {}
    for place in sorted(places, key=len, reverse=True):
        aside = work / place.replace("/", "-")
        (tree / place).rename(aside)
        (tree / place).mkdir()
        label = place.replace("/", "-")
        size = "12M" if place == "usr" else "4M"
        uuid_option = ("-U", "5ca1ab1e-0000-4000-8000-000000000001") if place == "var" else ()
        options = ("-t", "ext4", "-L", label, *uuid_option)
        parts[place] = disklib.ext(work / f"{label}.img", size, aside, *options)
    return disklib.ext(work / "root.img", "12M", tree, "-t", "ext4", "-L", "root"), parts


FSTAB = """\
LABEL=root / ext4 defaults 0 1
UUID=5CA1AB1E-0000-4000-8000-000000000001 /var ext4 nodev 0 2
LABEL=var-log /var/log ext4 defaults 0 2
PARTUUID=0badcafe-0000-4000-8000-000000000001 /home ext4 defaults 0 2
PARTLABEL=things /srv ext4 defaults 0 2
/dev/sda6 /opt ext4 defaults 0 2
LABEL=usr /usr ext4 ro 0 2
tmpfs /var/tmp tmpfs size=1m 0 0
LABEL=absent /opt/absent ext4 nofail 0 2
"""


def partitions(root: Path, parts: dict[str, Path]) -> list[Partition]:
    """The rows of a disk with them all, in the order of the names."""
    own = {"home": {"uuid": "0badcafe-0000-4000-8000-000000000001"}, "srv": {"name": "things"}}
    rows = {place: Partition(LINUX, part, **own.get(place, {})) for place, part in parts.items()}
    return [Partition(LINUX, root), *(rows[place] for place in sorted(rows))]


def test_what_the_fstab_mounts_belongs_to_the_system(service, made, tmp_path):
    places = ("var", "var/log", "home", "srv", "opt", "usr")
    root, parts = split(tmp_path, FSTAB, *places)
    rows = partitions(root, parts)
    rows[[*sorted(places)].index("opt") + 1].number = 6
    rows[[*sorted(places)].index("opt") + 2].number = 7
    disk = disklib.gpt(tmp_path / "disk", rows)
    image = service.import_image(disk)
    shown = service.client.get(f"/v1/images/{image}")
    assert (len(shown["layers"]), shown["config"]["init"]) == (1, "busybox")
    assert "partition of its own" in shown["disk"]["refusal"]
    made.append(service.spawn(image))
    made[-1].wait_console("started")
    for place in places:
        assert made[-1].sh(f"cat /{place}/part") == place
    assert made[-1].sh("ls -d /lost+found /var/lost+found") == "/lost+found\n/var/lost+found"
    assert made[-1].sh("cat /etc/fstab") == FSTAB.strip()


def test_types_of_partitions_are_followed_onto_empty_directories(service, tmp_path):
    root, parts = split(tmp_path, "", "var", "home", "usr")
    rows = [Partition(ROOT_X86_64, root), Partition(VAR, parts["var"]), Partition(USR, parts["usr"])]
    image = service.import_image(disklib.gpt(tmp_path / "disk", [*rows, Partition(HOME, parts["home"])]))
    (layer,) = service.client.get(f"/v1/images/{image}")["layers"]
    fs = service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
    for place in ("var", "home", "usr"):
        assert (fs / place / "part").read_text() == place
    service.client.delete(f"/v1/images/{image}")


#: Devices whose names end in the number of a partition that is not meant.
FOREIGN = {
    "var in a volume with a number": "/dev/mapper/vg-var2",
    "var on a RAID": "/dev/md2",
    "var on another disk of NVMe": "/dev/nvme1n1p2",
}


def test_a_line_that_nothing_follows_keeps_a_partition_unmounted(service, tmp_path):
    root, parts = split(tmp_path, "LABEL=var /var ext4 noauto 0 2\n", "var")
    disk = disklib.gpt(tmp_path / "disk", [Partition(ROOT_X86_64, root), Partition(VAR, parts["var"])])
    image = service.import_image(disk)
    (layer,) = service.client.get(f"/v1/images/{image}")["layers"]
    fs = service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
    assert not (fs / "var/part").exists()
    service.client.delete(f"/v1/images/{image}")


def half(work: Path, kind: str) -> list[Partition]:
    """Disks that are no whole system."""
    directory = work / "half"
    directory.mkdir()
    empty = disklib.ext(work / "empty", "4M", directory, "-t", "ext4", "-L", "ROOT")
    if kind == "an empty ROOT":
        usr = disklib.ext(work / "usr", "4M", directory, "-t", "ext4", "-L", "USR-A")
        return [Partition("5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6", usr, name="USR-A"), Partition(LINUX, empty)]
    if kind == "ostree":
        (directory / "ostree/deploy").mkdir(parents=True)
        (directory / "boot").mkdir()
    elif kind == "no init":
        (directory / "etc").mkdir()
        (directory / "sbin").mkdir()
        (directory / "sbin/init").write_text("not to be executed")
    elif kind == "usr elsewhere":
        return [Partition(LINUX, split(work, "UUID=1-2 /usr ext4 ro 0 2\n", "usr")[0])]
    elif kind == "var on another disk":
        return [Partition(LINUX, split(work, "/dev/vdb1 /var ext4 defaults 0 2\n", "var")[0])]
    elif kind == "var in a volume":
        return [Partition(LINUX, split(work, "/dev/mapper/vg-var /var xfs defaults 0 2\n", "var")[0])]
    elif kind in FOREIGN:
        # A second file system, of something else, has the number that the name ends in.
        root, parts = split(work, f"{FOREIGN[kind]} /var ext4 defaults 0 2\n", "var", "srv")
        return [Partition(LINUX, root), Partition(LINUX, parts["srv"])]
    elif kind == "two of one type":
        root, parts = split(work, "", "var", "srv")
        return [Partition(ROOT_X86_64, root), Partition(VAR, parts["var"]), Partition(VAR, parts["srv"])]
    elif kind == "var with a file system that is not read":
        root, _ = split(work, "LABEL=v /var xfs defaults 0 2\n", "var")
        xfs = b"XFSB".ljust(108, b"\0") + b"v".ljust(1 << 20, b"\0")
        return [Partition(LINUX, root), Partition(LINUX, xfs)]
    return [Partition(LINUX, disklib.ext(work / "fs", "4M", directory, "-t", "ext4", "-L", "root"))]


REFUSED = {
    "an empty ROOT": r"partition 2 \(ROOT\).*no init.*is empty",
    "ostree": r"partition 1 \(root\).*OSTree",
    "no init": r"no init.*it holds etc, sbin",
    "usr elsewhere": r"mounts /usr from UUID=1-2, which the disk has not",
    "var on another disk": r"mounts /var from /dev/vdb1, which the disk has not",
    "var in a volume": r"mounts /var from /dev/mapper/vg-var, which the disk has not",
    **{kind: rf"mounts /var from {device}, which the disk has not" for kind, device in FOREIGN.items()},
    "two of one type": r"partitions 2, 3 are each a /var by their type",
    "var with a file system that is not read": r"/var is on partition 2 of its own, which holds.*XFS",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_half_a_system_is_refused_for_what_was_found(service, tmp_path, kind):
    made = service.run_berth("image", "import", str(disklib.gpt(tmp_path / "disk", half(tmp_path, kind))))
    assert made.returncode != 0
    assert re.search(REFUSED[kind], made.stderr), made.stderr
    assert list((service.state_dir / "images/tmp").iterdir()) == []


def test_a_disk_without_partitions_that_is_half_a_system_is_refused(service, tmp_path):
    root, _ = split(tmp_path, "LABEL=var /var ext4 defaults 0 2\n", "var")
    made = service.run_berth("image", "import", str(root))
    assert "mounts /var from LABEL=var" in made.stderr
