"""Images on their way from ImageSource: nothing is kept twice, and no image takes memory by its size."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import lzma
import os
import subprocess
import tarfile
import threading
import uuid
from pathlib import Path

import disklib
import imagelib
import pytest
from disklib import LINUX, Partition
from harness import Fault, ImageSource, cgroup_dir, wait_for

MIB = 1 << 20
#: What the service and its helpers may take, above what it has when idle.
MEMORY = 64 * MIB
#: Bytes of the images that are to be read within it.
LARGE = 320 * MIB


def root(**files: bytes) -> imagelib.Tree:
    """A tree that boots."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    for name, content in files.items():
        tree.file(f"usr/{name}", content)
    return tree


def images(service) -> Path:
    return service.state_dir / "images"


def left(service) -> list[str]:
    """What the store holds besides images that are there."""
    kept = {
        layer.removeprefix("sha256:")
        for image in service.client.get("/v1/images")["images"]
        for layer in image["layers"]
    }
    layers = set(os.listdir(images(service) / "layers/sha256"))
    return os.listdir(images(service) / "tmp") + sorted(layers - kept)


# -- streaming ----------------------------------------------------------------

PACKED = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout,
}


@pytest.mark.parametrize("packed", PACKED)
def test_a_root_file_system_is_unpacked_while_it_arrives(service, packed):
    content = PACKED[packed](root(early=os.urandom(4 * MIB), late=os.urandom(4 * MIB)).tar())
    right = {"algorithm": "sha512", "value": hashlib.sha512(content).hexdigest()}
    wrong = {"algorithm": "sha512", "value": "0" * 128}
    image, outcome = str(uuid.uuid4()), []
    with ImageSource(content, hold_at=len(content) - MIB) as glance:

        def fetch() -> None:
            try:
                service.client.put(f"/v1/images/{image}", glance.source(hash=wrong))
            except Fault as fault:
                outcome.append(fault)

        thread = threading.Thread(target=fetch)
        thread.start()
        early = "*/*/fs/usr/early"
        wait_for(
            "a file, before its image is there",
            lambda: [p for p in (images(service) / "tmp").glob(early) if p.stat().st_size == 4 * MIB],
        )
        assert not list((images(service) / "tmp").glob("*/content"))
        assert os.listdir(images(service) / "records") == []
        glance.release.set()
        thread.join()
        # What was unpacked of the wrong content is gone with it.
        assert [fault.code for fault in outcome] == ["image-corrupt"]
        assert left(service) == []
        service.client.put(f"/v1/images/{image}", glance.source(hash=right, size=len(content)))
    instance = service.spawn(image)
    instance.wait_console("started")
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def test_fifty_requests_for_an_image_fetch_it_once(service):
    content = gzip.compress(root(number=b"fifty").tar(), 1)
    image, outcomes = str(uuid.uuid4()), []
    with ImageSource(content, hold_at=len(content)) as glance:

        def fetch() -> None:
            body = glance.source(size=len(content))
            outcomes.append(service.client.put(f"/v1/images/{image}", body).status)

        threads = [threading.Thread(target=fetch) for _ in range(50)]
        for thread in threads:
            thread.start()
        wait_for("all of them to be under way", lambda: len(imports(service, image)) == 50)
        # Whoever waits for it sees how far it is.
        wait_for(
            "progress",
            lambda: [o for o in imports(service, image) if o["stage"] == "downloading" and o["progress"]],
        )
        glance.release.set()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 50
        assert len(glance.requests) == 1, glance.requests
    service.client.delete(f"/v1/images/{image}")


def imports(service, image: str) -> list[dict]:
    operations = service.client.get("/v1/operations")["operations"]
    return [o for o in operations if o["target"] == image]


# -- formats of ImageSource --------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """A file system as it is: what `ami` images are."""
    work = tmp_path_factory.mktemp("disk")
    with tarfile.open(fileobj=io.BytesIO(root(marker=b"meant").tar())) as archive:
        archive.extractall(work / "root", numeric_owner=True)
    return disklib.ext(work / "ami", "16M", work / "root", "-t", "ext3")


def boots(service, path: Path, form: str) -> None:
    image = service.import_image(path)
    assert service.client.get(f"/v1/images/{image}")["format"] == form
    instance = service.spawn(image)
    instance.wait_console("started")
    assert instance.sh("cat /usr/marker") == "meant"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert left(service) == []


def test_an_ami_boots(service, disk):
    boots(service, disk, "raw")


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_a_compressed_disk_image_boots_and_is_kept_once(service, disk, tmp_path, packed):
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    disklib.gpt(raw, [Partition(LINUX, disk)])
    disklib.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    path = tmp_path / "image"
    path.write_bytes(PACKED[packed](qcow2.read_bytes()))
    boots(service, path, "qcow2")


# -- memory -------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, Path]:
    """Images that unpack to many times the memory that there is."""
    work = tmp_path_factory.mktemp("large")
    line = b"0123456789abcdef" * 255 + b"0123456789abcde\n"
    data = work / "data"
    with data.open("wb") as file:
        for number in range(LARGE // len(line)):
            # No two blocks alike, and every one compressible.
            file.write(number.to_bytes(8, "little") + line[8:])
    tree = work / "tree"
    tree.mkdir()
    with tarfile.open(fileobj=io.BytesIO(root().tar())) as archive:
        archive.extractall(tree, numeric_owner=True)
    data.rename(tree / "data")
    plain = work / "root.tar"
    tar = ["tar", "--sort=name", "--numeric-owner", "-C", tree, "-cf"]
    subprocess.run([*tar, plain, "."], check=True)
    made = {
        "tarball": compressed(plain, work / "root.tar.zst"),
        "tarball, gzip": packed(plain, work / "root.tar.gz", "gzip", "-1"),
        "tarball, xz": packed(plain, work / "root.tar.xz", "xz", "-0"),
        "docker": archived(plain, work / "docker.tar"),
        "qcow2": work / "disk.qcow2",
        "vmdk": work / "disk.vmdk",
    }
    size = f"{LARGE // MIB + 64}M"
    raw = disklib.ext(work / "raw", size, tree, "-t", "ext4", "-O", "^has_journal")
    (tree / "data").unlink()
    plain.unlink()
    disklib.qemu_img(
        "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, made["qcow2"]
    )
    disklib.qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, made["vmdk"])
    raw.unlink()
    return made


def compressed(path: Path, to: Path, *options: str) -> Path:
    subprocess.run(["zstd", "-q", "-1", *options, path, "-o", to], check=True)
    return to


def packed(path: Path, to: Path, *program: str) -> Path:
    with to.open("wb") as file:
        subprocess.run([*program, "-c", path], stdout=file, check=True)
    return to


def archived(layer: Path, to: Path) -> Path:
    """The archive that `docker save` would write, its layer stored with gzip."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stored = packed(layer, to.with_suffix(".layer"), "gzip", "-1")
    config = json.loads(imagelib.image_config([b""], {"Cmd": ["/bin/sh"]}))
    config["rootfs"]["diff_ids"] = [f"sha256:{digest}"]
    manifest = [{"Config": "config.json", "RepoTags": ["large:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(to, "w") as archive:
        archive.add(stored, "layer.tar")
        for name, document in (("config.json", config), ("manifest.json", manifest)):
            text = json.dumps(document).encode()
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    stored.unlink()
    return to


@contextlib.contextmanager
def memory_bound(service):
    """A cgroup whose processes get so much and no more; what the service had before does not count.

    The kernel drops the page cache first, so that only what a process holds on to counts.
    """
    group = cgroup_dir("memory") / f"berth-memory-{os.getpid()}"
    group.mkdir()
    limit = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    (group / limit).write_text(str(MEMORY))
    home = group.parent / "cgroup.procs"
    pid = str(service.process.pid)
    where = Path(f"/proc/{pid}/cgroup").read_text()
    for line in where.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") or (number == "0" and limit == "memory.max"):
            home = group.parent / path.strip("/") / "cgroup.procs"
    (group / "cgroup.procs").write_text(pid)
    try:
        yield group
    finally:
        home.write_text(pid)
        for process in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                home.write_text(process)
        group.rmdir()


@pytest.mark.alone
def test_no_image_takes_memory_by_its_size(service, large, tmp_path):
    # What needs more is killed, which proves the bound: a window of 128 MiB, in full.
    noise = tmp_path / "noise.tar"
    tree = root()
    tree.file("usr/noise", os.urandom(140 * MIB))
    noise.write_bytes(tree.tar())
    greedy = compressed(noise, tmp_path / "greedy", "--long=27")
    with memory_bound(service):
        with pytest.raises((Fault, http.client.HTTPException)) as refused:
            service.import_image(greedy)
        assert getattr(refused.value, "code", "") == "resources-exhausted", refused.value
        for kind, path in large.items():
            with ImageSource(path) as glance:
                image = str(uuid.uuid4())
                if kind == "vmdk":
                    # Of one that comes by file, no Glance is asked what it is.
                    service.import_image(path, image)
                else:
                    size = path.stat().st_size
                    service.client.put(f"/v1/images/{image}", glance.source(name=kind, size=size))
            shown = service.client.get(f"/v1/images/{image}")
            assert shown["unpacked_size"] > LARGE, shown
            service.client.delete(f"/v1/images/{image}")
    assert left(service) == []
