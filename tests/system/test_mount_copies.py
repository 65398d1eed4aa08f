"""Other processes of the host hold copies of an instance's mounts: of no concern to it.

Whoever takes a mount namespace of its own (`unshare -m`, a unit of systemd with
PrivateTmp) has a copy of all mounts there are, and a file system that is mounted
there stays mounted when the service unmounts its own.
"""

from __future__ import annotations

import subprocess
import time

import pytest
from harness import wait_for

OF_THE_BUSYBOX_IMAGE = {"ephemeral_gb": 1}


class Sleepers:
    """Processes that hold copies of what was mounted when each began."""

    def __init__(self):
        self.running = []

    def add(self, *options):
        command = ["unshare", "-m", *options, "sh", "-c", "echo; exec sleep 600"]
        sleeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.running.append(sleeper)
        sleeper.stdout.readline()

    def hold(self, place):
        """Whether a copy of what was mounted at `place` is held."""
        return any(
            place in open(f"/proc/{sleeper.pid}/mountinfo", encoding="utf-8").read()
            for sleeper in self.running
        )

    def end(self):
        for sleeper in self.running:
            sleeper.kill()
            sleeper.wait()
        self.running.clear()


@pytest.fixture
def sleepers():
    sleepers = Sleepers()
    yield sleepers
    sleepers.end()


def flavor(instance, **fields):
    return instance.get()["flavor"] | fields


@pytest.mark.each_runtime
def test_no_operation_depends_on_copies_of_mounts(service, busybox, sleepers, glance):
    before = service.leftovers()
    sleepers.add()
    sleepers.add("--propagation", "slave")
    instance = service.spawn(busybox, flavor=OF_THE_BUSYBOX_IMAGE)
    try:
        sleepers.add()
        assert sleepers.hold(instance.id), "a copy that the test is about"
        instance.sh("echo old > /root/file; echo old > /mnt/file")

        # What was written last is in the copy that is kept, and is not synced by the instance.
        instance.sh("dd if=/dev/urandom of=/root/data bs=1M count=8 2>/dev/null")
        data = instance.sh("md5sum < /root/data")
        begun = time.monotonic()
        instance.action("resize", flavor=flavor(instance, root_gb=2, ephemeral_gb=2), keep=True, timeout=1)
        assert time.monotonic() - begun < 60
        instance.action("start")
        sleepers.add()
        assert instance.sh("md5sum < /root/data") == data
        instance.sh("echo new > /root/file; echo new > /mnt/file; rm /root/data; sync")
        instance.action("resize/revert")
        instance.action("start")
        assert instance.sh("cat /root/file /mnt/file") == "old\nold"
        assert instance.sh("md5sum < /root/data") == data
        assert instance.get()["flavor"]["root_gb"] == 1

        sleepers.add()
        instance.action("resize", flavor=flavor(instance, root_gb=2), keep=True, timeout=1)
        instance.action("resize/confirm")
        instance.action("start")
        instance.sh("dd if=/dev/zero of=/root/large bs=1M count=1200 2>/dev/null; rm /root/large")

        sleepers.add()
        for stop in ("stop", "stop"):
            instance.action(stop, timeout=1)
            instance.action("start")
            sleepers.add()
        instance.action("reboot", type="HARD")
        assert instance.sh("md5sum < /root/data") == data
        image = "77777777-7777-4777-8777-777777777777"
        instance.action("snapshot", **glance.to(image))
        assert glance.file(image).stat().st_size > 8 << 20

        instance.action("stop", timeout=1)
        instance.action("rescue", image_id=busybox)
        sleepers.add()
        assert instance.sh("md5sum < /mnt/instance/root/data") == data
        instance.action("unrescue")
        instance.action("start")
        assert instance.sh("cat /root/file") == "old"
    finally:
        instance.delete()
    sleepers.end()
    wait_for("nothing to be left", lambda: service.leftovers() == before)
