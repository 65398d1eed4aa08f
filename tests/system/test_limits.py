"""The flavor's limits, measured from inside and against the kernel's own accounts."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest
from harness import Fault, Service, wait_for

MIB = 1 << 20
HOG = "(while :; do :; done) >/dev/null 2>&1 &"


def cpu_use(instance):
    """CPU seconds used so far, periods in which the quota ran out, and when that was."""
    cpu = instance.stats()["cpu"]
    return cpu["usage_ns"] / 1e9, cpu["throttled_periods"], time.monotonic()


def idle_seconds(cpu):
    """What a CPU of the host was idle so far."""
    with open("/proc/stat") as file:
        times = next(line.split() for line in file if line.startswith(f"cpu{cpu} "))
    return (int(times[4]) + int(times[5])) / os.sysconf("SC_CLK_TCK")


def allowed_cpus(instance):
    return instance.sh("awk '/^Cpus_allowed_list/ {print $2}' /proc/self/status")


def quota_holds(instance, share, period=0.1):
    """Whatever else the host does: a period in which the quota ran out used all of it, and none used more."""
    used_before, ran_out_before, start = cpu_use(instance)
    wait_for("the quota to run out", lambda: cpu_use(instance)[1] >= ran_out_before + 8, 60)
    used, ran_out, end = cpu_use(instance)
    used, ran_out = used - used_before, ran_out - ran_out_before
    # The first and the last one are seen in part.
    assert 0.9 * (ran_out - 1) * period * share <= used <= 1.1 * (end - start + 2 * period) * share


def reaches(measure, wanted, tolerance=0.1, tries=5):
    """The limit is reached and never passed; that other work on the host takes away from it is no failure."""
    values = []
    for _ in range(tries):
        values.append(measure())
        assert values[-1] <= wanted * (1 + tolerance), f"measured {values}, the limit is {wanted}"
        if values[-1] >= wanted * (1 - tolerance):
            return
    raise AssertionError(f"measured {values}, wanted {wanted} within {tolerance:.0%}")


def memory_hog(mib):
    """A command that has so much memory at once, and says how much it got around to passing on."""
    return f"dd if=/dev/zero bs={mib}M count=1 2>/dev/null | wc -c"


def resize(instance, **flavor):
    wanted = instance.get()["flavor"] | flavor
    instance.action("resize", flavor=wanted)


def seconds_of(text):
    """Seconds since the epoch of an RFC 3339 time with up to nine digits after the point."""
    whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


class TestCpu:
    def test_a_hog_gets_its_quota(self, spawn):
        instance = spawn(flavor={"extra_specs": {"quota:cpu_quota": "30000", "quota:cpu_period": "100000"}})
        instance.sh(HOG + HOG)
        quota_holds(instance, 0.3)

    @pytest.mark.alone  # beside others' work its CPU is never idle, whatever the limit
    def test_a_vcpu_is_a_whole_cpu_and_not_more(self, spawn):
        instance = spawn(flavor={"vcpus": 1})
        instance.sh(HOG + HOG)
        cpu = int(allowed_cpus(instance))
        (used_before, _, start), idle_before = cpu_use(instance), idle_seconds(cpu)
        time.sleep(2)
        (used, _, end), idle = cpu_use(instance), idle_seconds(cpu)
        assert used - used_before <= 1.1 * (end - start)
        assert idle - idle_before <= 0.1 * (end - start)

    def test_the_quota_changes_while_it_runs(self, spawn):
        instance = spawn(flavor={"extra_specs": {"quota:cpu_quota": "50000"}})
        instance.sh(HOG + HOG)
        resize(instance, extra_specs={"quota:cpu_quota": "20000"})
        quota_holds(instance, 0.2)

    def test_shares_divide_a_cpu_between_hogs(self, spawn):
        # Both on every CPU: those who have one alone share nothing.
        cpus = os.cpu_count()
        first = spawn(flavor={"vcpus": cpus, "extra_specs": {"quota:cpu_shares": "1024"}})
        second = spawn(flavor={"vcpus": cpus, "extra_specs": {"quota:cpu_shares": "3072"}})

        for instance in (first, second):
            instance.sh(HOG * 2 * cpus)
        before = [cpu_use(instance)[0] for instance in (first, second)]
        ratios: list[float] = []
        # Of all since the beginning: other work on one CPU sways a look of two seconds to either side.
        while not (ratios and ratios[-1] == pytest.approx(3, rel=0.25)):
            assert len(ratios) < 15, ratios
            time.sleep(2)
            used = [cpu_use(i)[0] - start for i, start in zip((first, second), before, strict=True)]
            ratios.append(used[1] / used[0])


class TestMemory:
    @pytest.mark.each_runtime
    def test_a_hog_is_killed_alone(self, spawn):
        instance, other = spawn(flavor={"memory_mb": 48}), spawn(flavor={"memory_mb": 48})
        pid, others_pid = instance.get()["pid"], other.get()["pid"]
        result = instance.run("/bin/sh", "-c", memory_hog(200))
        assert result.stdout.strip() != str(200 * MIB)
        shown = instance.stats()["memory"]
        assert shown["oom_kills"] >= 1
        assert shown["limit"] == 48 * MIB
        assert shown["peak"] <= 48 * MIB
        assert instance.get()["pid"] == pid, "its init was killed too"
        assert instance.state == "RUNNING"
        assert (other.state, other.get()["pid"]) == ("RUNNING", others_pid)
        assert other.stats()["memory"]["oom_kills"] == 0

    def test_what_is_only_on_its_way_to_the_disk_keeps_no_limit_up(self, spawn):
        instance = spawn(flavor={"memory_mb": 256})
        instance.sh("dd if=/dev/zero of=/file bs=1M count=160 2>/dev/null")
        resize(instance, memory_mb=48)
        assert instance.stats()["memory"]["limit"] == 48 * MIB
        assert instance.stats()["memory"]["oom_kills"] == 0

    def test_there_is_no_escape_into_swap_or_tmpfs(self, spawn):
        instance = spawn(flavor={"memory_mb": 48})
        result = instance.run("/bin/sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=200")
        assert result.returncode != 0
        assert instance.stats()["memory"]["swap"] == 0

    def test_swap_is_the_flavors(self, spawn):
        instance = spawn(flavor={"memory_mb": 48, "swap_mb": 16})
        group = instance.cgroup("memory")
        together = group / "memory.memsw.limit_in_bytes"
        if together.exists():
            assert int(together.read_text()) == 64 * MIB
        else:
            assert int((group / "memory.swap.max").read_text()) == 16 * MIB
        # Not even a host with much swap takes more.
        assert instance.run("/bin/sh", "-c", memory_hog(100)).stdout.strip() != str(100 * MIB)

    def test_the_limit_changes_while_it_runs(self, spawn):
        instance = spawn(flavor={"memory_mb": 48})
        resize(instance, memory_mb=256)
        script = memory_hog(100)
        assert instance.sh(script) == str(100 * MIB)
        resize(instance, memory_mb=64)
        assert instance.stats()["memory"]["limit"] == 64 * MIB
        assert instance.run("/bin/sh", "-c", script).stdout.strip() != str(100 * MIB)


class TestProcesses:
    @pytest.mark.each_runtime
    def test_a_fork_bomb_stops_at_its_limit(self, spawn):
        instance = spawn(flavor={"extra_specs": {"berth:processes": "40"}, "memory_mb": 128})
        bomb = "i=0; while [ $i -lt 200 ]; do sleep 300 & i=$((i+1)); done 2>/dev/null"
        instance.run("/bin/sh", "-c", bomb + " >/dev/null")
        shown = instance.stats()["pids"]
        assert shown["limit"] == 40
        assert shown["current"] <= 40
        assert instance.state == "RUNNING"

    def test_a_real_fork_bomb_harms_no_one_and_the_instance_can_go(self, spawn):
        bomb = spawn(flavor={"extra_specs": {"berth:processes": "60"}, "memory_mb": 128})
        other = spawn()
        bomb.run("/bin/sh", "-c", "(b() { b | b & }; b) >/dev/null 2>&1 &")
        assert other.sh("echo fine") == "fine"
        bomb.action("stop", timeout=1)
        assert bomb.pids() == []


def root_kib(instance):
    """Size of the root file system as the instance sees it."""
    return int(instance.sh("df -k / | tail -1").split()[1])


def may_grow_mounted_ext4():
    """Whether the service has CAP_SYS_RESOURCE, without which ext4 grows only unmounted."""
    held = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    return bool(int(held, 16) >> 24 & 1)


class TestDisk:
    def test_df_shows_the_flavors_disk(self, spawn):
        instance = spawn(flavor={"root_gb": 2})
        assert 1.85 <= root_kib(instance) / MIB <= 2.0

    def test_writing_past_it_is_enospc_inside_and_harms_no_one(self, spawn, service):
        instance, other = spawn(flavor={"root_gb": 1, "memory_mb": 128}), spawn()
        result = instance.run("/bin/sh", "-c", "dd if=/dev/zero of=/full bs=1M count=1100", timeout=300)
        assert result.returncode != 0
        assert "No space left on device" in result.stderr
        other.sh("dd if=/dev/zero of=/some bs=1M count=50 && sync")
        assert instance.state == "RUNNING"
        instance.sh("rm /full && echo again > /again && sync")
        blocks = {b["name"]: b for b in instance.stats()["block"]}
        assert 0.9 * (1 << 30) <= blocks["root"]["size"] <= 1 << 30

    def test_it_grows_and_does_not_shrink(self, spawn):
        instance = spawn(flavor={"root_gb": 1})
        instance.sh("echo here > /file")
        if may_grow_mounted_ext4():
            resize(instance, root_gb=2)
        else:
            with pytest.raises(Fault) as fault:
                resize(instance, root_gb=2)
            assert (fault.value.status, fault.value.code) == (501, "host-unsupported")
            assert "stop the instance" in fault.value.detail
            assert instance.get()["flavor"]["root_gb"] == 1
            instance.action("stop", timeout=1)
            resize(instance, root_gb=2)
            instance.action("start")
        assert root_kib(instance) > 1.8 * MIB
        assert instance.sh("cat /file") == "here"
        with pytest.raises(Fault) as fault:
            resize(instance, root_gb=1)
        assert (fault.value.status, fault.value.field) == (400, "flavor.root_gb")
        assert instance.get()["flavor"]["root_gb"] == 2

    @pytest.mark.each_runtime
    def test_an_ephemeral_disk_is_mounted(self, spawn):
        instance = spawn(flavor={"ephemeral_gb": 1})
        assert "/mnt" in instance.sh("df /mnt | tail -1")
        instance.sh("echo here > /mnt/file")
        instance.action("reboot", type="HARD")
        assert instance.sh("cat /mnt/file") == "here"
        assert [b["name"] for b in instance.stats()["block"]] == ["root", "ephemeral"]

    RATE = 8 * MIB

    def test_the_write_rate_holds(self, spawn):
        instance = spawn(flavor={"extra_specs": {"quota:disk_write_bytes_sec": str(self.RATE)}})
        self.rate_is(instance, "dd if=/dev/zero of=/f bs=256k count=64 oflag=direct conv=notrunc")

    def test_the_read_rate_holds(self, spawn):
        instance = self.with_a_file(spawn)
        resize(instance, extra_specs={"quota:disk_read_bytes_sec": str(self.RATE)})
        self.rate_is(instance, "dd if=/f of=/dev/null bs=256k iflag=direct")

    def test_the_total_rate_holds_for_both_directions_together(self, spawn):
        instance = self.with_a_file(spawn)
        resize(instance, extra_specs={"quota:disk_total_bytes_sec": str(self.RATE)})
        read = "dd if=/f of=/dev/null bs=256k count=32 iflag=direct"
        write = "dd if=/dev/zero of=/g bs=256k count=32 oflag=direct"
        self.rate_is(instance, f"{{ {read} & {write}; wait; }}")

    def with_a_file(self, spawn):
        instance = spawn()
        instance.sh("dd if=/dev/zero of=/f bs=1M count=16 oflag=direct")
        return instance

    def rate_is(self, instance, command):
        # Without the limit this disk must be much faster, or the test would show nothing.
        reaches(lambda: 16 * MIB / timed(instance, command), self.RATE)

    def test_the_number_of_operations_holds(self, spawn):
        instance = spawn(flavor={"extra_specs": {"quota:disk_write_iops_sec": "200"}})
        command = "dd if=/dev/zero of=/f bs=4k count=400 oflag=direct"
        reaches(lambda: 400 / timed(instance, command), 200)

    def test_the_rate_changes_while_it_runs(self, spawn):
        instance = spawn(flavor={"extra_specs": {"quota:disk_write_bytes_sec": str(MIB)}})
        resize(instance, extra_specs={"quota:disk_write_bytes_sec": str(self.RATE)})
        self.rate_is(instance, "dd if=/dev/zero of=/f bs=256k count=64 oflag=direct conv=notrunc")
        resize(instance, extra_specs={})
        assert timed(instance, "dd if=/dev/zero of=/f bs=256k count=64 oflag=direct") < 1.5


def timed(instance, command):
    """Seconds that a command takes, by the instance's own clock."""
    script = f"read a b < /proc/uptime; {command} 2>&1 >/dev/null; read c b < /proc/uptime; echo $a $c"
    # lxcfs's uptime has a resolution of 10 ms.
    *_, line = instance.sh(script, timeout=300).splitlines()
    start, end = map(float, line.split())
    return max(end - start, 0.01)


class TestNetworkRates:
    RATE_KB = 2000  # Nova's unit: kB/s

    def pair(self, spawn, service, **specs):
        limited = spawn(vifs=[service.vif()], flavor={"extra_specs": specs})
        peer = spawn(vifs=[service.vif()])
        return limited, peer

    def stream(self, sender, receiver):
        target = receiver.get()["vifs"][0]["addresses"][0].split("/")[0]
        # Its input stays open, or it would tell the sender that it is done.
        receiver.sh("(sleep 600 | nc -l -p 9000) >/dev/null 2>&1 &")
        sender.sh(f"(sleep 0.3; nc {target} 9000 < /dev/zero) >/dev/null 2>&1 &")

    def rate(self, instance, counter, seconds=1.5):
        """Bytes a second, from the interface's counter and the samples' own times."""

        def sample():
            stats = instance.stats()
            return stats["interfaces"][0][counter], seconds_of(stats["at"])

        (bytes_0, time_0) = sample()
        time.sleep(seconds)
        (bytes_1, time_1) = sample()
        return (bytes_1 - bytes_0) / (time_1 - time_0)

    def check(self, instance, counter):
        wait_for("traffic", lambda: instance.stats()["interfaces"][0][counter] > MIB)
        time.sleep(1)  # the allowed burst is over
        reaches(lambda: self.rate(instance, counter), self.RATE_KB * 1000)

    def test_outbound(self, spawn, service):
        limited, peer = self.pair(spawn, service, **{"quota:vif_outbound_average": str(self.RATE_KB)})
        self.stream(limited, peer)
        self.check(limited, "tx_bytes")

    def test_inbound(self, spawn, service):
        limited, peer = self.pair(spawn, service, **{"quota:vif_inbound_average": str(self.RATE_KB)})
        self.stream(peer, limited)
        self.check(limited, "rx_bytes")

    def test_it_changes_while_it_runs(self, spawn, service):
        limited, peer = self.pair(spawn, service, **{"quota:vif_outbound_average": "500"})
        resize(limited, extra_specs={"quota:vif_outbound_average": str(self.RATE_KB)})
        self.stream(limited, peer)
        self.check(limited, "tx_bytes")


BAD_FLAVORS = [
    ({"vcpus": 0}, "flavor.vcpus"),
    ({"vcpus": 4096}, "flavor.vcpus"),
    ({"memory_mb": 1}, "flavor.memory_mb"),
    ({"root_gb": 70_000}, "flavor.root_gb"),
    ({"extra_specs": {"quota:cpu_period": "10"}}, "flavor.extra_specs.quota:cpu_period"),
    ({"extra_specs": {"quota:cpu_quota": "many"}}, "flavor.extra_specs.quota:cpu_quota"),
    ({"extra_specs": {"quota:cpu_shares": "-1"}}, "flavor.extra_specs.quota:cpu_shares"),
    (
        {"extra_specs": {"quota:disk_read_bytes_sec": "1e6"}},
        "flavor.extra_specs.quota:disk_read_bytes_sec",
    ),
    (
        {"extra_specs": {"quota:vif_inbound_average": "fast"}},
        "flavor.extra_specs.quota:vif_inbound_average",
    ),
    ({"extra_specs": {"hw:cpu_policy": "sometimes"}}, "flavor.extra_specs.hw:cpu_policy"),
]


@pytest.mark.parametrize("flavor,field", BAD_FLAVORS, ids=[json.dumps(f)[:50] for f, _ in BAD_FLAVORS])
def test_a_bad_flavor_is_refused_at_create_and_at_resize(instance, service, busybox, flavor, field):
    before = instance.get()
    with pytest.raises(Fault) as fault:
        service.define(busybox, flavor=flavor)
    assert (fault.value.status, fault.value.field) == (400, field), fault.value
    with pytest.raises(Fault) as fault:
        resize(instance, **flavor)
    assert (fault.value.status, fault.value.field) == (400, field), fault.value
    assert instance.get()["flavor"] == before["flavor"]


CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def parted(runtime, lxcfs, busybox_file):
    """A service on XFS whose last CPU is for dedicated use."""
    shared, dedicated = ",".join(map(str, CPUS[:-1])), str(CPUS[-1])
    host = {"cpu_shared_set": shared, "cpu_dedicated_set": dedicated}
    service = Service(runtime, lxcfs.mount_point, settings={"host": host, "storage": {"filesystem": "xfs"}})
    try:
        service.start()
        service.image = service.import_image(busybox_file)
        yield service
    except BaseException:
        service.sweep()
        raise
    left = service.close()
    assert not left, "left on the host:\n" + "\n".join(left)


def test_a_host_without_dedicated_cpus_says_so_of_the_flavor(service, busybox):
    """Not that they ran out: nobody who gave some back would help."""
    with pytest.raises(Fault) as fault:
        service.define(busybox, flavor={"extra_specs": {"hw:cpu_policy": "dedicated"}})
    assert (fault.value.status, fault.value.code) == (400, "invalid-input")
    assert fault.value.field == "flavor.extra_specs.hw:cpu_policy"


@pytest.mark.skipif(len(CPUS) < 2, reason="a shared and a dedicated CPU make two")
class TestDedicated:
    DEDICATED: ClassVar = {"extra_specs": {"hw:cpu_policy": "dedicated"}}

    def test_a_cpu_has_one_owner_and_the_others_keep_off(self, parted):
        shared = parted.spawn(parted.image)
        owner = parted.spawn(parted.image, flavor=self.DEDICATED)
        assert allowed_cpus(owner) == str(CPUS[-1])
        assert owner.get()["pinned_cpus"] == [CPUS[-1]]
        assert f"CPUs {CPUS[-1]}" in parted.berth("show", owner.id)
        assert str(CPUS[-1]) not in allowed_cpus(shared)
        with pytest.raises(Fault) as fault:
            parted.define(parted.image, flavor=self.DEDICATED)
        assert (fault.value.status, fault.value.code) == (507, "resources-exhausted")
        owner.delete()
        heir = parted.spawn(parted.image, flavor=self.DEDICATED)
        assert allowed_cpus(heir) == str(CPUS[-1])
        for instance in (heir, shared):
            instance.delete()

    def test_the_policy_cannot_change(self, parted):
        instance = parted.spawn(parted.image)
        with pytest.raises(Fault) as fault:
            resize(instance, **self.DEDICATED)
        assert (fault.value.status, fault.value.field) == (400, "flavor.extra_specs.hw:cpu_policy")
        instance.delete()

    def test_xfs_grows_while_it_runs(self, parted):
        instance = parted.spawn(parted.image, flavor={"root_gb": 1, "ephemeral_gb": 1})
        resize(instance, root_gb=2, ephemeral_gb=3)
        assert 1.8 <= root_kib(instance) / MIB <= 2.0
        assert 2.8 <= int(instance.sh("df -k /mnt | tail -1").split()[1]) / MIB <= 3.0
        blocks = {b["name"]: b["size"] >> 20 for b in instance.stats()["block"]}
        assert blocks["root"] > 1843
        assert blocks["ephemeral"] > 2867
        instance.delete()
