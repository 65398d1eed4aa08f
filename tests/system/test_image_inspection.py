"""What an image would become is said before it is imported, and nothing of it stays."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import lzma
import os
import re
import subprocess
import tarfile
import threading
import uuid
from pathlib import Path
from unittest import mock

import disklib
import imagelib
import pytest
from disklib import ESP, LINUX, ROOT_X86_64, Partition
from harness import Fault, Service, wait_for
from harness.service import BERTH
from harness.source import ImageSource

INITTAB = "::sysinit:/bin/echo is up\n::respawn:-/bin/sh\n"
VAR = "4d21b016-b534-45c2-a9fb-5c16e091fd2d"
HOME = "933ac7e1-2eb4-4f13-b844-0e14e2aef915"


def inspect(service, path: Path, **fields) -> dict:
    """What the API says of a file."""
    body = {"source": {"type": "file", "path": str(path)}} | fields
    answer = service.client.post("/v1/images/inspect", body)
    assert answer.status == 200
    return answer.json()


def stored(service) -> set[str]:
    """All that lies in the store."""
    top = service.state_dir / "images"
    return {str(path.relative_to(top)) for path in top.rglob("*")}


@pytest.fixture(autouse=True)
def nothing_stays(service):
    """No layer, record, temporary file, loop device or mount of an inspection."""
    before = stored(service)
    yield
    assert stored(service) == before
    devices = subprocess.run(["losetup", "-n", "-O", "BACK-FILE", "-a"], capture_output=True, text=True)
    temporary = str(service.state_dir / "images/tmp")
    assert temporary not in devices.stdout + Path("/proc/self/mountinfo").read_text()


def system() -> imagelib.Tree:
    """A root file system that boots by BusyBox."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", INITTAB)
    return tree


def plain() -> imagelib.Tree:
    """One without any init: a shell alone."""
    tree = imagelib.Tree()
    tree.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    tree.symlink("bin/sh", "/bin/busybox")
    tree.directory("etc")
    return tree


def unpacked(tree: imagelib.Tree, directory: Path) -> Path:
    directory.mkdir()
    with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
        archive.extractall(directory, numeric_owner=True)
    return directory


def same_as_its_import(service, path: Path, found: dict) -> None:
    """An import comes to what the inspection said."""
    image = service.import_image(path)
    shown = service.client.get(f"/v1/images/{image}")
    service.client.delete(f"/v1/images/{image}")
    for field in ("format", "size", "hash", "config", "unpacked_size"):
        assert found[field] == shown[field], field
    assert [layer["digest"] for layer in found["layers"]] == shown["layers"]
    assert found.get("disk", {}).get("kept") == shown.get("disk")
    assert "refusal" not in found


# -- archives ---------------------------------------------------------------------


COMPRESSED = {
    None: lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout,
}


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_root_file_system(service, tmp_path, compression):
    path = tmp_path / "image"
    path.write_bytes(COMPRESSED[compression](system().tar()))
    found = inspect(service, path)
    assert (found["format"], found["compression"]) == ("rootfs-tar", compression)
    assert (found["role"], found["architecture"]) == ("system", os.uname().machine)
    assert found["config"]["inits"] == [{"command": ["/sbin/init"], "kind": "busybox"}]
    assert found["size"] == path.stat().st_size
    (layer,) = found["layers"]
    assert layer["entries"] == found["entries"] == len(system().members)
    same_as_its_import(service, path, found)


CONFIG = {
    "Entrypoint": ["/usr/bin/tini", "--"],
    "Cmd": ["/bin/sh", "-c", "exec sleep 9"],
    "Env": ["COLOUR=blue", "PATH=/bin"],
    "User": "33:29",
    "WorkingDir": "/data",
    "StopSignal": "SIGQUIT",
    "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
}


def layers() -> list[bytes]:
    base = plain()
    base.file("usr/bin/tini", "TINI_SUBREAPER", 0o755)
    base.file("data/replaced", "x" * 5000)
    upper = imagelib.Tree()
    upper.file("data/above", "y")
    upper.whiteout("data/replaced")
    return [base.tar(), upper.tar()]


@pytest.mark.parametrize(
    ("make", "name"),
    [(imagelib.docker_archive, "docker-archive"), (imagelib.oci_archive, "oci-archive")],
    ids=["docker", "OCI"],
)
def test_an_application(service, tmp_path, make, name):
    path = tmp_path / "image"
    path.write_bytes(make(layers(), CONFIG, "t:1"))
    found = inspect(service, path)
    assert (found["format"], found["role"], found["config"]["inits"]) == (name, "application", [])
    assert found["supervisors"] == [{"command": ["/usr/bin/tini"], "kind": "tini"}]
    config = found["config"]
    assert (config["entrypoint"], config["cmd"]) == (CONFIG["Entrypoint"], CONFIG["Cmd"])
    assert (config["user"], config["working_dir"], config["stop_signal"]) == ("33:29", "/data", "SIGQUIT")
    assert (config["env"], config["exposed_ports"]) == (CONFIG["Env"], ["53/udp", "80/tcp"])
    assert len(found["layers"]) == 2
    assert all(layer["packed_size"] > 0 for layer in found["layers"])
    assert found["unpacked_size"] == sum(layer["unpacked_size"] for layer in found["layers"])
    same_as_its_import(service, path, found)


def test_what_an_upper_layer_hides_is_no_init(service, tmp_path):
    """The layers lie aside and are looked at as an instance would see them."""
    base, upper, opaque = plain(), imagelib.Tree(), imagelib.Tree()
    base.symlink("sbin/init", "/bin/busybox")
    base.file("etc/init", "systemd.crash_chvt", 0o755)
    upper.whiteout("sbin/init")
    opaque.file("etc/.wh..wh..opq", "")
    path = tmp_path / "image"
    path.write_bytes(imagelib.docker_archive([base.tar(), upper.tar(), opaque.tar()], {}, "t:1"))
    found = inspect(service, path)
    assert (found["config"]["inits"], found["role"]) == ([], "application")
    same_as_its_import(service, path, found)


INITS = {
    "systemd": ("usr/lib/systemd/systemd", "systemd.crash_chvt"),
    "sysvinit": ("sbin/init", "INIT: version 3.06"),
    "openrc": ("sbin/openrc-init", "x"),
    "runit": ("sbin/runit-init", "/run/runit.stopit"),
    "busybox": ("linuxrc", ""),
    "s6": ("sbin/init", "#!/bin/sh\nexec s6-svscan /run/service\n"),
    "dinit": ("sbin/dinit", "/etc/dinit/environment"),
    "finit": ("sbin/finit", "/etc/finit.conf"),
    "tini": ("sbin/init", "TINI_SUBREAPER"),
    "dumb-init": ("sbin/init", "[dumb-init] Received signal"),
    "catatonit": ("init", "catatonit"),
}


@pytest.mark.parametrize("kind", INITS)
def test_which_init_it_is(service, tmp_path, kind):
    name, content = INITS[kind]
    tree = plain()
    if kind == "busybox":
        tree.symlink("sbin/init", "/bin/busybox")
        name = "sbin/init"
    else:
        tree.file(name, content, 0o755)
    path = tmp_path / "image"
    path.write_bytes(tree.tar())
    found = inspect(service, path)
    watches = kind in ("tini", "dumb-init", "catatonit")
    programs = found["supervisors"] if watches else found["config"]["inits"]
    assert programs == [{"command": [f"/{name}"], "kind": kind}]
    assert found["role"] == ("application" if watches else "system")
    assert (found["config"]["inits"] == []) is watches


def test_the_disk_in_an_archive(service, tmp_path):
    disk = disklib.ext(tmp_path / "disk.raw", "12M", unpacked(system(), tmp_path / "tree"), "-t", "ext4")
    path = tmp_path / "image"
    subprocess.run(["tar", "-c", "-z", "-f", path, "-C", tmp_path, disk.name], check=True)
    found = inspect(service, path)
    assert (found["format"], found["compression"], found["member"]) == ("raw", "gzip", "disk.raw")
    (partition,) = found["disk"]["partitions"]
    assert (partition["number"], partition["place"], partition["reason"]) == (None, "/", "only")
    same_as_its_import(service, path, found)


# -- disks ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """A disk as clouds have them: boot loader, root, and parts of it by fstab and by type."""
    work = tmp_path_factory.mktemp("disk")
    tree = system()
    tree.file("etc/fstab", "LABEL=meant / ext4\nLABEL=logs /var/log ext4\nLABEL=gone /srv ext4 nofail\n")
    root = unpacked(tree, work / "root")
    for place in ("var/log", "home", "srv"):
        (root / place).mkdir(parents=True, exist_ok=True)
    (work / "part/user").mkdir(parents=True)
    logs = disklib.ext(work / "logs", "4M", work / "part", "-t", "ext4", "-L", "logs")
    home = disklib.ext(work / "home", "4M", work / "part", "-t", "ext4", "-L", "home")
    meant = disklib.ext(work / "meant", "12M", root, "-t", "ext4", "-L", "meant")
    esp = b"\xeb\x3c\x90mkfs.fat".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)
    rows = [
        Partition(ESP, esp, name="esp"),
        Partition(ROOT_X86_64, meant),
        Partition(LINUX, logs),
        Partition(HOME, home),
    ]
    return disklib.gpt(work / "disk", rows)


FORMATS = {
    "raw": [],
    "qcow2": ["-c"],
    "vmdk": ["-o", "subformat=streamOptimized"],
    "vhdx": [],
    "vdi": [],
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk(service, disk, tmp_path, name):
    path = tmp_path / "image"
    disklib.qemu_img("convert", "-f", "raw", "-O", name, *FORMATS[name], disk, path)
    found = inspect(service, path)
    assert (found["format"], found["role"]) == (name, "system")
    seen = found["disk"]
    assert seen["size"] == disk.stat().st_size
    told = [(p["number"], p["purpose"], p["label"], p["place"], p["reason"]) for p in seen["partitions"]]
    assert told == [
        (1, "EFI system", "", None, None),
        (2, "root", "meant", "/", "type"),
        (3, "Linux", "logs", "/var/log", "fstab"),
        (4, "/home", "home", "/home", "type"),
    ]
    assert seen["partitions"][0]["name"] == "esp"
    assert seen["partitions"][1]["type"] == ROOT_X86_64
    assert seen["partitions"][1]["content"] == "an ext2/3/4 file system"
    assert seen["mounts"] == [
        {"source": "LABEL=gone", "place": "/srv"},
        {"source": "LABEL=logs", "place": "/var/log", "partition": 3},
    ]
    same_as_its_import(service, path, found)


def test_a_file_system_of_the_kernels_goes_the_way_that_the_operator_allows(
    service, tmp_path, runtime, lxcfs
):
    path = tmp_path / "image"
    disklib.run("mksquashfs", unpacked(system(), tmp_path / "tree"), path, "-quiet", "-no-progress")
    found = inspect(service, path)
    assert 'images.kernel_mounts = "none"' in found["refusal"]["detail"]
    assert found["disk"]["partitions"][0]["content"] == "a SquashFS file system"
    open_one = Service(runtime, lxcfs.mount_point, settings={"images": {"kernel_mounts": "all"}})
    try:
        open_one.start()
        before = stored(open_one)
        found = inspect(open_one, path)
        assert (found["role"], found["disk"]["kept"]["stored"]) == ("system", 0)
        assert stored(open_one) == before
        same_as_its_import(open_one, path, found)
    finally:
        left = open_one.close()
    assert not left, "\n".join(left)


def test_the_subvolumes_of_a_btrfs(tmp_path, runtime, lxcfs):
    path, mount = tmp_path / "image", tmp_path / "mount"
    tree = system()
    tree.file("etc/fstab", "UUID=1 / btrfs subvol=@\nUUID=1 /home btrfs rw,subvol=@home\n")
    mount.mkdir()
    path.touch()
    os.truncate(path, 128 << 20)
    disklib.run("mkfs.btrfs", "-q", "-L", "meant", path)
    disklib.run("mount", "-o", "loop", path, mount)
    try:
        disklib.run("btrfs", "subvolume", "create", mount / "@")
        disklib.run("btrfs", "subvolume", "create", mount / "@home")
        with tarfile.open(fileobj=io.BytesIO(tree.tar())) as archive:
            archive.extractall(mount / "@", numeric_owner=True)
        (mount / "@/home").mkdir(exist_ok=True)
    finally:
        disklib.run("umount", mount)
    service = Service(runtime, lxcfs.mount_point, settings={"images": {"kernel_mounts": "all"}})
    try:
        service.start()
        found = inspect(service, path)
        (partition,) = found["disk"]["partitions"]
        assert (partition["label"], partition["place"]) == ("meant", "/")
        assert found["disk"]["mounts"] == [{"source": "UUID=1", "place": "/home", "subvolume": "@home"}]
        same_as_its_import(service, path, found)
    finally:
        left = service.close()
    assert not left, "\n".join(left)


# -- refusals ---------------------------------------------------------------------

FOREIGN = b"\x7fELF\x02\x02\x01".ljust(18, b"\0") + b"\0\x16" + bytes(44)


def of_files(**files: bytes) -> bytes:
    tree = imagelib.Tree()
    for name, content in files.items():
        tree.file(name.replace("__", "/"), content, 0o755)
    return tree.tar()


def two_roots(work: Path) -> bytes:
    tree = unpacked(system(), work / "tree")
    one = disklib.ext(work / "one", "12M", tree, "-t", "ext4")
    return disklib.gpt(work / "disk", [Partition(LINUX, one), Partition(LINUX, one)]).read_bytes()


def half_a_system(work: Path) -> bytes:
    tree = system()
    tree.file("etc/fstab", "LABEL=root / ext4\n/dev/mapper/vg-var /var ext4\n")
    root = disklib.ext(work / "root", "12M", unpacked(tree, work / "tree"), "-t", "ext4", "-L", "root")
    return disklib.gpt(work / "disk", [Partition(LINUX, root)]).read_bytes()


def data_alone(work: Path) -> bytes:
    (work / "data/photos").mkdir(parents=True)
    return disklib.ext(work / "disk", "4M", work / "data", "-t", "ext4").read_bytes()


def for_another_machine(_: Path) -> bytes:
    config = imagelib.image_config
    foreign = mock.patch.object(
        imagelib, "image_config", lambda *of: config(*of).replace(b'"amd64"', b'"s390x"')
    )
    with foreign:
        return imagelib.docker_archive(layers(), CONFIG, "t:1")


#: How each is made, and a part of the words.
REFUSED = {
    "an empty file": (lambda _: b"", "empty, without a single byte"),
    "no image": (lambda _: b"hello", "nothing that is known"),
    "bzip2": (lambda _: b"BZh9", "compress it with gzip, xz or zstd"),
    "LVM": (lambda _: bytes(512) + b"LABELONE" + bytes(4096), "a physical volume of LVM"),
    "an OVA without a disk": (lambda _: of_files(**{"vm.ovf": b"x"}), "an OVA"),
    "another archive": (lambda _: of_files(readme=b"x"), "without a docker-archive's manifest.json"),
    "another machine's programs": (
        lambda _: of_files(bin__sh=FOREIGN, etc__x=b""),
        "its /bin/sh is a program for s390x",
    ),
    "another machine's config": (for_another_machine, "it is for s390x, this host is"),
    "a cut archive": (lambda _: gzip.compress(system().tar())[:-9], "decompressing gzip"),
    "garbage after gzip": (
        lambda _: gzip.compress(system().tar()) + b"garbage",
        "neither gzip nor zeros alone",
    ),
    "two roots": (two_roots, "certainly its root file system"),
    "half a system": (half_a_system, "its fstab mounts /var from /dev/mapper/vg-var"),
    "no system": (data_alone, "has no init"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_told_in_the_imports_own_words(service, tmp_path, name):
    path = tmp_path / "image"
    make, words = REFUSED[name]
    path.write_bytes(make(tmp_path))
    found = inspect(service, path)
    assert words in found["refusal"]["detail"]
    with pytest.raises(Fault) as fault:
        service.import_image(path)
    assert found["refusal"] == {"code": fault.value.code, "detail": fault.value.detail}
    assert found["role"] is None
    # What was found before that is told all the same.
    if name in ("two roots", "half a system"):
        assert found["disk"]["partitions"][0]["content"] == "an ext2/3/4 file system"
    if name == "half a system":
        assert found["disk"]["partitions"][0]["place"] == "/"
        assert found["disk"]["mounts"] == [{"source": "/dev/mapper/vg-var", "place": "/var"}]
    if name == "another machine's programs":
        assert (found["architecture"], len(found["layers"])) == ("s390x", 1)
    if name == "another machine's config":
        assert found["format"] == "docker-archive"


def test_the_hash_and_the_size_that_are_asked_for(service, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(system().tar())
    wrong = {"algorithm": "sha256", "value": "0" * 64}
    assert inspect(service, path, hash=wrong)["refusal"]["code"] == "image-corrupt"
    assert inspect(service, path, size=7)["refusal"]["code"] == "image-corrupt"
    assert "refusal" not in inspect(service, path, size=path.stat().st_size)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"source": {"type": "file", "path": "/does/not/exist"}}, "source.path"),
        ({"source": {"type": "file", "path": "/etc"}}, "source.path"),
        ({"source": {"type": "glance", "endpoint": "http://127.0.0.1:1", "token": "t"}}, "id"),
        ({"source": {"type": "file", "path": "/etc/passwd"}, "hash": {"algorithm": "md5", "value": "0"}},
         "hash.algorithm"),
        ({"source": {"type": "file", "path": "/etc/passwd"}, "name": "x"}, None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_request_is_no_refusal(service, fields, field):
    with pytest.raises(Fault) as fault:
        service.client.post("/v1/images/inspect", fields)
    assert (fault.value.status, fault.value.code) == (400, "invalid-input")
    assert field is None or fault.value.field == field


def test_limits_are_the_imports(tmp_path, runtime, lxcfs):
    path = tmp_path / "image"
    path.write_bytes(system().tar())
    for key, value in (("max_entries", 5), ("max_unpacked_bytes", 1 << 20), ("max_bytes", 1 << 20)):
        service = Service(runtime, lxcfs.mount_point, settings={"images": {key: value}})
        try:
            service.start()
            assert f"images.{key}" in inspect(service, path)["refusal"]["detail"]
            assert not list((service.state_dir / "images/tmp").iterdir())
        finally:
            left = service.close()
        assert not left, "\n".join(left)


# -- Glance, the store, the command line --------------------------------------------


def test_glances_image_by_its_own_address(service):
    with ImageSource(system().tar()) as source:
        image = str(uuid.uuid4())
        found = service.client.post("/v1/images/inspect", source.source(id=image)).json()
        assert (found["format"], found["role"]) == ("rootfs-tar", "system")
        assert source.requests == [f"/v2/images/{image}/file"]
    assert "image.inspect" in service.berth("operations")


def test_a_layer_that_is_in_the_store_stays_only_as_long_as_its_image(service, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(imagelib.docker_archive(layers(), CONFIG, "t:1"))
    fresh = inspect(service, path)
    image = service.import_image(path)
    before = stored(service)
    assert inspect(service, path) == fresh
    assert stored(service) == before
    service.client.delete(f"/v1/images/{image}")


def test_one_that_is_killed_or_outlived_by_nobody_leaves_nothing(service):
    with ImageSource(system().tar(), hold_at=1_800_000) as source:

        def ask() -> None:
            with contextlib.suppress(Fault, OSError, http.client.HTTPException):
                service.client.post("/v1/images/inspect", source.source(id=str(uuid.uuid4())))

        asking = threading.Thread(target=ask)
        asking.start()
        temporary = service.state_dir / "images/tmp"
        wait_for("it to be under way", lambda: any(path.is_dir() for path in temporary.glob("*/*/fs")))
        service.kill()
        asking.join()
        assert list(temporary.iterdir()), "nothing was there to be removed"
        service.start()
        assert not list(temporary.iterdir())
        # A command that is killed leaves its inspection to the service, which ends it.
        before = len(source.requests)
        command = [BERTH, "image", "inspect", "--socket", service.socket, "--id", str(uuid.uuid4())]
        endpoint = source.source()["source"]["endpoint"]
        asking = subprocess.Popen([*command, endpoint], env=os.environ | {"OS_TOKEN": "t"})
        wait_for("it to be asked for", lambda: len(source.requests) > before)
        asking.kill()
        asking.wait()
        source.release.set()
        wait_for("it to end", lambda: not list(temporary.iterdir()))


def test_the_command_line_tells_people_and_programs(service, disk, tmp_path):
    text = service.berth("image inspect", str(disk))
    for line in (
        r"format +raw",
        r"accepted +yes",
        r"role +system, boots an init",
        r"init +/sbin/init, busybox",
        r"2 .* root +- +meant +an ext2/3/4 file system +/, by type",
        r"LABEL=logs +/var/log +partition 3",
        r"LABEL=gone +/srv +not there",
    ):
        assert any(re.fullmatch(line, shown) for shown in text.splitlines()), f"{line}\n{text}"
    path = tmp_path / "image"
    path.write_bytes(b"BZh9")
    refused = service.run_berth("image inspect", str(path))
    assert re.search(r"^accepted +no$", refused.stdout, re.M)
    assert "compress it with gzip, xz or zstd" in refused.stderr
    imported = service.run_berth("image import", str(path))
    assert (refused.returncode, refused.stderr) == (imported.returncode, imported.stderr) != (0, "")
    parsed = service.run_berth("image inspect", "--json", str(path))
    assert json.loads(parsed.stdout)["refusal"]["code"] == "image-unacceptable"
    assert (parsed.returncode, parsed.stderr) == (refused.returncode, refused.stderr)


def test_without_a_service_it_says_so_as_the_other_commands_do(tmp_path):
    command = [BERTH, "image", "--socket", tmp_path / "none"]
    said = [
        subprocess.run([*command, *words], capture_output=True, text=True)
        for words in (["inspect", "/etc/passwd"], ["list"])
    ]
    assert said[0].stderr == said[1].stderr and "the service does not run" in said[0].stderr
    assert said[0].returncode == said[1].returncode == 1
