"""The image store through kill -9, a full disk and altered layers: whole images, or none."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import disklib
import imagelib
import pytest
from harness import Fault, ImageSource, Service, small_file_system, wait_for

MIB = 1 << 20
KILLS = 12
DATA = 6 * MIB


@dataclass
class Image:
    """An image, and what of it shows that it is whole."""

    id: str
    content: bytes
    digest: str

    @staticmethod
    def of(pack) -> Image:
        data = os.urandom(DATA)
        tree = imagelib.busybox_tree()
        tree.symlink("sbin/init", "/bin/busybox")
        tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
        tree.file("usr/data", data)
        return Image(str(uuid.uuid4()), pack(tree), hashlib.sha256(data).hexdigest())

    def fetch(self, service: Service) -> None:
        with ImageSource(self.content) as glance:
            value = hashlib.sha512(self.content).hexdigest()
            service.client.put(
                f"/v1/images/{self.id}", glance.source(hash={"algorithm": "sha512", "value": value})
            )


def archive(tree: imagelib.Tree) -> bytes:
    upper = imagelib.Tree()
    upper.file("etc/upper", os.urandom(MIB))
    return imagelib.docker_archive([tree.tar(), upper.tar()], {"Cmd": ["/sbin/init"]}, "t:1")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Makes a disk image of a tree."""
    work = tmp_path_factory.mktemp("disk")

    def make(tree: imagelib.Tree) -> bytes:
        root = work / str(uuid.uuid4())
        root.mkdir()
        subprocess.run(["tar", "-xf", "-", "-C", root], input=tree.tar(), check=True)
        return disklib.ext(work / "disk", "16M", root, "-t", "ext4").read_bytes()

    return make


@pytest.fixture
def busybox_root(tmp_path):
    """Its tree of files."""
    root, tree = tmp_path / "root", imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    root.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", root], input=tree.tar(), check=True)
    return root


@pytest.fixture(scope="module")
def settings():
    """Room for one image: every import removes the one before."""
    return {"images": {"cache_bytes": 2 * DATA}}


def roots(service: Service, image: str) -> list[Path]:
    layers = service.client.get(f"/v1/images/{image}")["layers"]
    store = service.state_dir / "images/layers/sha256"
    return [store / layer.removeprefix("sha256:") / "fs" for layer in layers]


def check_store(service: Service, images: list[Image]) -> int:
    """That there are whole images and nothing else; gives how many."""
    store = service.state_dir / "images"
    shown = service.client.get("/v1/images")["images"]
    assert os.listdir(store / "tmp") == []
    assert sorted(os.listdir(store / "records")) == sorted(f"{image['id']}.json" for image in shown)
    layers = {layer.removeprefix("sha256:") for image in shown for layer in image["layers"]}
    assert set(os.listdir(store / "layers/sha256")) == layers
    for image in images:
        if image.id in (one["id"] for one in shown):
            (data,) = [p / "usr/data" for p in roots(service, image.id) if (p / "usr/data").exists()]
            assert hashlib.sha256(data.read_bytes()).hexdigest() == image.digest
    return len(shown)


def test_a_killed_import_leaves_nothing_and_can_be_repeated(service, disk, capsys):
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    with capsys.disabled():
        print(f"\n    seed {seed}", flush=True)
    images = [
        Image.of(lambda tree: tree.tar()),
        Image.of(lambda tree: gzip.compress(tree.tar(), 1)),
        Image.of(archive),
        Image.of(disk),
    ]
    started = time.monotonic()
    images[0].fetch(service)
    lasts = time.monotonic() - started
    cut, window = 0, 3 * lasts
    for number in range(KILLS):
        # Each import removes another image at its end.
        under_way = [images[(number + n) % len(images)] for n in range(2)]
        failed: list[str] = []

        def fetch(image: Image, failed: list[str] = failed) -> None:
            try:
                image.fetch(service)
            except Exception as error:  # http.client and sockets: the service is gone
                failed.append(repr(error))

        threads = [threading.Thread(target=fetch, args=[image]) for image in under_way]
        for thread in threads:
            thread.start()
        time.sleep(dice.random() * window)
        service.kill()
        for thread in threads:
            thread.join()
        cut += len(failed)
        # Sooner, when the imports were quicker.
        window = 3 * lasts if failed else window / 2
        service.start()
        check_store(service, images)
    assert cut > 0, "no kill met an import"
    for image in images:
        image.fetch(service)
        check_store(service, images)
    instance = service.spawn(images[-1].id)
    instance.wait_console("started")
    assert instance.sh("sha256sum /usr/data").split()[0] == images[-1].digest
    # What an instance stands on makes no room.
    images[0].fetch(service)
    images[1].fetch(service)
    service.client.get(f"/v1/images/{images[-1].id}")
    assert instance.sh("sha256sum /usr/data").split()[0] == images[-1].digest
    instance.delete()


def test_an_altered_layer_is_fetched_again_from_glance(service):
    image = Image.of(lambda tree: tree.tar())
    image.fetch(service)

    def torn(root: Path) -> None:
        os.truncate(root / "usr/data", DATA // 2)

    def lost(root: Path) -> None:
        (root / "usr/data").unlink()

    def half(root: Path) -> None:
        (root.parent / "layer.json").unlink()

    for damage in (torn, lost, half):
        (root,) = roots(service, image.id)
        damage(root)
        service.kill()
        service.start()
        with pytest.raises(Fault) as fault:
            service.client.get(f"/v1/images/{image.id}")
        assert fault.value.code == "image-not-found", damage
        image.fetch(service)
        assert image.id in [one["id"] for one in service.client.get("/v1/images")["images"]]
        check_store(service, [image])


def test_an_image_that_nobody_uses_goes_with_its_age_and_no_other(lxcfs, runtime):
    service = Service(runtime, lxcfs.mount_point, settings={"images": {"unused_seconds": 2}})
    try:
        service.start()
        used, unused = (Image.of(lambda tree: gzip.compress(tree.tar(), 1)) for _ in range(2))
        used.fetch(service)
        instance = service.define(used.id)
        unused.fetch(service)
        wait_for(
            "the unused one to go",
            lambda: [i["id"] for i in service.client.get("/v1/images")["images"]] == [used.id],
        )
        instance.action("start")
        assert instance.sh("sha256sum /usr/data").split()[0] == used.digest
        service.kill()
        service.start()
        check_store(service, [used])
        assert [i["users"] for i in service.client.get("/v1/images")["images"]] == [[instance.id]]
    finally:
        left = service.close()
    assert not left, "\n".join(left)


@pytest.fixture
def small_disk(tmp_path):
    with small_file_system(tmp_path / "disk", 128) as base:
        yield base


def test_a_disk_of_holes_takes_no_more_than_its_data(runtime, lxcfs, tmp_path, busybox_root):
    file = disklib.ext(tmp_path / "disk.raw", "3G", busybox_root, "-t", "ext4")
    with small_file_system(tmp_path / "small", 400) as base:
        service = Service(runtime, lxcfs.mount_point, base=base / "b")
        try:
            service.start()
            with ImageSource(file) as glance:
                images = [str(uuid.uuid4()), service.import_image(file)]
                source = glance.source(size=file.stat().st_size)
                service.client.put(f"/v1/images/{images[0]}", source)
            # What lies on the disk as it comes is refused before it does.
            archive = tmp_path / "root.tar"
            subprocess.run(["tar", "-cf", archive, "-C", busybox_root, "."], check=True)
            with archive.open("r+b") as content:
                content.truncate(1 << 30)
            with pytest.raises(Fault) as fault:
                service.import_image(archive)
            assert (fault.value.status, fault.value.code) == (507, "resources-exhausted")
            assert fault.value.detail.startswith("the image takes 1024 MiB"), fault.value.detail
            for image in images:
                shown = service.client.get(f"/v1/images/{image}")
                assert (shown["size"], shown["disk"]["size"]) == (3 << 30, 3 << 30)
                service.spawn(image, flavor={"root_gb": 4}).delete()
        finally:
            left = service.close()
    assert not left, "\n".join(left)


def test_an_import_into_a_full_disk_leaves_nothing_and_names_the_remedy(runtime, lxcfs, small_disk, disk):
    storage = {"reserved_host_disk_mb": 0}
    service = Service(runtime, lxcfs.mount_point, base=small_disk / "b", settings={"storage": storage})
    service.run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", service.run_dir], check=True)
    filler = small_disk / "filler"
    try:
        service.start()
        # From nothing at all to nearly enough; what is kept while it is read wants it twice.
        once = [0, MIB, DATA + MIB // 2]
        twice = [*once, 2 * DATA - MIB]
        plans = [(lambda tree: tree.tar(), once), (archive, twice), (disk, twice)]
        images = [Image.of(pack) for pack, _ in plans]
        for image, (_, space) in zip(images, plans, strict=True):
            for free in space:
                leave(filler, free)
                with pytest.raises(Fault) as fault:
                    image.fetch(service)
                assert (fault.value.status, fault.value.code) == (507, "resources-exhausted"), free
                assert "berth image delete" in str(fault.value)
                assert check_store(service, images) == 0
        # The disk is full, and the service starts.
        leave(filler, 0)
        service.kill()
        service.start()
        filler.unlink()
        for image in images:
            image.fetch(service)
        assert check_store(service, images) == len(images)
    finally:
        filler.unlink(missing_ok=True)
        left = service.close()
    assert not left, "\n".join(left)


def leave(filler: Path, free: int) -> None:
    """Takes all of the file system but so much."""
    filler.unlink(missing_ok=True)
    os.sync()
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(b"\xaa" * size)
            except OSError:
                continue
        os.fsync(file.fileno())
        file.truncate(file.tell() - free)
        os.fsync(file.fileno())
