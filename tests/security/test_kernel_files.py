"""What the host's kernel shows as files is not written from inside, nor read where it tells.

Each attempt is made by a compiled program (probe_reach.c), first on the host, where it has to
succeed: what the host has not proves nothing and is skipped. Inside, a reason that says that
somebody may not is the only one that counts: an absent file is no wall, unless a mount that does
not come off is above it and no other is to be had. Both where the view is locked and where not.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from harness.program import compiled, injected

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def reach_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that tries."""
    return compiled(Path(__file__).with_name("probe_reach.c"), tmp_path_factory.mktemp("reach"))


@pytest.fixture(scope="module", params=["false", "true"], ids=["locked", "fresh_proc"])
def prisoner(request, service, busybox, reach_file):
    """A running instance with the program in it."""
    flavor = {"extra_specs": {"berth:fresh_proc": request.param, "berth:fuse": "false"}}
    instance = service.spawn(busybox, flavor=flavor, files=[injected(reach_file, "/bin/reach")])
    instance.wait_console("is up")
    yield instance
    instance.discard()


@pytest.fixture
def on_host(reach_file):
    """Makes an attempt outside, in a mount namespace of its own; skips the test where it fails there too."""

    def attempt(*words: str) -> None:
        command = ["unshare", "--mount", "--propagation", "private", reach_file, *words]
        result = subprocess.run(command, capture_output=True, text=True)
        if not result.stdout.startswith("POSSIBLE"):
            pytest.skip(f"nor is it possible on this host: {result.stdout}{result.stderr}")

    return attempt


def refused(instance, *words: str) -> None:
    result = instance.run("/bin/reach", *words)
    assert result.stdout.startswith("refused"), f"{words}: {result.stdout}{result.stderr}"


# Each would change the host.
WRITTEN = [
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/pty/max",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/file-max",
    "/proc/mtrr",
    "/proc/acpi/wakeup",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/module/printk/parameters/time",
    "/sys/devices/system/cpu/cpu1/online",
]


@pytest.mark.parametrize("path", WRITTEN)
def test_a_kernel_file_cannot_be_written(prisoner, on_host, path):
    on_host("open", "w", path)
    refused(prisoner, "reach", "w", path)


# Each tells of the host's memory, processes, hardware or messages.
READ = [
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/sys/firmware/dmi/tables/DMI",
    "/sys/kernel/debug/sched/debug",
    "/sys/kernel/tracing/trace",
]


@pytest.mark.parametrize("path", READ)
def test_a_kernel_file_gives_nothing_away(prisoner, on_host, path):
    on_host("open", "r", path)
    refused(prisoner, "reach", "r", path)


def raw_devices() -> list[str]:
    """Devices that are the host's: memory, terminals, disks, what makes more of them."""
    names = ["mem", "kmsg", "port", "tty0", "ttyS0", "fuse", "loop-control", "kvm", "rtc0", "net/tun"]
    return [*names, "root"]


def number_of(name: str) -> tuple[int, int]:
    """Kind and number of a device of the host; `root` is what its root file system lies on."""
    if name == "root":
        return stat.S_IFBLK, os.stat("/").st_dev
    status = os.stat(f"/dev/{name}")
    return stat.S_IFMT(status.st_mode), status.st_rdev


def make_node(instance, path: Path, kind: int, number: int) -> None:
    """With the host's right to make nodes, as the instance's root, for it has no other users."""
    user = str(instance.get()["id_map_first"])
    command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--inh-caps", "+mknod"]
    letter = "b" if kind == stat.S_IFBLK else "c"
    node = ["mknod", "-m", "666", path, letter, str(os.major(number)), str(os.minor(number))]
    subprocess.run([*command, "--ambient-caps", "+mknod", *node], check=True)


@pytest.mark.parametrize("name", raw_devices())
@pytest.mark.parametrize("place", ["dev", "root"])
def test_a_node_of_a_raw_device_opens_nothing(prisoner, runtime, reach_file, tmp_path, name, place):
    """The host's root puts it there, which nobody inside can."""
    if (runtime, name) == ("runc", "net/tun"):
        pytest.skip("runc lets it be opened whatever it is told: its interfaces are of a network namespace")
    try:
        kind, number = number_of(name)
    except FileNotFoundError:
        pytest.skip(f"this host has no {name}")
    outside = tmp_path / "node"
    inside = Path(f"/proc/{prisoner.get()['pid']}/root/{place}/node")
    os.mknod(outside, kind | 0o666, number)
    opened = subprocess.run([reach_file, "open", "w", outside], capture_output=True, text=True)
    if not opened.stdout.startswith("POSSIBLE"):
        pytest.skip(f"nor is it possible on this host: {opened.stdout}")
    make_node(prisoner, inside, kind, number)
    try:
        refused(prisoner, "open", "w", f"/{place}/{inside.name}")
        refused(prisoner, "open", "r", f"/{place}/{inside.name}")
    finally:
        inside.unlink()


def limits() -> list[tuple[str, str]]:
    names = {
        "memory": "memory.limit_in_bytes memory.max",
        "pids": "pids.max",
        "cpu": "cpu.cfs_quota_us cpu.max cpu.shares",
        "devices": "devices.allow",
        "cpuset": "cpuset.cpus",
        "hugetlb": "hugetlb.2MB.limit_in_bytes hugetlb.2MB.max",
    }
    return [(controller, file) for controller, files in names.items() for file in files.split()]


def cgroups_of(pid: int) -> list[Path]:
    """The directories of its cgroup, one for each hierarchy that the host has mounted."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = {}
    for left, right in mounts:
        kind, _, options = right.split(" ")[:3]
        if kind in ("cgroup", "cgroup2"):
            points["" if kind == "cgroup2" else options.removeprefix("rw,")] = Path(left.split(" ")[4])
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        if name in points:
            found.append(points[name] / path.lstrip("/"))
    return found


@pytest.mark.parametrize("controller,file", limits())
def test_its_own_limits_cannot_be_raised(prisoner, controller, file):
    pid = prisoner.get()["pid"]
    if not any((group / file).exists() for group in cgroups_of(pid)):
        pytest.skip("this host's hierarchies have no such file")
    refused(prisoner, "limit", controller, file)


def test_it_has_no_release_agent(prisoner, on_host, service):
    on_host("hierarchy", f"{service.token}-host")
    refused(prisoner, "hierarchy", f"{service.token}-inside")


def test_it_is_not_spared_when_memory_is_short(prisoner, on_host):
    on_host("oom", "-1000")
    refused(prisoner, "oom", "-1000")
