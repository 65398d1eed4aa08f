"""Quiesce: the instance runs, its disks take no change."""

import subprocess
import time

import pytest
from harness import Fault


def test_it_stays_running_and_writers_wait(instance):
    instance.sh("(while :; do echo . >> /log; sleep 0.05; done) > /dev/null 2>&1 &")
    instance.action("quiesce")
    shown = instance.get()
    assert (shown["power_state"], shown["quiesced"]) == ("RUNNING", True)
    before = instance.sh("wc -c < /log")
    assert instance.sh("echo reads; sleep 1; wc -c < /log").split() == ["reads", before]
    instance.action("quiesce")
    instance.action("unquiesce")
    assert instance.get()["quiesced"] is False
    time.sleep(1)
    assert int(instance.sh("wc -c < /log")) > int(before)
    instance.action("unquiesce")


def test_what_it_holds_is_refused(instance):
    instance.action("quiesce")
    flavor = instance.get()["flavor"]
    for verb, body in [
        ("pause", {}),
        ("suspend", {}),
        ("resize", {"flavor": flavor}),
        ("password", {"user": "root", "password": "x"}),
    ]:
        with pytest.raises(Fault) as fault:
            instance.action(verb, **body)
        assert fault.value.code == "instance-invalid-state", verb
        assert "quiesced" in fault.value.detail
    assert instance.stats()["cpu"]
    instance.action("unquiesce")
    instance.action("pause")
    instance.action("quiesce")
    assert (instance.state, instance.get()["quiesced"]) == ("PAUSED", True)
    instance.action("unquiesce")
    assert instance.state == "PAUSED"
    instance.action("unpause")


@pytest.mark.parametrize(
    "verb,body,state",
    [
        ("stop", {"timeout": 20}, "SHUTDOWN"),
        ("stop", {"timeout": 0}, "SHUTDOWN"),
        ("reboot", {"type": "SOFT", "timeout": 20}, "RUNNING"),
        ("reboot", {"type": "HARD"}, "RUNNING"),
    ],
)
def test_a_stop_or_reboot_thaws(instance, verb, body, state):
    instance.sh("(while :; do echo . >> /log; done) > /dev/null 2>&1 &")
    instance.action("quiesce")
    instance.action(verb, **body)
    shown = instance.get()
    assert (shown["power_state"], shown["quiesced"]) == (state, False)
    if state == "SHUTDOWN":
        instance.action("quiesce")
        assert instance.get()["quiesced"] is False
        instance.action("start")
    instance.sh("echo again > /again")


def test_it_survives_the_service(instance):
    instance.action("quiesce")
    instance.service.kill()
    instance.service.start()
    shown = instance.get()
    assert (shown["power_state"], shown["quiesced"]) == ("RUNNING", True)
    instance.sh("(echo late > /late) > /dev/null 2>&1 &")
    assert instance.sh("sleep 0.5; cat /late || echo absent") == "absent"
    instance.action("unquiesce")
    assert instance.sh("sleep 0.5; cat /late") == "late"


def test_a_disk_that_a_killed_service_left_frozen_is_thawed(instance):
    subprocess.run(["fsfreeze", "-f", instance.service.run_dir / "i" / instance.id / "disk"], check=True)
    instance.service.kill()
    instance.service.start()
    assert instance.get()["quiesced"] is False
    instance.sh("echo on > /on", timeout=10)


def test_deleted_while_quiesced(spawn):
    instance = spawn(flavor={"name": "e", "vcpus": 1, "memory_mb": 64, "root_gb": 1, "ephemeral_gb": 1})
    instance.sh("(while :; do echo . >> /log; done) > /dev/null 2>&1 &")
    instance.action("quiesce")
    instance.delete()
