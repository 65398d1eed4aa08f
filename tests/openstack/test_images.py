"""Images that go round: a server of one, images of that server, and servers of those."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from typing import Any

import disklib
import pytest
from cloud.place import ROOT
from helpers import eventually, server, ssh

SAID = "cat /root/said"


@pytest.fixture(scope="module")
def disk(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tests' image as a partitioned disk, in Glance."""
    work = tmp_path_factory.mktemp("disk")
    tree = work / "tree"
    with tarfile.open(ROOT / "target/images/tempest.tar.gz") as archive:
        archive.extractall(tree, numeric_owner=True)
    root = disklib.ext(work / "root", "96M", tree, "-t", "ext4")
    raw = disklib.gpt(work / "raw", [disklib.Partition(disklib.ROOT_X86_64, root)])
    qcow2 = work / "qcow2"
    disklib.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, qcow2)
    made = demo.image.create_image(
        name="disk", disk_format="qcow2", container_format="bare", data=qcow2.read_bytes()
    )
    yield made
    demo.image.delete_image(made)


@contextlib.contextmanager
def snapshot(demo: Any, made: Any, name: str) -> Iterator[Any]:
    image = demo.compute.create_server_image(made, name, wait=True, timeout=300)
    try:
        yield demo.image.get_image(image.id)
    finally:
        demo.image.delete_image(image.id)


def settle(demo: Any, made: Any, status: str) -> None:
    """Waits for a server's state, and for the end of what Nova does with it: its image is there before."""
    demo.compute.wait_for_server(made, status=status, wait=300)
    eventually("its task to end", lambda: demo.compute.get_server(made.id).task_state is None, 120)


@pytest.mark.parametrize("kind", ["disk", "tarball"])
def test_a_server_becomes_an_image_and_back(demo: Any, disk: Any, kind: str) -> None:
    image, expected = (disk.id, "qcow2") if kind == "disk" else ("tempest", "raw")
    private = demo.network.find_network("private")
    with server(demo, kind, private, image=image, flavor="nano") as made:
        # A rebuild gives the server anew, without it.
        address = made.access_ipv4
        ssh("root", address, f"echo {kind} >/root/said && sync")
        with snapshot(demo, made, f"of-{kind}") as taken:
            assert (taken.status, taken.disk_format) == ("active", expected)
            with server(demo, f"{kind}-2", private, image=taken.id, flavor="nano") as second:
                assert ssh("root", second.access_ipv4, f"{SAID}; hostname").split() == [kind, f"{kind}-2"]
                with snapshot(demo, second, f"of-{kind}-2") as again:
                    assert again.disk_format == expected
                    demo.compute.rebuild_server(made, image=again.id, name=kind)
                    settle(demo, made, "ACTIVE")
            assert ssh("root", address, SAID).strip() == kind
        demo.compute.shelve_server(made)
        settle(demo, made, "SHELVED_OFFLOADED")
        demo.compute.unshelve_server(made)
        settle(demo, made, "ACTIVE")
        assert ssh("root", address, SAID).strip() == kind


def test_of_backups_as_many_stay_as_are_wanted(demo: Any, disk: Any) -> None:
    private = demo.network.find_network("private")

    def backups() -> list[Any]:
        return [image for image in demo.image.images() if image.name.startswith("backup-")]

    with server(demo, "backed-up", private, image=disk.id, flavor="nano") as made:
        try:
            for number in (1, 2):
                demo.compute.backup_server(made, f"backup-{number}", "daily", 1)
                settle(demo, made, "ACTIVE")

                def there(name: str = f"backup-{number}") -> bool:
                    return [(image.name, image.status) for image in backups()] == [(name, "active")]

                eventually(f"backup {number}, and no other", there, 180)
        finally:
            for image in backups():
                demo.image.delete_image(image)
