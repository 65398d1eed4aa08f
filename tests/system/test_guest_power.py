"""What the instance does to itself: power-off, reboot, an end by accident."""

import pytest
from harness import wait_for

pytestmark = pytest.mark.each_runtime


def test_poweroff_inside_is_a_shutdown(instance):
    instance.go_down("poweroff")
    instance.wait_state("SHUTDOWN")
    assert instance.pids() == []
    assert "goes down" in instance.console()
    instance.action("start")
    assert instance.state == "RUNNING"


def test_reboot_inside_is_a_reboot(instance):
    before = instance.get()
    instance.sh("echo kept > /root/kept")
    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    after = instance.get()
    assert after["power_state"] == "RUNNING"
    assert after["pid"] != before["pid"]
    wait_for("the second boot", lambda: instance.console().count("is up") >= 2)
    assert instance.sh("cat /root/kept") == "kept"
    assert instance.sh("ip -o -4 addr show eth0").count("inet ") == 1


def test_limits_hold_after_a_reboot_inside(instance):
    limits = {name: (instance.cgroup(name) / file).read_text() for name, file in files(instance)}
    instance.go_down("reboot")
    wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
    for name, file in files(instance):
        assert (instance.cgroup(name) / file).read_text() == limits[name], name


def files(instance):
    if (instance.cgroup("memory") / "memory.max").exists():
        return [("memory", "memory.max"), ("pids", "pids.max"), ("cpu", "cpu.max")]
    return [
        ("memory", "memory.limit_in_bytes"),
        ("pids", "pids.max"),
        ("cpu", "cpu.cfs_quota_us"),
    ]


def test_reboots_inside_again_and_again(instance):
    def again(count):
        instance.go_down("reboot")
        wait_for(f"reboot {count}", lambda: instance.get()["guest_reboots"] == count)
        wait_for("the boot", lambda: instance.console().count("is up") >= count + 1)

    for count in range(1, 4):
        again(count)
    assert instance.state == "RUNNING"


def test_no_stopped_event_during_a_reboot_inside(instance):
    with instance.service.client.events() as events:
        instance.go_down("reboot")
        kinds = []
        for event in events:
            if event["instance_id"] == instance.id:
                kinds.append(event["kind"])
            if "guest_rebooted" in kinds:
                break
    assert "stopped" not in kinds


def test_poweroff_while_the_service_is_away_is_seen_afterwards(instance):
    service = instance.service
    instance.sh("(sleep 1; poweroff) >/dev/null 2>&1 &")
    service.kill()
    wait_for("it to go down", lambda: not instance.pids())
    service.start()
    instance.wait_state("SHUTDOWN")


def test_reboot_while_the_service_is_away_goes_on(instance):
    service = instance.service
    first = instance.get()["pid"]
    instance.sh("(sleep 1; reboot) >/dev/null 2>&1 &")
    service.kill()
    wait_for("it to be up again", lambda: instance.pids() and first not in instance.pids())
    service.start()
    shown = instance.get()
    assert shown["power_state"] == "RUNNING"
    assert shown["pid"] in instance.pids()
    assert shown["guest_reboots"] == 1
