"""Disks of the shape that Ubuntu's and CirrOS' cloud images have, whole from the boot to the snapshot.

Debian's, with a kernel that boots in QEMU too, is in `tests/disk`.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import disklib
import imagelib
import pytest
from disklib import BIOS_BOOT, ESP, EXTENDED_BOOT, LINUX, SWAP, Partition
from harness import Terminal, wait_for

MIB = 1 << 20


def unpack(archive: Path | bytes, directory: Path) -> Path:
    """The files of a tar archive, which may be packed."""
    directory.mkdir()
    data = archive if isinstance(archive, bytes) else None
    source = "-" if data else str(archive)
    command = ["tar", "--numeric-owner", "-xpf", source, "-C", str(directory), "--exclude=./dev/*"]
    subprocess.run(command, input=data, check=True)
    return directory


def write(tree: Path, files: dict[str, str]) -> None:
    """Puts text files into a tree; scripts are executable."""
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)


def kernel(directory: Path, version: str) -> dict[str, bytes]:
    """Puts in place what a boot loader loads; gives it by name."""
    files = {f"vmlinuz-{version}": os.urandom(3 * MIB), f"initrd.img-{version}": os.urandom(2 * MIB)}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return files


def table(disk: Path) -> list[str]:
    """What sfdisk, which checks both tables, says of each partition."""
    told = subprocess.run(["sfdisk", "--dump", disk], capture_output=True, text=True, check=True)
    assert not told.stderr, told.stderr
    return [line.removeprefix(str(disk)) for line in told.stdout.splitlines() if line.startswith(str(disk))]


def layer_of(service, image: str) -> Path:
    """Where the one layer of an image is."""
    (layer,) = service.client.get(f"/v1/images/{image}")["layers"]
    return service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"


# -- Ubuntu 24.04 ---------------------------------------------------------------

BROKEN = "[Service]\nType=oneshot\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n"
UBUNTU = {
    "etc/fstab": """\
LABEL=cloudimg-rootfs\t/\text4\tdiscard,commit=30,errors=remount-ro,x-systemd.growfs\t0 1
LABEL=BOOT\t/boot\text4\tdefaults\t0 2
LABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1
LABEL=SWAP\tnone\tswap\tsw\t0 0
/swap.img\tnone\tswap\tsw\t0 0
""",
    # What others' images have besides, and no instance can satisfy.
    "etc/systemd/system/growpart.service": BROKEN,
    "etc/systemd/system/grub-initrd-fallback.service": BROKEN,
    "etc/systemd/system/dev-vda13.swap": "[Swap]\nWhat=/dev/vda13\n[Install]\nWantedBy=swap.target\n",
    "etc/systemd/system/boot-efi.mount": (
        "[Mount]\nWhat=/dev/disk/by-label/UEFI\nWhere=/boot/efi\n[Install]\nWantedBy=local-fs.target\n"
    ),
}
ENABLED = {
    "multi-user.target.wants/growpart.service": "growpart.service",
    "multi-user.target.wants/grub-initrd-fallback.service": "grub-initrd-fallback.service",
    "swap.target.wants/dev-vda13.swap": "dev-vda13.swap",
    "local-fs.target.wants/boot-efi.mount": "boot-efi.mount",
    "getty.target.wants/serial-getty@ttyS0.service": "/lib/systemd/system/serial-getty@.service",
}
#: Of what mke2fs makes by itself in Ubuntu 24.04, what another distribution's may leave out.
FEATURES = "metadata_csum,metadata_csum_seed,64bit,orphan_file"


def ubuntu_tree(archive: Path, directory: Path) -> Path:
    """Its root partition's files; systemd is Debian's."""
    tree = unpack(archive, directory)
    write(tree, UBUNTU)
    for name, target in ENABLED.items():
        link = tree / "etc/systemd/system" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target if target.startswith("/") else f"../{target}")
    (tree / "boot/efi").mkdir(parents=True)
    (tree / "swap.img").write_bytes(bytes(MIB))
    for path in ("usr/share/perl", "usr/share/doc", "usr/lib/x86_64-linux-gnu/perl-base"):
        subprocess.run(["rm", "-rf", tree / path], check=True)
    return tree


def test_ubuntus_disk_boots_and_its_snapshot_has_its_layout(service, debian_file, glance, made, tmp_path):
    tree = ubuntu_tree(debian_file, tmp_path / "tree")
    kernel(tmp_path / "boot", "6.8.0-31-generic")
    root = disklib.ext(tmp_path / "root", "320M", tree, "-t", "ext4", "-L", "cloudimg-rootfs", "-O", FEATURES)
    boot = disklib.ext(tmp_path / "BOOT", "16M", tmp_path / "boot", "-t", "ext4", "-L", "BOOT")
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    disklib.gpt(
        raw,
        [
            Partition(BIOS_BOOT, os.urandom(MIB), number=14),
            Partition(ESP, disklib.fat("UEFI"), number=15),
            Partition(EXTENDED_BOOT, boot, number=16),
            Partition(SWAP, bytes(4086) + b"SWAPSPACE2" + bytes(MIB), number=13),
            Partition(LINUX, root, number=1),
        ],
        boot=b"\xfaboot code".ljust(440, b"\x90"),
    )
    disklib.qemu_img("convert", "-c", "-W", "-f", "raw", "-O", "qcow2", raw, qcow2)
    image = service.import_image(qcow2)
    shown = service.client.get(f"/v1/images/{image}")
    assert (shown["format"], shown["config"]["init"]) == ("qcow2", "systemd")
    instance = service.spawn(
        image, flavor={"vcpus": 2, "memory_mb": 512, "root_gb": 1}, hostname="noble", vifs=[service.vif()]
    )
    made.append(instance)
    assert_up(instance)
    # Nothing of the image was touched, neither on the disk nor in what the instance sees.
    assert (layer_of(service, image) / "etc/fstab").read_text() == UBUNTU["etc/fstab"]
    assert instance.sh("cat /etc/fstab") == UBUNTU["etc/fstab"].strip()
    units = sorted(path.name for path in (tree / "etc/systemd/system").iterdir())
    assert instance.sh("ls -A /etc/systemd/system").split() == units
    assert instance.sh("ls /boot") == "efi"

    instance.sh("echo mine > /etc/mine")
    snapshot, again = str(uuid.uuid4()), tmp_path / "again"
    instance.action("snapshot", **glance.to(snapshot, format="qcow2"))
    disklib.qemu_img("convert", "-f", "qcow2", "-O", "raw", glance.file(snapshot), again)
    assert table(again) == table(raw)
    before, after = raw.read_bytes(), again.read_bytes()
    start = before.index(root.read_bytes()[:4096])
    assert after[:start] == before[:start], "boot code, table, ESP, /boot with its kernel, swap"
    end = start + root.stat().st_size
    assert after[end:] == before[end:]
    told = subprocess.run(["dumpe2fs", "-h", f"{again}?offset={start}"], capture_output=True, text=True)
    features = next(line for line in told.stdout.splitlines() if line.startswith("Filesystem features"))
    assert set(FEATURES.split(",")) <= set(features.split()), told.stdout
    assert "Filesystem volume name:   cloudimg-rootfs\n" in told.stdout
    copy = service.spawn(service.import_image(glance.file(snapshot)), flavor={"memory_mb": 512})
    made.append(copy)
    assert_up(copy)
    assert copy.sh("cat /etc/mine") == "mine"


def assert_up(instance) -> None:
    """systemd has all that it wanted, and waited for nothing that cannot come."""

    def state() -> str:
        return instance.run("systemctl", "is-system-running", "--wait").stdout.strip()

    assert wait_for("systemd", state, 150) == "running", instance.sh("systemctl --failed --no-legend")
    journal = instance.sh("journalctl -b --no-pager")
    assert "Timed out" not in journal
    assert "Dependency failed" not in journal
    # What it did not even try.
    assert instance.sh("systemctl list-units --all --no-legend 'systemd-fsck@*' 'dev-disk*'") == ""
    assert instance.sh("systemctl show -P Result growpart.service") == "success"


# -- CirrOS ---------------------------------------------------------------------

CIRROS = {
    "etc/inittab": """\
::sysinit:/etc/init.d/rc.sysinit
#tty1::respawn:/sbin/getty 115200 tty1
#ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100
#hvc0::respawn:/sbin/getty 115200 hvc0
::ctrlaltdel:/sbin/reboot
null::shutdown:/bin/umount -a -r
null::shutdown:/sbin/swapoff -a
""",
    # A getty for each line that there is, and one can write to.
    "etc/init.d/rc.sysinit": """\
#!/bin/sh
echo "$0: up at $(cut -d' ' -f1 /proc/uptime)"
[ -d /proc/1 ] || mount -t proc proc /proc
mount -o remount,rw / || echo "FAIL: /"
mkdir -p /dev/pts /dev/shm /run
mount -a
for script in /etc/rc3.d/S*; do "$script" start </dev/null; done
for line in tty1 ttyS0 hvc0; do
    [ -e /dev/$line ] && { echo >>/dev/$line; } 2>/dev/null && sed -i "s/^#$line:/$line:/" /etc/inittab
done
kill -HUP 1
""",
    "etc/rc3.d/S10-load-modules": "#!/bin/sh\nmodprobe virtio_net 2>/dev/null || exit 0\n",
    "etc/rc3.d/S55-resizefs": "#!/bin/sh\necho '=== resizing' >/dev/console\n",
    # A getty throws away what the line has not yet sent.
    "etc/rc3.d/S99-logo": "#!/bin/sh\necho '=== system information' >/dev/console; sleep 1\n",
    "etc/fstab": """\
/dev/root  /         auto    rw,noauto                    0 1
proc       /proc     proc    defaults                     0 0
devpts     /dev/pts  devpts  defaults,gid=5,mode=620      0 0
tmpfs      /dev/shm  tmpfs   mode=0777                    0 0
sysfs      /sys      sysfs   defaults                     0 0
tmpfs      /run      tmpfs   rw,nosuid,relatime,mode=755  0 0
""",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ncirros::1000:1000:non-root user:/home:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\ncirros:x:1000:\n",
    "etc/issue": "login as 'cirros' user.\n",
}


@pytest.fixture(scope="module")
def cirros(tmp_path_factory) -> dict[str, Path]:
    """Root file systems by type. They hold their kernel."""
    work = tmp_path_factory.mktemp("cirros")
    tree = unpack(imagelib.busybox_tree().tar(), work / "tree")
    write(tree, CIRROS)
    (tree / "init").symlink_to("/sbin/init")
    kernel(tree / "boot", "5.15.0-117-generic")
    label = ("-L", "cirros-rootfs")
    return {kind: disklib.ext(work / kind, "24M", tree, "-t", kind, *label) for kind in ("ext3", "ext4")}


def cirros_disk(roots: dict[str, Path], path: Path) -> Path:
    """The disk of 0.5 and 0.6."""
    esp = Partition(ESP, disklib.fat("ESP"), number=15)
    return disklib.gpt(path, [esp, Partition(LINUX, roots["ext3"], number=1)])


def as_qcow2(disk: Path, *options: str) -> Path:
    path = disk.with_suffix(".qcow2")
    disklib.qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, disk, path)
    return path


SHAPES = {
    "qcow2": lambda roots, path: as_qcow2(cirros_disk(roots, path)),
    "qcow2, compressed, version 2": lambda roots, path: as_qcow2(
        cirros_disk(roots, path), "-c", "-o", "compat=0.10"
    ),
    "raw": cirros_disk,
    "raw, with a master boot record": lambda roots, path: disklib.mbr(path, [(0x83, roots["ext3"])]),
    "ami": lambda roots, _: roots["ext4"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cirros_disk_boots_to_its_login(service, cirros, made, tmp_path, shape):
    image = service.import_image(SHAPES[shape](cirros, tmp_path / "disk"))
    shown = service.client.get(f"/v1/images/{image}")
    form = "qcow2" if "qcow2" in shape else "raw"
    assert (shown["format"], shown["config"]["init"]) == (form, "busybox")
    assert (layer_of(service, image) / "boot/vmlinuz-5.15.0-117-generic").stat().st_size == 3 * MIB
    instance = service.spawn(image, hostname="cirros-1")
    made.append(instance)
    console = instance.wait_console("cirros-1 login:")
    assert console.index("rc.sysinit: up at") < console.index("=== system information")
    with Terminal(instance) as terminal:
        terminal.wait_raw()
        terminal.type(b"cirros\r")
        terminal.read_until(b"$ ")
        # A terminal of its own: what is interrupted ends, and its shell does not.
        terminal.type(b"id -u; sleep 1000\r")
        terminal.read_until(b"\n1000\r\n")
        wait_for("the command", lambda: instance.run("pidof", "sleep").stdout)
        terminal.type(b"\x03")
        terminal.type(b"echo interrupted-$((6*7))\r")
        terminal.read_until(b"interrupted-42")
    logins = instance.console().count("cirros-1 login:")
    instance.action("reboot", type="SOFT")
    wait_for("another login", lambda: instance.console().count("cirros-1 login:") > logins)
    assert instance.state == "RUNNING"
    instance.action("stop", timeout=30)
    assert instance.get()["exit"]["signal"] != 9
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
