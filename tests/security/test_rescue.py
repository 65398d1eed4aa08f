"""A rescued instance has its own root file system beside another, and no more of the host than before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hoststate
import imagelib
import pytest
from harness import Fault
from harness.program import injected, possible_outside

pytestmark = pytest.mark.each_runtime

OWN = "/mnt/instance"


@pytest.fixture(scope="module")
def plain(service, busybox):
    """A running instance like it, which is not rescued."""
    instance = service.spawn(busybox)
    yield instance
    instance.discard()


@pytest.fixture(scope="module")
def prisoner(service, busybox, probe_file):
    """A rescued instance with the probe in both of its root file systems."""
    probe = injected(probe_file, "/bin/probe")
    instance = service.define(busybox, vifs=[service.vif()], files=[probe], flavor={"ephemeral_gb": 1})
    instance.action("rescue", image_id=busybox, files=[probe])
    yield instance
    instance.discard()


ATTEMPTS = [
    "mknod", "module", "bpf", "perf", "handle", "reboot", "kexec", "swap", "acct", "syslog",
    "quota", "settime", "ioport", "setns", "fds", "mount", "map",
]  # fmt: skip


# The others look for what they attack in /proc, which is not mounted there, or make a user namespace,
# as nobody can in another root.
THERE = [attempt for attempt in ATTEMPTS if attempt not in ("setns", "fds", "map")]


@pytest.mark.parametrize("attempt,root", [*((a, "/") for a in ATTEMPTS), *((a, OWN) for a in THERE)])
def test_a_system_call_is_refused(prisoner, probe_file, ctrl_alt_del, attempt, root):
    if attempt not in ("setns", "fds", "map"):
        possible_outside(probe_file, attempt)
    result = prisoner.run("chroot", root, "/bin/probe", attempt)
    # The same kernel did it for the host: what is absent here is so by the wall.
    walls = "refused" if attempt in ("setns", "fds", "map") else ("refused", "absent")
    assert result.stdout.startswith(walls), result.stdout + result.stderr


def status(instance) -> dict[str, str]:
    lines = Path(f"/proc/{instance.get()['pid']}/status").read_text().splitlines()
    fields = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    return {line.split(":")[0]: line for line in lines if line.startswith(fields)}


def test_its_walls_are_those_of_any_instance(prisoner, plain):
    assert status(prisoner) == status(plain)
    pid, shown = prisoner.get()["pid"], prisoner.get()
    for mapping in ("uid_map", "gid_map"):
        lines = Path(f"/proc/{pid}/{mapping}").read_text().split()
        assert lines == ["0", str(shown["id_map_first"]), "65536"]
    listed = [
        set(instance.sh("find /dev | grep -v -e /dev/pts/ -e /dev/disk/by-id/").split())
        for instance in (prisoner, plain)
    ]
    assert listed[0] == listed[1] | {"/dev/vdb", "/dev/vdc"}
    links = [instance.sh("ls /dev/disk/by-id").split() for instance in (prisoner, plain)]
    assert (len(links[0]), len(links[1])) == (3, 1)


def mounts(instance) -> dict[str, tuple[str, set[str]]]:
    lines = (line.split() for line in instance.sh("cat /proc/mounts").splitlines())
    return {point: (kind, set(options.split(","))) for _, point, kind, options, *_ in lines}


def test_it_sees_its_own_two_file_systems_more_and_nothing_else(prisoner, plain):
    seen, usual = mounts(prisoner), mounts(plain)
    disks = {f"/sys/devices/virtual/block/{d}/{file}" for d in ("vdb", "vdc") for file in ("queue", "size")}
    assert set(seen) - set(usual) == {OWN, "/mnt/ephemeral"} | disks
    assert set(usual) <= set(seen)
    assert str(prisoner.service.base) not in prisoner.sh("cat /proc/mounts /proc/self/mountinfo")
    for point in ("/", OWN, "/mnt/ephemeral"):
        assert "nodev" in seen[point][1], point
    assert (seen[OWN][0], seen["/"][0]) == ("overlay", "overlay")
    assert prisoner.sh(f"ls -d {OWN}/.. {OWN}/../..; cd {OWN}/../../..; pwd").splitlines()[-1] == "/"


@pytest.mark.parametrize("device", ["b 7 0", "b 8 0", "c 1 1", "c 10 237"])
def test_a_raw_device_cannot_be_made_there(prisoner, device):
    script = f"mkdir -p {OWN}/tmp && rm -f {OWN}/tmp/n && mknod {OWN}/tmp/n {device} && head -c 1 {OWN}/tmp/n"
    result = prisoner.run("/bin/sh", "-c", script)
    assert result.returncode != 0 and "Operation not permitted" in result.stderr, result.stderr


def test_what_it_writes_there_belongs_to_nobody_outside(prisoner):
    prisoner.sh(f"mkdir -p {OWN}/root; cp /bin/busybox {OWN}/root/sh; chmod 4755 {OWN}/root/sh")
    base, shown = prisoner.service.base, prisoner.get()
    own = base / "run/i" / prisoner.id / "own/root/sh"
    assert own.stat().st_uid == shown["id_map_first"]
    # On the disk root is 0: no one but the host's root may reach it.
    for copy in [own, *base.rglob("upper/root/sh")]:
        above = [p for p in copy.parents if p.is_relative_to(base)]
        assert not all(p.stat().st_mode & 0o001 for p in above), copy
    for name in ("disk", "rescue"):
        [options] = [o for p, _, o in _mount_options() if p == base / "run/i" / prisoner.id / name]
        assert {"nosuid", "nodev"} <= options, name
    result = subprocess.run(
        ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", own, "sh", "-c", "id -u"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0, result.stdout


def _mount_options() -> list[tuple[Path, str, set[str]]]:
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [(Path(point), kind, set(options.split(","))) for _, point, kind, options, *_ in lines]


@pytest.mark.parametrize("link", ["mnt", "mnt/instance"])
def test_links_of_the_rescue_image_do_not_lead_out(service, busybox, tmp_path, link):
    """The runtime makes the mount's place inside the image, which is the user's."""
    victim = Path("/var/tmp") / f"{service.token}-victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    # All of a small system image, with the way there led astray.
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::respawn:-/bin/sh\n")
    tree.symlink(link, "../" * 12 + str(victim)[1:])
    path = tmp_path / "hostile.tar"
    path.write_bytes(tree.tar())
    image = service.import_image(path)
    instance = service.define(busybox)
    try:
        # Refused or not, nothing of the host is touched.
        try:
            instance.action("rescue", image_id=image)
            assert instance.sh("echo inside") == "inside"
        except Fault as fault:
            assert fault.code in ("runtime-failed", "instance-unsupported", "image-unacceptable"), fault
        assert sorted(p.name for p in victim.iterdir()) == ["file"]
        assert not [p for p, _, _ in hoststate.mount_points() if p.is_relative_to(victim)]
    finally:
        instance.discard()
        service.client.delete(f"/v1/images/{image}")
        (victim / "file").unlink()
        victim.rmdir()


def test_links_of_its_own_root_file_system_do_not_lead_the_service_out(service, busybox):
    """What is broken inside may be broken on purpose."""
    victim = Path("/var/tmp") / f"{service.token}-other-victim"
    victim.write_text("untouched")
    instance = service.spawn(busybox)
    try:
        instance.sh(
            f"for f in hosts hostname machine-id; do rm -f /etc/$f; ln -s {victim} /etc/$f; done;"
            f"rm -rf /mnt /config-drive; ln -s {victim} /mnt; ln -s / /config-drive; sync"
        )
        instance.action("stop", timeout=0)
        instance.action("rescue", image_id=busybox)
        assert instance.sh(f"readlink {OWN}/mnt; readlink {OWN}/etc/hosts").split() == [str(victim)] * 2
        instance.action("unrescue")
        assert victim.read_text() == "untouched"
        assert victim.stat().st_uid == 0
    finally:
        instance.discard()
        victim.unlink()
