"""Namespaces, mounts and containers that root and users inside make, as flavors allow them."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest
from harness import ROOT, wait_for

pytestmark = pytest.mark.each_runtime

#: A container's root file system, its image, and users who make containers of ids within the instance's.
PREPARE = """
useradd -m one
mount -t tmpfs t /mnt
mkdir -p /mnt/u /mnt/w /mnt/m /on/u /on/w /on/m /fuse/u /fuse/w /fuse/m
mkdir -p /tree/bin /tree/etc /tree/usr/bin
cp /bin/busybox /tree/bin
ln -s busybox /tree/bin/sh
echo ID=tree > /tree/etc/os-release
tar -C /tree -cf /tmp/tree.tar .
chmod 644 /tmp/tree.tar
sed -i s/100000:65536/10000:50000/ /etc/subuid /etc/subgid
"""
PODMAN = "podman {} run --rm --pids-limit 0 {} tree sh -c 'exit 0'"
ROOTLESS = 'su - one -c "podman import -q /tmp/tree.tar tree && ' + PODMAN.format("", "") + '"'
BUBBLE = "bwrap --ro-bind / / --dev /dev --unshare-all"
OVERLAY = "mount -t overlay o -o lowerdir=/usr,upperdir=/{0}/u,workdir=/{0}/w /{0}/m"

#: What is tried, and whether it works with each of the flavors below.
TRIED = {
    "unshare -Urpf id -u": (True, True, True, False),
    "su one -c 'unshare -Urpf id -u'": (True, True, True, False),
    "unshare -mpf --mount-proc ps ax": (False, True, True, False),
    "unshare -Urpf --mount-proc ps ax": (False, False, True, False),
    "su one -c 'unshare -Urpf --mount-proc ps ax'": (False, False, True, False),
    "ip netns add first && ip netns exec first ip link": (False, True, True, False),
    "ip netns add second && nsenter --net=/run/netns/second ip link": (True, True, True, True),
    OVERLAY.format("mnt"): (True, True, True, True),
    OVERLAY.format("on"): (False, False, False, False),
    "fuse-overlayfs -o lowerdir=/usr,upperdir=/fuse/u,workdir=/fuse/w /fuse/m && touch /fuse/m/x": (
        True,
        True,
        True,
        False,
    ),
    "ls /dev/fuse": (True, True, True, False),
    "ip tuntap add dev tun5 mode tun": (False, True, True, False),
    f"{BUBBLE} true": (True, True, True, False),
    f"su one -c '{BUBBLE} true'": (True, True, True, False),
    f"su one -c '{BUBBLE} --proc /proc true'": (False, False, True, False),
    "podman import -q /tmp/tree.tar tree": (True, True, True, True),
    PODMAN.format("", ""): (False, True, True, False),
    PODMAN.format("--runtime runc", ""): (False, True, True, False),
    PODMAN.format("", "--network host"): (False, True, True, False),
    ROOTLESS: (False, False, True, False),
    "systemd-nspawn -q -D /tree --pipe /bin/sh -c 'exit 0'": (False, True, True, False),
}


@pytest.fixture(scope="module")
def containers(service) -> str:
    """Id of the Debian image with programs that make containers."""
    directory = ROOT / "target/images"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "containers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may want it, too
        command = [ROOT / "scripts/image-debian", "--containers"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert made.returncode == 0, "scripts/image-debian failed"
    return service.import_image(Path(made.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "column,specs",
    enumerate(
        [
            {},
            {"berth:fresh_proc": "true", "berth:tun": "true"},
            {"berth:fresh_proc": "users", "berth:tun": "true"},
            {"berth:nesting": "false", "berth:fuse": "false"},
        ]
    ),
    ids=["default", "fresh_proc", "fresh_proc of users", "without nesting"],
)
def test_namespaces_inside(service, containers, made, runtime, column, specs):
    flavor = {"memory_mb": 512, "root_gb": 2, "extra_specs": specs}
    instance = service.spawn(containers, flavor=flavor, vifs=[service.vif()])
    made.append(instance)
    states = ("running", "degraded")
    wait_for("systemd", lambda: instance.run("systemctl", "is-system-running").stdout.strip() in states)
    assert instance.sh("systemctl --failed --no-legend") == ""
    instance.sh(PREPARE)
    ended = {command: instance.run("/bin/sh", "-c", command, timeout=60) for command in TRIED}
    for command, end in ended.items():
        print(f"{command}: {end.returncode}: {end.stderr.strip()[-300:]}")
    found = {command: end.returncode == 0 for command, end in ended.items()}
    expected = {command: works[column] for command, works in TRIED.items()}
    if runtime == "runc":
        # What it masks in sysfs itself, it locks.
        expected["ip netns add first && ip netns exec first ip link"] = False
    assert found == expected
    # What is hidden of the host shows where nobody but root looks.
    uncovered = instance.run("ls", "/dev/.berth").stdout.split()
    assert uncovered == (["proc", "sys"] if specs.get("berth:fresh_proc") == "users" else [])
    assert instance.run("su", "one", "-c", "ls /dev/.berth/").returncode != 0
