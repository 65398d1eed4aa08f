"""What only a machine has: it fails at once and in words, or does nothing and says so."""

from __future__ import annotations

import pytest
from harness import wait_for
from harness.hosts import cgroup_dir, unified_dir

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def machine(service, debian):
    instance = service.spawn(debian, flavor={"memory_mb": 300, "root_gb": 1}, vifs=[service.vif()])
    wait_for("systemd", lambda: instance.run("systemctl", "is-system-running").stdout.strip() == "running")
    yield instance
    instance.discard()


UNIT = """[Unit]
BindsTo=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
[Service]
ExecStart=/bin/sleep infinity
"""


@pytest.mark.parametrize(
    "command,said",
    [
        (f"printf '{UNIT}' > /run/systemd/system/waits.service; systemctl start waits", "dependency job"),
        ("systemctl start sys-subsystem-net-devices-eth0.device", "not supported"),
        ("fallocate -l 4M /s; chmod 600 /s; mkswap /s; swapon /s", "Operation not permitted"),
        ("fstrim /", "the discard operation is not supported"),
        ("date -s 2020-01-01", "Operation not permitted"),
        ("timedatectl set-time 2020-01-01", "Failed to set time"),
        ("dmesg", "Operation not permitted"),
        ("cat /proc/kmsg", "Permission denied"),
    ],
)
def test_what_only_a_machine_has_fails_at_once(machine, command, said):
    # A unit that waited would do so for 90 seconds.
    ended = machine.run("/bin/sh", "-c", f"timeout 60 /bin/sh -c '{command.replace(chr(39), chr(34))}'")
    assert ended.returncode not in (0, 124), ended
    assert said in ended.stderr


def test_what_does_nothing_succeeds(machine):
    machine.sh("fstrim -a; systemctl start fstrim.service")
    for unit in ("fstrim.timer", "swap.target"):
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "masked-runtime"
    assert machine.run("systemctl", "is-system-running").stdout.strip() == "running"


def test_limits_of_units_hold_or_it_is_said(service, machine):
    unified = cgroup_dir("memory") == unified_dir()
    said = service.log.read_text().count("limits of units inside (MemoryMax=")
    assert said == (0 if unified else 1)
    controllers = machine.sh("cat /sys/fs/cgroup/cgroup.controllers")
    assert ("memory" in controllers.split()) == unified
