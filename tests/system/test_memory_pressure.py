"""An instance that needs more memory than it has: what goes, and who is told."""

from pathlib import Path

import pytest
from harness import wait_for
from harness.program import compiled, injected

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """The program of many small processes."""
    return injected(compiled(HERE / "crowd.c", tmp_path_factory.mktemp("crowd")), "/root/crowd")


PRESSURES = {
    # Nobody's memory: whoever is killed frees none of it.
    "a full tmpfs": "cat /dev/zero > /dev/shm/full; tail /dev/zero",
    "many small processes": "/root/crowd 400",
    "one large process": "tail /dev/zero",
}


def go_on_for_a_while(instance):
    """As a person would, who finds that nothing works any more."""
    for _ in range(15):
        instance.run("/bin/sh", "-c", "ls -l / | sort | wc -l")


def kills(instance):
    return instance.stats()["memory"]["oom_kills"]


@pytest.mark.each_runtime
@pytest.mark.parametrize("pressure", PRESSURES)
def test_init_is_the_last_to_go(spawn, crowd, pressure):
    instance = spawn(flavor={"memory_mb": 128}, files=[crowd])
    instance.wait_console("is up")
    init = instance.get()["pid"]
    instance.run("/bin/sh", "-c", f"({PRESSURES[pressure]}) >/dev/null 2>&1 & sleep 6")
    wait_for("a kill", lambda: instance.state != "RUNNING" or kills(instance))
    go_on_for_a_while(instance)
    shown = instance.get()
    assert (shown["power_state"], shown["pid"]) == ("RUNNING", init)


@pytest.mark.parametrize("pressure", PRESSURES)
def test_nor_does_systemd(spawn, debian, crowd, pressure):
    instance = spawn(image=debian, flavor={"memory_mb": 256, "root_gb": 2}, files=[crowd])
    wait_for_systemd(instance)
    init = instance.get()["pid"]
    instance.run("systemd-run", "/bin/sh", "-c", PRESSURES[pressure].replace("400", "600"))
    wait_for("a kill", lambda: instance.state != "RUNNING" or kills(instance))
    go_on_for_a_while(instance)
    shown = instance.get()
    assert (shown["power_state"], shown["pid"]) == ("RUNNING", init)


def wait_for_systemd(instance):
    def is_up():
        return instance.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    wait_for("systemd", is_up)


def size_of(instance, place):
    return int(instance.sh(f"stat -f -c '%b %S' {place}").split()[0]) * 4096 >> 20


@pytest.mark.each_runtime
def test_what_systemd_mounts_follows_the_flavor(spawn, debian):
    """`/tmp` in memory, as newer distributions have it, is half of the host's otherwise."""
    instance = spawn(image=debian, flavor={"memory_mb": 300, "root_gb": 2})
    wait_for_systemd(instance)
    init = instance.get()["pid"]
    instance.sh("ln -s /usr/share/systemd/tmp.mount /etc/systemd/system/tmp.mount")
    instance.sh("systemctl daemon-reload && systemctl start tmp.mount")
    assert size_of(instance, "/tmp") == 150
    assert size_of(instance, "/run") == 60
    assert size_of(instance, "/dev/shm") == 150
    assert "No space left" in instance.run("/bin/sh", "-c", "cat /dev/zero > /tmp/full").stderr
    assert (instance.state, instance.get()["pid"], kills(instance)) == ("RUNNING", init, 0)
    assert "RuntimeDirectorySize=30M" in instance.sh("cat /run/systemd/logind.conf.d/50-berth.conf")


def test_the_images_own_word_on_tmp_stays(spawn, debian):
    instance = spawn(image=debian, flavor={"memory_mb": 300, "root_gb": 2})
    wait_for_systemd(instance)
    instance.sh("echo 'tmpfs /tmp tmpfs size=40m 0 0' > /etc/fstab")
    instance.action("reboot", type="HARD")
    wait_for_systemd(instance)
    assert size_of(instance, "/tmp") == 40


@pytest.mark.each_runtime
def test_a_kill_is_told(spawn, service):
    """On the console, as an event, in the statistics; and that of a process with a value of its own."""
    instance = spawn(flavor={"memory_mb": 64})
    instance.wait_console("is up")
    with service.client.events() as events:
        instance.run("/bin/sh", "-c", "tail /dev/zero")
        for event in events:
            if event["instance_id"] == instance.id:
                assert event["kind"] == "out_of_memory"
                break
    instance.wait_console("[out of memory: 1 process killed since the boot]")
    assert kills(instance) == 1
    assert "kills=1" in service.log_tail()
    # A second boot counts anew.
    instance.action("reboot", type="HARD")
    instance.run("/bin/sh", "-c", "tail /dev/zero")
    wait_for("the second", lambda: instance.console().count("[out of memory: 1 process killed") == 2)


def test_the_right_to_a_lower_value_stays(spawn, crowd):
    """Root inside may give back what its processes got."""
    instance = spawn(flavor={"memory_mb": 128}, files=[crowd])
    instance.wait_console("is up")
    instance.run("/bin/sh", "-c", "sleep 600 & tail /dev/zero")
    raised = "cat /proc/$(pidof sleep | cut -d' ' -f1)/oom_score_adj"
    assert instance.sh(raised) == "500"
    assert instance.sh("echo 0 > /proc/$(pidof sleep | cut -d' ' -f1)/oom_score_adj && " + raised) == "0"
    assert instance.sh("cat /proc/1/oom_score_adj") == "0"
