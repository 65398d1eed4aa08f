"""Namespaces and mounts that root and users inside make, as flavors allow them."""

from __future__ import annotations

import pytest
from harness import wait_for

pytestmark = pytest.mark.each_runtime

#: What is tried, and whether it works by default, with fresh_proc, and without nesting.
TRIED = {
    "unshare -Urpf id -u": (True, True, False),
    "su one -c 'unshare -Urpf id -u'": (True, True, False),
    "unshare -mpf --mount-proc ps ax": (False, True, False),
    "unshare -Urpf --mount-proc ps ax": (False, False, False),
    "ip netns add first && ip netns exec first ip link": (False, True, False),
    "ip netns add second && nsenter --net=/run/netns/second ip link": (True, True, True),
    "mount -t overlay o -o lowerdir=/usr,upperdir=/mnt/u,workdir=/mnt/w /mnt/m": (True, True, True),
    "mount -t overlay o -o lowerdir=/usr,upperdir=/on/u,workdir=/on/w /on/m": (False, False, False),
    "ls /dev/fuse": (False, False, False),
    "ls /dev/net/tun": (False, False, False),
}


@pytest.mark.parametrize(
    "column,specs",
    enumerate([{}, {"berth:fresh_proc": "true"}, {"berth:nesting": "false"}]),
    ids=["default", "fresh_proc", "without nesting"],
)
def test_namespaces_inside(service, debian, made, runtime, column, specs):
    flavor = {"memory_mb": 300, "root_gb": 1, "extra_specs": specs}
    instance = service.spawn(debian, flavor=flavor)
    made.append(instance)
    wait_for("systemd", lambda: instance.run("systemctl", "is-system-running").stdout.strip() == "running")
    instance.sh("useradd -m one; mount -t tmpfs t /mnt; mkdir -p /mnt/u /mnt/w /mnt/m /on/u /on/w /on/m")
    found = {command: instance.run("/bin/sh", "-c", command).returncode == 0 for command in TRIED}
    expected = {command: works[column] for command, works in TRIED.items()}
    if runtime == "runc":
        # What it masks in sysfs itself, it locks.
        expected["ip netns add first && ip netns exec first ip link"] = False
    assert found == expected
