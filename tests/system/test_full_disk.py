"""Who has filled the disk can make room, and remove what came with the image, as on a machine."""

from __future__ import annotations

import pytest
from harness import wait_for

#: Takes all that there is, to the last block.
FILL = "for size in 1M 4k; do dd if=/dev/zero of=/root/full-$size bs=$size 2>/dev/null; done; sync"
FREE = "df -k / | awk 'NR == 2 {print $4}'"


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def settings(request):
    return {"storage": {"filesystem": request.param}}


@pytest.fixture
def held(service):
    """The bytes that are held for it on its disk."""

    def find(instance) -> int:
        file = service.run_dir / "i" / instance.id / "disk/reserve"
        return file.stat().st_size if file.exists() else 0

    return find


def test_files_of_the_image_can_be_removed(spawn, debian, held):
    instance = spawn(image=debian, flavor={"memory_mb": 300, "root_gb": 1})
    wait_for("room to be held", lambda: held(instance) > 6 << 20)
    whole = held(instance)
    instance.sh(FILL)
    assert int(instance.sh(FREE)) <= 512  # what was given by now
    # Each directory takes a block to be told from the image's, and there are hundreds.
    instance.sh("ls -d /usr/share/doc/*/ | wc -l | grep -E '^[0-9]{2,}$'")
    wait_for("it to go", lambda: instance.run("rm", "-rf", "/usr/share/doc").returncode == 0)
    wait_for("one more", lambda: instance.run("rm", "/usr/bin/perl").returncode == 0)
    assert instance.run("ls", "/usr/share/doc").returncode != 0
    assert 0 < held(instance) < whole
    # Nobody inside sees what is held, and all is held again once there is room.
    assert instance.run("/bin/sh", "-c", "ls -a / | grep -w reserve").returncode != 0
    instance.sh("rm /root/full-1M /root/full-4k")
    wait_for("room to be held again", lambda: held(instance) == whole)


def test_one_that_goes_on_writing_gets_no_more_than_was_held(spawn, held):
    instance = spawn(flavor={"root_gb": 1})
    wait_for("room to be held", lambda: held(instance) > 0)
    instance.sh(FILL)
    instance.sh("(while :; do cat /dev/zero >> /root/more; sleep 0.05; done) 2>/dev/null >&2 &")
    wait_for("it to take all", lambda: held(instance) == 0, timeout=90)
    # What it wrote itself goes without any.
    instance.sh("rm /root/full-1M")
    assert instance.state == "RUNNING"


def test_a_disk_that_is_held_still_holds_nobody_up(spawn, held):
    first, other = spawn(flavor={"root_gb": 1}), spawn(flavor={"root_gb": 1})
    first.action("quiesce")
    third = spawn(flavor={"root_gb": 1})
    wait_for("room to be held", lambda: held(other) > 0 and held(third) > 0)
    first.action("unquiesce")
    wait_for("room to be held", lambda: held(first) > 0)
