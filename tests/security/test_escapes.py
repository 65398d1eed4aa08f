"""Root inside an instance tries to get out in every classic way, and is refused each time.

Every attempt runs inside, as root, through `berth exec`. Attempts that need
system calls are in probe.c; files of the kernel are in test_kernel_files.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness.program import injected, possible_outside
from harness.service import BERTH

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def prisoner(service, busybox, probe_file):
    """A running instance with the probe in it."""
    probe = injected(probe_file, "/bin/probe")
    instance = service.spawn(busybox, vifs=[service.vif()], files=[probe])
    instance.wait_console("is up")
    yield instance
    instance.discard()


@pytest.fixture(scope="module")
def neighbour(service, busybox):
    """Another instance, to be attacked."""
    instance = service.spawn(busybox, vifs=[service.vif()])
    yield instance
    instance.discard()


# Each gets through where nothing forbids it, which the host is asked first.
CALLS = [
    "mknod", "module", "bpf", "perf", "handle", "reboot", "kexec", "swap", "acct", "syslog",
    "quota", "settime", "ioport", "mount", "keyring",
]  # fmt: skip


@pytest.mark.parametrize("attempt", CALLS)
def test_a_system_call_is_refused(prisoner, probe_file, ctrl_alt_del, attempt):
    possible_outside(probe_file, attempt)
    # The same kernel did it for the host: what is absent here is so by the wall.
    result = prisoner.run("/bin/probe", attempt)
    assert result.stdout.startswith(("refused", "absent")), result.stdout + result.stderr


def test_no_descriptor_of_the_host_is_open(prisoner, probe_file):
    with probe_file.open() as file:
        outside = subprocess.run(
            [probe_file, "fds"], pass_fds=[file.fileno()], stdout=subprocess.PIPE, text=True
        )
    assert outside.stdout.startswith("POSSIBLE")
    result = prisoner.run("/bin/probe", "fds")
    assert result.stdout.startswith("refused"), result.stdout + result.stderr


@pytest.mark.parametrize("attempt", ["setns", "map"])
def test_its_user_namespace_is_not_left(prisoner, attempt):
    result = prisoner.run("/bin/probe", attempt)
    assert result.stdout.startswith("refused"), result.stdout + result.stderr


@pytest.fixture(scope="module")
def confined(service, application, probe_file):
    """A running application with the probe in it."""
    probe = injected(probe_file, "/bin/probe")
    instance = service.spawn(application, files=[probe])
    yield instance
    instance.discard()


@pytest.mark.parametrize("user", ["0", "1000"])
@pytest.mark.parametrize("kind", ["system", "application"])
@pytest.mark.parametrize("way", ["plain", "high", "i386", "socketcall"])
def test_no_socket_is_of_a_family_that_reaches_further(prisoner, confined, probe_file, way, kind, user):
    outside = subprocess.run([probe_file, "family", way], capture_output=True, text=True)
    if not outside.stdout.startswith("POSSIBLE"):
        pytest.skip(f"this host has none: {outside.stdout}")
    instance = {"system": prisoner, "application": confined}[kind]

    def probe(attempt: str) -> str:
        command = ("exec", "--user", user, instance.id, "--", "/bin/probe", attempt, way)
        return instance.service.run_berth(*command).stdout

    assert probe("family").startswith("refused")
    usual = probe("usual")
    assert usual.startswith("refused" if way == "socketcall" else "POSSIBLE"), usual


def test_only_the_usual_devices_are_there(prisoner):
    listed = prisoner.sh("find /dev -type c -o -type b").split()
    # What FUSE gives is told in test_fuse.py.
    usual = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "vda", "fuse"}
    strange = {d for d in listed if d.rpartition("/")[2] not in usual and not d.startswith("/dev/pts/")}
    assert strange == set()
    assert prisoner.sh("find /dev -type b") == "/dev/vda"


def test_the_hosts_mounts_are_not_there(prisoner):
    mounts = prisoner.sh("cat /proc/mounts")
    points = [line.split()[1] for line in mounts.splitlines()]
    for point in points:
        assert point == "/" or point.startswith(("/proc", "/sys", "/dev", "/run", "/tmp")), point
    assert str(prisoner.service.base) not in mounts


def test_its_root_is_nobody_outside(prisoner):
    pid = prisoner.get()["pid"]
    uids = Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[:4]
    first = prisoner.get()["id_map_first"]
    assert uids == [str(first)] * 4
    assert first >= 65_536
    mapping = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert mapping == ["0", str(first), "65536"]
    assert Path(f"/proc/{pid}/gid_map").read_text().split() == mapping


def test_its_files_belong_to_nobody_outside(prisoner):
    prisoner.sh("cp /bin/busybox /root/sh && chmod 4755 /root/sh")
    for copy in prisoner.service.base.rglob("upper/root/sh"):
        # On its own disk root is 0: so no one but the host's root may reach it there.
        above = [p for p in copy.parents if p.is_relative_to(prisoner.service.base)]
        reachable = all(p.stat().st_mode & 0o011 for p in above)
        assert not reachable, f"{copy} is a set-user-id root file that users of the host can run"


def status(instance):
    lines = Path(f"/proc/{instance.get()['pid']}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_seccomp_is_on_and_no_new_capabilities(prisoner):
    shown = status(prisoner)
    assert shown["Seccomp"] == "2"
    assert prisoner.sh("grep Seccomp: /proc/self/status").split()[1] == "2"


# Docker's fourteen (moby's `DefaultCapabilities`), what the kernel grants nobody but the host's root whoever
# holds it (tests/system/ordinary.c asks), and what a system container's init needs beside them.
DOCKER = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
POWERLESS = {9, 14, 20, 24, 25, 26, 28, 30, 34, 35, 36, 37, 38, 39}
SYSTEM = DOCKER | POWERLESS | {2, 12, 15, 19, 21, 22, 23}


def test_capabilities_are_bounded(prisoner):
    bounding = int(status(prisoner)["CapBnd"], 16)
    held = {bit for bit in range(64) if bounding >> bit & 1}
    assert held <= SYSTEM, f"unexpected capabilities {held - SYSTEM}"


def test_an_application_gets_no_more_power_than_docker_gives(service, application):
    instance = service.spawn(application)
    # Until then it may still be the runtime's.
    instance.wait_console("hello from")
    held = int(status(instance)["CapBnd"], 16)
    assert {bit for bit in range(64) if held >> bit & 1} <= DOCKER | POWERLESS
    assert int(status(instance)["CapEff"], 16) == 0, "a user that is not root has capabilities"
    instance.discard()


def test_processes_of_others_are_not_visible_and_cannot_be_traced(prisoner, neighbour):
    pids = {int(p) for p in prisoner.sh("ls /proc").split() if p.isdigit()}
    assert len(pids) < 20
    own = prisoner.run("/bin/sh", "-c", "sleep 60 & /bin/probe ptrace $!; kill -9 $!")
    assert own.stdout.startswith("POSSIBLE"), f"it traces nobody: {own}"
    target = neighbour.get()["pid"]
    result = prisoner.run("/bin/probe", "ptrace", str(target))
    assert result.stdout.startswith("refused"), result.stdout
    assert subprocess.run(["kill", "-0", str(target)]).returncode == 0
    assert "No such process" in prisoner.run("kill", "-0", str(target)).stderr
    assert not prisoner.run("ls", f"/proc/{target}/root").stdout


def enter_as(first: int, attempt: list[str]) -> subprocess.CompletedProcess:
    """Runs as the host ids of an instance, without any of its walls but its ids."""
    return subprocess.run(
        ["setpriv", "--reuid", str(first), "--regid", str(first), "--clear-groups", *attempt],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_even_outside_its_ids_open_nothing(prisoner, neighbour):
    first = prisoner.get()["id_map_first"]
    base = prisoner.service.base
    its, other = prisoner.get()["pid"], neighbour.get()["pid"]
    for path in (
        base / "state/instances",
        base / "state/images",
        base / f"run/i/{neighbour.id}",
        f"/proc/{other}/root/etc",
        f"/proc/{other}/environ",
        f"/proc/{os.getpid()}/root/etc",
    ):
        command = ["cat" if str(path).endswith("environ") else "ls", str(path)]
        assert subprocess.run(command, capture_output=True).returncode == 0, f"there is no {path}"
        result = enter_as(first, command)
        assert result.returncode != 0, f"{path}: {result.stdout[:200]}"
    assert enter_as(first, ["kill", "-0", str(other)]).returncode != 0
    connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    sockets = [base / "sock", *base.glob("run/i/*/monitor.sock")]
    assert len(sockets) > 2
    for path in sockets:
        command = ["/usr/bin/python3", "-c", connect, str(path)]
        assert subprocess.run(command).returncode == 0, f"nobody listens at {path}"
        assert enter_as(first, command).returncode != 0, path
    assert Path(f"/proc/{its}").exists()


@pytest.mark.parametrize("attempt", ["setuid", "chown"])
def test_ids_of_another_block_cannot_be_taken(prisoner, neighbour, attempt):
    other = neighbour.get()["id_map_first"]
    own = prisoner.run("/bin/probe", attempt, "1000").stdout
    assert own.startswith("POSSIBLE"), f"not even its own: {own}"
    for identity in (65_536, 70_000, other, other + 5):
        result = prisoner.run("/bin/probe", attempt, str(identity))
        assert result.stdout.startswith("refused"), f"{identity}: {result.stdout}"


def test_the_runtimes_own_program_cannot_be_overwritten(prisoner):
    """CVE-2019-5736: /proc/self/exe of the runtime's exec, opened for writing from inside."""
    runtime = prisoner.service.client.get("/v1/host")["capabilities"]["runtime"]["path"]
    before = Path(runtime).read_bytes()
    prisoner.sh("printf '#!/proc/self/exe\\n' > /tmp/trap && chmod 755 /tmp/trap")
    watch = [BERTH, "exec", "--socket", prisoner.service.socket, prisoner.id]
    watch += ["--", "/bin/probe", "overwrite", "8"]
    with subprocess.Popen(watch, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout.readline() == "ready\n"
        while watcher.poll() is None:
            prisoner.run("/tmp/trap")
            prisoner.run("true")
        said = watcher.stdout.read()
    assert said.startswith("refused"), said
    assert Path(runtime).read_bytes() == before


def test_no_directory_of_the_host_is_reachable_by_a_leftover_descriptor(prisoner, probe_file):
    """CVE-2024-21626: a descriptor of the host that the runtime left open, as a way out."""
    marker = Path("/var/tmp") / f"{prisoner.service.token}-marker"
    marker.write_text("host")
    try:
        outside = subprocess.run([probe_file, "leftover", marker], capture_output=True, text=True)
        assert outside.stdout.startswith("POSSIBLE")
        for _ in range(3):
            result = prisoner.run("/bin/probe", "leftover", str(marker))
            assert result.stdout.startswith("refused"), result.stdout + result.stderr
    finally:
        marker.unlink()


def test_links_planted_inside_do_not_lead_the_service_out(prisoner, service):
    """Files that the service writes at start go through the instance's own tree."""
    victim = Path("/var/tmp") / f"{service.token}-victim"
    victim.write_text("untouched")
    try:
        prisoner.sh(
            f"rm -rf /etc/hosts /etc/resolv.conf /etc/hostname /etc/machine-id; "
            f"for f in hosts resolv.conf hostname machine-id; do ln -s {victim} /etc/$f; done"
        )
        prisoner.action("reboot", type="HARD")
        assert victim.read_text() == "untouched"
        assert victim.stat().st_uid == 0
    finally:
        victim.unlink()


def test_mounts_made_inside_stay_inside(prisoner):
    prisoner.sh("mkdir -p /mnt/x && mount -t tmpfs none /mnt/x")
    assert "/mnt/x" not in Path("/proc/mounts").read_text()
    prisoner.sh("umount /mnt/x")


def test_the_network_of_the_host_is_not_reachable_as_a_link(prisoner):
    assert set(prisoner.sh("ls /sys/class/net").split()) == {"lo", "eth0"}
    script = "ip link set eth0 netns 1 && exit 0; ip link set eth0 down; ip link set eth0 up"
    prisoner.sh(script)
    assert set(prisoner.sh("ls /sys/class/net").split()) == {"lo", "eth0"}


def test_the_console_cannot_speak_to_the_monitor(prisoner):
    """Bytes that look like the monitor's own protocol are just output."""
    prisoner.sh(r"""printf '{"exited":{"code":0}}\n\000\000\000\004quit' > /dev/console""")
    assert prisoner.state == "RUNNING"
    assert prisoner.sh("echo fine") == "fine"
