"""Another version's programs run instances; this tree's take them over.

BERTH_OLD names the other version's `berth`, `berth-monitor` beside it. `make test-upgrade` builds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Instance, Service, wait_for
from harness.service import BERTH

OLD = os.environ.get("BERTH_OLD")

pytestmark = pytest.mark.skipif(not OLD, reason="BERTH_OLD names no other version: run `make test-upgrade`")


class Fleet:
    """An instance in each state that lasts, made by the other version."""

    def __init__(self, service: Service, image: str):
        self.running = self._spawn(service, image)
        self.paused = self._spawn(service, image)
        self.paused.action("pause")
        self.suspended = self._spawn(service, image)
        self.suspended.action("suspend")
        self.stopped = self._spawn(service, image)
        self.stopped.action("stop", timeout=0)
        self.never_started = service.define(image, vifs=[service.vif()])

    @staticmethod
    def _spawn(service: Service, image: str) -> Instance:
        instance = service.spawn(image, vifs=[service.vif()])
        instance.wait_console("is up")
        instance.sh("echo written before > /root/file")
        return instance

    def all(self) -> list[Instance]:
        return [self.running, self.paused, self.suspended, self.stopped, self.never_started]

    def seen(self) -> list[tuple]:
        """What nobody may notice a change of."""
        fields = ("power_state", "pid", "started_at", "flavor", "vifs", "id_map")
        return [tuple(repr(i.get().get(name)) for name in fields) for i in self.all()]


@pytest.fixture(scope="module")
def service(runtime: str, lxcfs) -> Iterator[Service]:
    """The other version's service."""
    service = Service(runtime, lxcfs.mount_point)
    try:
        service.program = Path(OLD)
        service.start()
        yield service
        left = service.close()
    except BaseException:
        service.sweep()
        raise
    assert not left, "left on the host:\n" + "\n".join(left)


def serving(service: Service) -> Path:
    """The program that answers."""
    return Path(f"/proc/{service.process.pid}/exe").resolve()


def test_instances_are_taken_over_and_can_be_operated(service: Service, busybox: str):
    fleet = Fleet(service, busybox)
    before, monitors = fleet.seen(), [fleet.running.monitor_pid(), fleet.paused.monitor_pid()]
    assert serving(service) == Path(OLD).resolve()

    service.stop()
    service.program = BERTH
    service.start()

    assert serving(service) == BERTH.resolve()
    assert fleet.seen() == before
    assert [fleet.running.monitor_pid(), fleet.paused.monitor_pid()] == monitors
    operate(fleet, service)


def operate(fleet: Fleet, service: Service) -> None:
    """What Nova asks of instances, of those that another version made."""
    one = fleet.running
    assert one.sh("cat /root/file") == "written before"
    one.action("resize", flavor=one.get()["flavor"] | {"memory_mb": 96})
    assert one.stats()["memory"]["limit"] == 96 << 20
    vif = service.vif()
    service.client.put(f"{one.path}/interfaces/{vif['id']}", vif)
    assert one.sh(f"cat /sys/class/net/*/address | grep -c {vif['address']}") == "1"
    one.action("pause")
    one.action("unpause")
    fleet.paused.action("unpause")
    fleet.suspended.action("resume")
    for instance in (fleet.stopped, fleet.never_started):
        instance.action("start")
    one.action("reboot", type="SOFT", timeout=30)
    for instance in fleet.all():
        wait_for("it to answer", lambda instance=instance: instance.run("true").returncode == 0)
        assert instance.state == "RUNNING"
    for instance in (one, fleet.paused, fleet.suspended, fleet.stopped):
        assert instance.sh("cat /root/file") == "written before"
    one.action("stop", timeout=0)
    one.action("start")
    for instance in fleet.all():
        instance.delete()
    assert service.instances() == []


def test_what_was_killed_is_taken_over_too(service: Service, busybox: str):
    service.stop()
    service.program = Path(OLD)
    service.start()
    instance = service.spawn(busybox, vifs=[service.vif()])
    instance.wait_console("is up")
    pid = instance.get()["pid"]
    service.kill()
    service.program = BERTH
    service.start()
    assert (instance.state, instance.get()["pid"]) == ("RUNNING", pid)
    assert instance.sh("echo fine") == "fine"
    instance.delete()
