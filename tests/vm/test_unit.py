"""berth as its package would run it: the shipped unit, the shipped configuration, systemd, lxcfs.service.

It installs the unit on the machine it runs on, so it runs in the virtual machine only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, Client, Instance, Service, wait_for
from harness.service import BERTH

pytestmark = pytest.mark.skipif(
    not os.environ.get("BERTH_VM"), reason="changes the machine: run it by `make test-v2`"
)

PROGRAMS = Path("/usr/local/bin")
UNITS = Path("/etc/systemd/system")
DROP_IN = Path("/run/systemd/system/berth.service.d/test.conf")
CGROUPS = Path("/sys/fs/cgroup")


def systemctl(*arguments: str, check: bool = True) -> str:
    """Runs systemctl; its failure shows what the unit logged."""
    result = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=180)
    if check and result.returncode:
        journal = subprocess.run(
            ["journalctl", "-u", "berth", "-n", "40", "--no-pager"], capture_output=True, text=True
        )
        raise AssertionError(f"systemctl {' '.join(arguments)}: {result.stderr}\n{journal.stdout}")
    return result.stdout.strip()


def shown(name: str, unit: str = "berth") -> str:
    """One property of a unit."""
    return systemctl("show", "-P", name, unit)


class Unit(Service):
    """The service as a unit, with the paths of the shipped configuration."""

    def __init__(self) -> None:
        super().__init__(base=Path("/var/tmp/berth-unit"))
        self.socket = Path("/run/berth/berth.sock")
        self.state_dir, self.run_dir = Path("/var/lib/berth"), Path("/run/berth")
        self.config = Path("/etc/berth/berth.toml")
        self.cgroup = "berth"
        self.client = Client(self.socket)

    def install(self) -> None:
        """Puts everything where the unit looks for it."""
        for program in (BERTH, BERTH.with_name("berth-monitor")):
            shutil.copy(program, PROGRAMS)
        self.config.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "etc/berth.toml", self.config)
        shutil.copytree(ROOT / "etc/systemd", UNITS, dirs_exist_ok=True)
        systemctl("daemon-reload")
        systemctl("restart", "lxcfs")

    def start(self, timeout: float = 0) -> None:
        """Returns when the unit has said that it is ready: no other wait."""
        systemctl("start", "berth")

    def stop(self) -> None:
        """Ends it as a shutdown or an upgrade does."""
        systemctl("stop", "berth")

    def kill(self) -> None:
        """kill -9 of the main process; systemd starts another."""
        before = self.pid
        os.kill(before, signal.SIGKILL)
        self.wait_for_another(before)

    def wait_for_another(self, pid: int) -> None:
        """Waits until systemd has started another and it is ready."""
        wait_for(
            "systemd to start another",
            lambda: self.pid not in (0, pid) and shown("ActiveState") == "active",
            90,
        )

    def _is_own(self, line: str) -> bool:
        """Its socket, too, which is in a directory with the instances' files."""
        return line.endswith(f": {self.socket}") or super()._is_own(line)

    @property
    def pid(self) -> int:
        """Its main process."""
        return int(shown("MainPID"))

    def log_tail(self, lines: int = 60) -> str:
        """The end of its journal."""
        command = ["journalctl", "-u", "berth", "-n", str(lines), "--no-pager", "-o", "cat"]
        return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def service() -> Iterator[Unit]:
    """The unit, running; afterwards everything is deleted through the API."""
    unit = Unit()
    unit.install()
    unit.start()
    yield unit
    DROP_IN.unlink(missing_ok=True)
    systemctl("daemon-reload")
    unit.start()
    unit.delete_everything()
    left = unit.leftovers()
    unit.stop()
    assert not left, "\n".join(left)


@pytest.fixture(scope="module")
def busybox(service: Unit, busybox_file: Path) -> str:
    return service.import_image(busybox_file)


def unified(pid: int) -> str:
    """The cgroup of a process."""
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def limits(instance: Instance) -> dict[str, str]:
    """The limits in force, by file."""
    names = ("cpu.max", "cpu.weight", "memory.max", "memory.swap.max", "pids.max")
    return {name: (instance.cgroup("memory") / name).read_text().strip() for name in names}


def is_undisturbed(instance: Instance, before: dict) -> None:
    """The same init, still counted as never rebooted, and usable."""
    after = instance.get()
    keep = ("pid", "started_at", "guest_reboots", "power_state")
    assert {name: after[name] for name in keep} == {name: before[name] for name in keep}
    assert instance.sh("echo fine") == "fine"


def test_this_is_cgroup_v2_alone_under_systemd():
    assert (CGROUPS / "cgroup.controllers").exists()
    assert Path("/proc/1/comm").read_text().strip() == "systemd"


def test_the_shipped_units_have_no_faults(service):
    units = [path.name for path in (ROOT / "etc/systemd").glob("*.*") if path.is_file()]
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in result.stderr.splitlines() if "berth" in line]
    assert (result.returncode, ours) == (0, [])


def test_start_returns_when_the_service_answers(service):
    service.stop()
    service.start()
    # No wait: that systemctl came back is the promise (Type=notify).
    assert service.client.get("/v1/host")["hypervisor_type"] == "berth"
    assert (shown("Type"), shown("ActiveState"), shown("SubState")) == ("notify", "active", "running")


def test_check_is_content_with_this_host(service):
    result = subprocess.run([PROGRAMS / "berth", "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_instances_and_monitors_are_outside_the_units_cgroup(spawn, service):
    instance = spawn()
    own = shown("ControlGroup")
    assert own.endswith("/berth.service")
    for pid in (*instance.pids(), instance.monitor_pid()):
        assert unified(pid).startswith("/berth"), unified(pid)
        assert not unified(pid).startswith("/berth.slice"), unified(pid)
    inside = (CGROUPS / own.strip("/") / "cgroup.procs").read_text().split()
    assert inside == [str(service.pid)]


def test_instances_have_their_profile_and_the_service_none(spawn, service):
    def profile(pid: int) -> str:
        return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")

    instance = spawn()
    assert profile(instance.get()["pid"]) == "berth-system (enforce)"
    assert profile(service.pid) == profile(instance.monitor_pid()) == "unconfined"
    service.stop()
    assert profile(instance.pids()[0]) == "berth-system (enforce)"
    service.start()
    assert profile(instance.get()["pid"]) == "berth-system (enforce)"


def test_the_limits_are_in_force(spawn):
    instance = spawn(flavor={"vcpus": 1, "memory_mb": 64, "extra_specs": {"berth:processes": "77"}})
    found = limits(instance)
    assert found.pop("cpu.weight").isdigit()
    assert found == {
        "cpu.max": "100000 100000",
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "77",
    }


def test_packaged_lxcfs_shows_the_flavor(spawn):
    assert systemctl("is-active", "lxcfs") == "active"
    instance = spawn(flavor={"memory_mb": 80})
    assert instance.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo") == str(80 * 1024)
    assert instance.sh("grep -c ^processor /proc/cpuinfo") == "1"


def test_restart_kill_and_stop_leave_instances_alone(spawn, service):
    instance = spawn()
    instance.wait_console("is up")
    instance.sh("(i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo n-$i; usleep 10000; done > /dev/console) &")
    before, monitor = instance.get(), instance.monitor_pid()
    first = service.pid
    systemctl("restart", "berth")
    assert service.pid != first
    is_undisturbed(instance, before)
    service.kill()
    is_undisturbed(instance, before)
    service.stop()
    assert Path(f"/proc/{before['pid']}").exists()
    service.start()
    is_undisturbed(instance, before)
    assert instance.monitor_pid() == monitor
    instance.wait_console("n-3000\r", 180)
    # The first may stand behind the shell's prompt.
    numbers = re.findall(r"n-\d+(?=\r)", instance.console())
    assert numbers == [f"n-{i}" for i in range(1, 3001)], "console output was lost"


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_systemd_rearranging_its_cgroups_takes_no_limit_away(spawn, verb):
    instance = spawn()
    before, wanted = instance.get(), limits(instance)
    systemctl(verb)
    # A unit that comes and goes makes systemd write the root's subtree_control anew.
    for properties in (["-p", "CPUWeight=50"], ["-p", "IOWeight=50"]):
        subprocess.run(["systemd-run", "--quiet", "--wait", *properties, "true"], check=True)
    assert limits(instance) == wanted
    is_undisturbed(instance, before)


def test_a_hung_service_is_replaced_by_the_watchdog(spawn, service):
    instance = spawn()
    before = instance.get()
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nWatchdogSec=10\n")
    systemctl("daemon-reload")
    systemctl("restart", "berth")
    hung = service.pid
    os.kill(hung, signal.SIGSTOP)
    service.wait_for_another(hung)
    is_undisturbed(instance, before)


def test_a_broken_configuration_stops_the_start_with_its_reason(service):
    good = service.config.read_text()
    service.stop()
    try:
        service.config.write_text(good + "\nno_such_key = 1\n")
        result = subprocess.run(["systemctl", "start", "berth"], capture_output=True, timeout=120)
        assert result.returncode != 0
        assert "no_such_key" in service.log_tail()
    finally:
        service.stop()
        service.config.write_text(good)
        # A unit that is no longer loaded has no failure either.
        systemctl("reset-failed", "berth", check=False)
        service.start()
