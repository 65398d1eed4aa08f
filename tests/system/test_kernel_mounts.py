"""Disk images that the host's kernel or qemu-img reads: whose, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import re
import subprocess
import tarfile
import threading
import uuid
from pathlib import Path

import disklib
import imagelib
import pytest
from harness import Fault, wait_for


@pytest.fixture(scope="module")
def settings():
    return {"images": {"kernel_mounts": "public"}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A root file system that boots."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    tree.file("data/owned", "x", 0o640, uid=33, gid=29)
    directory = tmp_path_factory.mktemp("tree")
    with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
        archive.extractall(directory, numeric_owner=True)
    return directory


@contextlib.contextmanager
def glance(path: Path, **described: str):
    """An image service with one image; its content is the file, what it says of it is given."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers.get("X-Auth-Token") != "token":
                return self.send_error(401)
            content = self.path.endswith("/file")
            body = path.read_bytes() if content else json.dumps(described).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fetch(service, endpoint: str) -> str:
    """Has the service fetch the image; gives its id."""
    image = str(uuid.uuid4())
    source = {"type": "glance", "endpoint": endpoint, "token": "token"}
    service.client.put(f"/v1/images/{image}", {"source": source})
    return image


def nothing_is_left(service) -> bool:
    """No temporary file, no loop device and no mount of an import."""
    devices = subprocess.run(
        ["losetup", "--raw", "-n", "-O", "BACK-FILE", "-a"], capture_output=True, text=True
    ).stdout
    mounts = Path("/proc/self/mountinfo").read_text()
    temporary = service.state_dir / "images/tmp"
    return not list(temporary.iterdir()) and str(temporary) not in devices + mounts


def test_a_public_squashfs_boots_and_a_private_one_is_refused(service, tree, tmp_path):
    path = tmp_path / "squashfs"
    disklib.run("mksquashfs", tree, path, "-quiet", "-no-progress")
    with glance(path, visibility="shared", disk_format="raw") as endpoint, pytest.raises(Fault) as fault:
        fetch(service, endpoint)
    assert fault.value.code == "image-unacceptable"
    assert "SquashFS" in fault.value.detail
    assert 'images.kernel_mounts = "public"' in fault.value.detail
    with pytest.raises(Fault, match=r"images\.kernel_mounts"):
        service.import_image(path)
    assert nothing_is_left(service)
    with glance(path, visibility="public", disk_format="raw") as endpoint:
        image = fetch(service, endpoint)
    instance = service.spawn(image)
    instance.wait_console("started")
    assert instance.sh("stat -c '%a %u %g' /data/owned") == "640 33 29"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert nothing_is_left(service)


def test_a_service_that_is_killed_while_the_kernel_reads_leaves_nothing(service, tree, tmp_path):
    path = tmp_path / "squashfs"
    system = tmp_path / "system"
    disklib.run("cp", "-a", tree, system)
    disklib.run("truncate", "-s", "1G", system / "hole")
    disklib.run("mksquashfs", system, path, "-quiet", "-no-progress", "-no-sparse")
    with glance(path, visibility="public", disk_format="raw") as endpoint:

        def attempt():
            with contextlib.suppress(Exception):
                fetch(service, endpoint)

        thread = threading.Thread(target=attempt)
        thread.start()
        wait_for("a loop device", lambda: loops(service))
        # Only the process that reads has the mount, and no right but to read.
        options, rights = wait_for("a process that reads it", lambda: reader(service))
        assert {"ro", "nosuid", "nodev", "noexec"} <= options
        assert rights == 1 << 2, "CAP_DAC_READ_SEARCH"
        assert str(service.state_dir / "images/tmp") not in Path("/proc/self/mountinfo").read_text()
        service.kill()
        thread.join()
    service.start()
    wait_for("nothing to be left", lambda: nothing_is_left(service))
    assert service.client.get("/v1/images")["images"] == []


def loops(service) -> bool:
    """Whether an import has a loop device."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return any(str(service.state_dir / "images/tmp") in read(file) for file in files)


def reader(service) -> tuple[set[str], int] | None:
    """Mount options and effective capabilities of the process that reads what the kernel mounted."""
    for process in Path("/proc").glob("[0-9]*"):
        if '"Mounted"' in (command := read(process / "cmdline")) and str(service.state_dir) in command:
            mounts = [line.split() for line in read(process / "mountinfo").splitlines()]
            options = [set(fields[5].split(",")) for fields in mounts if "squashfs" in fields]
            rights = re.search(r"^CapEff:\s*(\w+)", read(process / "status"), re.MULTILINE)
            # Before it gave them up it had all.
            if len(mounts) == 1 and options and rights and (found := int(rights[1], 16)) < 1 << 20:
                return options[0], found
    return None


def read(file: Path) -> str:
    """A file that may go at any moment."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("vmdk", ("-O", "vmdk")),
        ("vmdk", ("-O", "vmdk", "-o", "subformat=streamOptimized")),
        ("vhd", ("-O", "vpc")),
        ("vhdx", ("-O", "vhdx")),
        ("vdi", ("-O", "vdi")),
    ],
)
def test_other_programs_disks_boot(service, tree, tmp_path, label, options):
    raw, path = tmp_path / "raw", tmp_path / "image"
    disklib.gpt(raw, [disklib.Partition(disklib.ROOT_X86_64, disklib.ext(tmp_path / "part", "12M", tree))])
    disklib.qemu_img("convert", "-f", "raw", *options, raw, path)
    with glance(path, visibility="shared", disk_format="raw") as endpoint, pytest.raises(Fault) as fault:
        fetch(service, endpoint)
    assert fault.value.code == "image-unacceptable"
    assert f"--disk-format {label}" in fault.value.detail
    with glance(path, visibility="shared", disk_format=label) as endpoint:
        image = fetch(service, endpoint)
    assert service.client.get(f"/v1/images/{image}")["format"] == label
    instance = service.spawn(image)
    instance.wait_console("started")
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert nothing_is_left(service)


#: Where distributions have their root, and what their fstab mounts on it.
SUBVOLUMES = {
    "Fedora": ("root", {"home": "home", "var": "var"}, None),
    "Ubuntu": ("@", {"home": "@home"}, None),
    "openSUSE": (
        "@/.snapshots/1/snapshot",
        {"var": "@/var", "srv": "@/srv", "opt": "@/opt", "usr/local": "@/usr/local"},
        "@/.snapshots/1/snapshot",
    ),
}


@pytest.mark.parametrize("layout", SUBVOLUMES)
def test_a_btrfs_is_taken_with_its_subvolumes(service, tree, tmp_path, layout):
    root, parts, default = SUBVOLUMES[layout]
    path, top = tmp_path / "btrfs", tmp_path / "top"
    disklib.run("truncate", "-s", "256M", path)
    disklib.run("mkfs.btrfs", "-q", "-m", "single", path)
    top.mkdir()
    disklib.run("mount", "-o", "loop", path, top)
    try:
        for subvolume in ["@", root, *parts.values()]:
            if not (top / subvolume).exists():
                (top / subvolume).parent.mkdir(parents=True, exist_ok=True)
                disklib.run("btrfs", "subvolume", "create", top / subvolume)
        disklib.run("cp", "-a", f"{tree}/.", top / root)
        fstab = ["LABEL=x / btrfs defaults 0 0"]
        for place, subvolume in parts.items():
            (top / root / place).mkdir(parents=True, exist_ok=True)
            (top / subvolume / "part").write_text(place)
            fstab.append(f"LABEL=x /{place} btrfs rw,subvol=/{subvolume} 0 0")
        (top / root / "etc/fstab").write_text("\n".join(fstab) + "\n")
        if default:
            disklib.run("btrfs", "subvolume", "set-default", top / default)
    finally:
        disklib.run("umount", top)
    with glance(path, visibility="public", disk_format="raw") as endpoint:
        image = fetch(service, endpoint)
    instance = service.spawn(image)
    instance.wait_console("started")
    for place in parts:
        assert instance.sh(f"cat /{place}/part") == place
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert nothing_is_left(service)
    # Without one of them it is half a system.
    disklib.run("mount", "-o", "loop,subvolid=5", path, top)
    try:
        gone = next(iter(parts.values()))
        disklib.run("mv", top / gone, top / f"{gone}-renamed")
    finally:
        disklib.run("umount", top)
    with glance(path, visibility="public", disk_format="raw") as endpoint, pytest.raises(Fault) as fault:
        fetch(service, endpoint)
    assert f"mounts /{next(iter(parts))} from LABEL=x" in fault.value.detail
    assert nothing_is_left(service)
