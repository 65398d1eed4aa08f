"""A link where a mount goes leads no runtime program out of the root file system.

runc 1.1.5 made and removed files in any directory of the host where the
instance's ids may write, when `/dev` was a link to it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import imagelib
import pytest
from harness import Fault

pytestmark = pytest.mark.each_runtime

# What runtime programs make or replace in /dev, /proc and /sys.
TEMPTING = ["console", "core", "fd", "null", "ptmx", "stdin", "stdout", "zero"]


@pytest.fixture
def victim():
    """A directory of the host in which anybody may write, with files that a runtime program would replace."""
    directory = Path(tempfile.mkdtemp(prefix="berth-victim-", dir="/var/tmp"))
    directory.chmod(0o777)
    for name in TEMPTING:
        (directory / name).write_text("the host's")
    yield directory
    shutil.rmtree(directory)


def listing(directory: Path) -> dict:
    """All that is in it, and what it is."""
    return {
        path.name: (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_ctime_ns)
        for path in directory.rglob("*")
    }


@pytest.fixture
def spawn_tree(service, tmp_path, made):
    """Defines an instance of a file tree, with a program that runs for long."""

    def spawn(tree: imagelib.Tree, **fields):
        path = tmp_path / "image.tar"
        path.write_bytes(tree.tar())
        image = service.import_image(path)
        made.append(service.define(image, command=["/bin/sleep", "1000"], **fields))
        return made[-1]

    return spawn


def refused(instance, path: str, victim: Path, action: str = "start") -> None:
    before = listing(victim)
    with pytest.raises(Fault) as raised:
        instance.action(action)
    assert listing(victim) == before
    assert raised.value.code == "image-unacceptable", raised.value
    assert f"{path} in the instance's root file system is a symbolic link" in raised.value.detail
    assert instance.pids() == []


@pytest.mark.parametrize("path", ["dev", "proc", "sys"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "chain"])
def test_a_link_is_not_mounted_through(spawn_tree, victim, path, kind):
    tree = imagelib.busybox_tree()
    if kind == "chain":
        tree.symlink("hop", str(victim))
    target = {"absolute": str(victim), "relative": "../" * 20 + str(victim)[1:], "chain": "hop"}[kind]
    tree.symlink(path, target)
    refused(spawn_tree(tree), f"/{path}", victim)


def test_one_that_the_owner_makes_later_is_not_either(service, busybox, victim, made):
    instance = service.define(busybox)
    made.append(instance)
    instance.action("rescue", image_id=busybox)
    instance.sh(f"rmdir /mnt/instance/dev; ln -s {victim} /mnt/instance/dev")
    refused(instance, "/dev", victim, "unrescue")


@pytest.mark.parametrize("target", ["var/mnt", "/var/mnt"])
def test_a_disk_follows_a_link_that_stays_inside(spawn_tree, target):
    tree = imagelib.busybox_tree()
    tree.symlink("mnt", target)
    instance = spawn_tree(tree, flavor={"ephemeral_gb": 1})
    instance.action("start")
    assert instance.sh("grep -c ' /var/mnt ' /proc/self/mounts; readlink /mnt").split() == ["1", target]


def test_a_disk_is_not_put_over_what_berth_mounts(spawn_tree, victim):
    tree = imagelib.busybox_tree()
    tree.symlink("mnt", "/dev")
    instance = spawn_tree(tree, flavor={"ephemeral_gb": 1})
    with pytest.raises(Fault) as raised:
        instance.action("start")
    assert "/mnt in the instance's root file system is a link that leads to /dev" in raised.value.detail
