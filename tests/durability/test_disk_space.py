"""Disk space is promised once: nobody's snapshots, images and resizes take a neighbour's."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from pathlib import Path

import imagelib
import pytest
from harness import Fault, Instance, Service, small_file_system, wait_for
from harness.client import Client
from harness.program import compiled, injected

pytestmark = pytest.mark.alone

MIB = 1 << 20
#: Two disks of 1 GiB, and what others may take for a while.
DISK = 2600
RESERVE = 64
#: What the file system in it takes of a disk.
OWN = 80


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> dict:
    program = compiled(Path(__file__).with_name("writer.c"), tmp_path_factory.mktemp("writer"))
    return injected(program, "/bin/writer")


@pytest.fixture
def small(runtime, lxcfs, tmp_path):
    """A service whose state has a small file system of its own."""
    with small_file_system(tmp_path / "disk", DISK) as base:
        storage = {"disk_allocation_ratio": 1.0, "reserved_host_disk_mb": RESERVE}
        service = Service(runtime, lxcfs.mount_point, base=base / "b", settings={"storage": storage})
        try:
            service.start()
            yield service
        finally:
            left = service.close()
    assert not left, "\n".join(left)


class Taker(threading.Thread):
    """Asks for disk space again and again."""

    def __init__(self, ended: threading.Event, ask):
        super().__init__(daemon=True)
        self.ended, self.ask = ended, ask
        self.given = 0
        self.refused: list[Fault] = []
        self.unexpected: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self.ask()
                self.given += 1
            except Fault as fault:
                self.refused.append(fault)
            except Exception as error:
                self.unexpected.append(repr(error))
                return


NOISE = os.urandom(90 * MIB)


def image_of(directory: Path) -> Path:
    """A new image, of which the store has no layer yet."""
    tree = imagelib.busybox_tree()
    tree.file("usr/data", uuid.uuid4().bytes + NOISE)
    file = directory / f"{uuid.uuid4()}.tar"
    file.write_bytes(tree.tar())
    return file


def free(service: Service) -> int:
    found = os.statvfs(service.state_dir)
    return found.f_bavail * found.f_frsize


def test_a_neighbour_gets_all_that_it_was_promised(small, busybox_file, writer, glance, tmp_path):
    image = small.import_image(busybox_file)
    neighbour = small.spawn(image, files=[writer])
    other = small.spawn(image)
    other.sh("dd if=/dev/urandom of=/data bs=1M count=120 conv=fsync 2>/dev/null")
    flavor = other.get()["flavor"]
    before = len(small.client.get("/v1/images")["images"])

    def resize(keep: bool) -> None:
        body = {"flavor": flavor | {"root_gb": 2}, "keep": keep}
        other.action("resize", **body | ({"timeout": 0} if keep else {}))

    def import_one() -> None:
        # Kept, so that less and less is left.
        file = image_of(tmp_path)
        try:
            Client(small.socket).put(
                f"/v1/images/{uuid.uuid4()}",
                {"name": "more", "source": {"type": "file", "path": str(file)}},
            )
        finally:
            file.unlink()

    def import_unsized() -> None:
        # Nothing says how large it becomes.
        packed = tmp_path / "packed.tar.gz"
        if not packed.exists():
            tree = imagelib.busybox_tree()
            tree.file("usr/zeros", b"\1" * (300 * MIB))
            (tmp_path / "plain").write_bytes(tree.tar())
            with packed.open("wb") as out:
                subprocess.run(["gzip", "-1", "-c", tmp_path / "plain"], stdout=out, check=True)
        Client(small.socket).put(
            f"/v1/images/{uuid.uuid4()}",
            {"name": "packed", "source": {"type": "file", "path": str(packed)}},
        )

    ended = threading.Event()
    takers = [
        Taker(ended, lambda: other.action("snapshot", **glance.to(str(uuid.uuid4())))),
        Taker(ended, import_one),
        Taker(ended, import_unsized),
        Taker(ended, lambda: resize(keep=False)),
        Taker(ended, lambda: small.define(image)),
    ]
    for taker in takers:
        taker.start()
    try:
        # What was left for them is taken: from here on each byte more would be the neighbour's.
        wait_for("each to be refused", lambda: all(t.refused or not t.is_alive() for t in takers), 180)
        total = int(neighbour.sh("df -m / | awk 'NR > 1 { print $(NF-2) }'"))
        assert total > 1024 - OWN - 60
        result = neighbour.run("/bin/writer", "/all", str(total - 8), timeout=900)
        assert (result.returncode, result.stdout) == (0, "written\n"), result.stdout + result.stderr
    finally:
        ended.set()
        for taker in takers:
            taker.join(120)
    assert [t.unexpected for t in takers] == [[]] * len(takers)
    for taker in takers:
        codes = {(fault.status, fault.code) for fault in taker.refused}
        assert codes == {(507, "resources-exhausted")}, taker.refused
        # What the kernel says is not what the admission says.
        assert all("promised to instances" in fault.detail for fault in taker.refused), taker.refused
    # As much as there was for all was given.
    assert takers[1].given >= 1
    with pytest.raises(Fault) as fault:
        resize(keep=True)
    assert fault.value.code == "resources-exhausted", fault.value
    assert other.state == neighbour.state == "RUNNING"
    # Its file system took no harm: it is not read-only, and writes on.
    result = neighbour.run("/bin/writer", "/all", "300", timeout=300)
    assert result.stdout == "written\n"
    assert other.sh("ls -l /data | awk '{ print $5 }'") == str(120 * MIB)
    # Nothing of what was refused is left.
    assert len(small.client.get("/v1/images")["images"]) == before + takers[1].given + takers[2].given
    assert os.listdir(small.state_dir / "images/tmp") == []
    assert {i["id"] for i in small.instances()} == {neighbour.id, other.id}
    for instance in (neighbour, other):
        disks = {p.name for p in (small.state_dir / "instances" / instance.id).iterdir()}
        assert not disks & {"root.copy", "root.kept", "root.disk.new", "ephemeral.disk"}, disks
    assert other.get()["flavor"] == flavor
    assert free(small) >= RESERVE * MIB // 2


def test_what_is_promised_is_known_again_and_shown_to_nova(small, busybox_file):
    image = small.import_image(busybox_file)

    def shown() -> dict:
        return small.client.get("/v1/host")["inventory"]

    assert shown()["local_gb"] - shown()["disk_reserved_gb"] in (1, 2)
    reserved = shown()["disk_reserved_gb"]
    first = small.define(image)
    second = small.spawn(image)
    for _ in range(2):
        with pytest.raises(Fault) as fault:
            small.define(image)
        assert (fault.value.status, fault.value.code) == (507, "resources-exhausted")
        assert "storage.disk_allocation_ratio" in fault.value.detail
        # Disks take of what is theirs.
        assert shown()["disk_reserved_gb"] == reserved
        small.kill()
        small.start()
    first.delete()
    third = small.define(image)
    # The operator's word lets more be promised than there is.
    small.settings["storage"]["disk_allocation_ratio"] = 2.0
    small.stop()
    small.start()
    fourth = Instance(small, small.define(image).id)
    for instance in (second, third, fourth):
        instance.delete()
