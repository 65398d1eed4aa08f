"""From inside, the machine is as large as the flavor."""

import os

import pytest

pytestmark = pytest.mark.each_runtime

MIB_KB = 1024


@pytest.fixture(scope="module")
def machine(service, busybox):
    instance = service.spawn(busybox, flavor={"vcpus": 1, "memory_mb": 96})
    yield instance
    instance.discard()


def test_cpus(machine):
    assert machine.sh("grep -c ^processor /proc/cpuinfo") == "1"


def test_cpus_with_their_times(machine):
    assert machine.sh("grep -c '^cpu[0-9]' /proc/stat") == "1"


def test_cpus_that_it_may_run_on(machine):
    assert machine.sh("nproc") == "1"


def test_a_flavor_with_all_cpus_shows_all(spawn):
    count = len(os.sched_getaffinity(0))
    assert spawn(flavor={"vcpus": count}).sh("grep -c ^processor /proc/cpuinfo") == str(count)


def test_sysfs_shows_cpus(machine):
    online = machine.sh("cat /sys/devices/system/cpu/online")
    # Which one is a matter of the version of lxcfs.
    assert online == "0-0" or online.isdigit()


def test_memory(machine):
    assert int(machine.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")) == 96 * MIB_KB
    assert machine.sh("awk '/^SwapTotal/ {print $2}' /proc/meminfo") == "0"


def test_memory_after_a_live_change(spawn):
    instance = spawn(flavor={"memory_mb": 96})
    instance.action("resize", flavor=instance.get()["flavor"] | {"memory_mb": 128})
    assert int(instance.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")) == 128 * MIB_KB


def test_uptime_is_its_own(machine):
    with open("/proc/uptime") as file:
        host = float(file.read().split()[0])
    own = float(machine.sh("cat /proc/uptime").split()[0])
    assert own <= machine.stats()["uptime"] + 2
    assert own < host


def test_load_average_is_its_own(machine):
    fields = machine.sh("cat /proc/loadavg").split()
    assert len(fields) == 5
    assert int(fields[3].split("/")[1]) <= machine.stats()["pids"]["limit"]


def test_the_hosts_mounts_are_not_visible(machine):
    # The options of the overlay, too, name its directories as the disk has them.
    mounts = machine.sh("cat /proc/self/mountinfo")
    assert str(machine.service.base) not in mounts
    assert "/var/" not in mounts
