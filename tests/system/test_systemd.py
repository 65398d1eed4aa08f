"""A Debian image with systemd: boots to its target, goes down and up as asked."""

from pathlib import Path

import pytest
from harness import wait_for

pytestmark = pytest.mark.each_runtime

FLAVOR = {"vcpus": 2, "memory_mb": 512, "root_gb": 2}


@pytest.fixture(scope="module")
def machine(service, debian):
    instance = service.spawn(debian, flavor=FLAVOR, vifs=[service.vif()], hostname="debian-1")
    yield instance
    instance.discard()


@pytest.fixture(scope="module")
def booted(machine):
    def state() -> str:
        """Empty while systemd does not yet listen."""
        return machine.run("systemctl", "is-system-running", "--wait").stdout.strip()

    assert wait_for("systemd", state, 120) == "running", failed_units(machine)
    return machine


def failed_units(machine) -> str:
    return machine.run("systemctl", "--failed", "--no-legend", "--plain").stdout


def test_it_boots_to_its_default_target_without_failed_units(booted):
    assert failed_units(booted) == ""
    assert booted.sh("systemctl is-active multi-user.target") == "active"
    assert booted.sh("systemctl is-active systemd-journald dbus").split() == ["active", "active"]


def test_it_knows_that_it_is_a_container_with_an_identity(booted):
    assert booted.sh("systemd-detect-virt --container") != "none"
    assert booted.sh("hostname") == "debian-1"
    identity = booted.sh("cat /etc/machine-id")
    assert len(identity) == 32
    assert identity == booted.id.replace("-", "")


def test_its_journal_knows_this_boot_and_it_has_no_disks_of_others(booted):
    boot = booted.sh("tr -d - </proc/sys/kernel/random/boot_id")
    assert boot in booted.sh("journalctl --list-boots")
    assert boot not in Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")
    assert booted.sh("lsblk --noheadings --output NAME") == "vda"


def test_its_console_shows_the_boot_and_a_login(booted):
    console = booted.wait_console("login:")
    assert "Welcome to" in console


def test_units_get_cgroups_of_their_own(booted):
    booted.sh("systemd-run --unit=probe sleep 1000")
    assert booted.sh("systemctl is-active probe") == "active"
    assert "probe.service" in booted.sh("cat /proc/$(systemctl show -P MainPID probe)/cgroup")
    booted.sh("systemctl stop probe")


def test_users_and_setuid_programs_work(booted):
    booted.sh("useradd -m someone")
    assert booted.sh("su someone -c 'id -un'") == "someone"


def test_a_graceful_stop_runs_the_units_stops(booted):
    booted.sh(
        "systemd-run --unit=last -p 'ExecStop=/bin/sh -c \"echo stopped > /root/stopped\"' "
        "-p RemainAfterExit=yes true"
    )
    booted.action("stop", timeout=60)
    assert booted.state == "SHUTDOWN"
    exit_status = booted.get()["exit"]
    assert exit_status["signal"] != 9, "it was killed: the stop signal is wrong"
    booted.action("start")
    assert booted.sh("cat /root/stopped") == "stopped"


def test_reboot_and_poweroff_inside(booted):
    wait_for("systemd", lambda: booted.run("systemctl", "is-system-running").stdout.strip() == "running")
    before = booted.get()
    booted.run("systemctl", "reboot")
    wait_for("the reboot", lambda: booted.get()["guest_reboots"] > before["guest_reboots"], 60)
    assert booted.state == "RUNNING"
    wait_for("systemd", lambda: booted.run("systemctl", "is-system-running").stdout.strip() == "running", 60)
    booted.run("systemctl", "poweroff")
    booted.wait_state("SHUTDOWN", 60)
