"""The compute hosts: this machine is the first, each other one is in namespaces of its own on it.

Another host has a network, mounts and a name of its own. It has two cables to the first: one for what the
programs of the cloud say to each other, one between the external bridges. On the first cable it finds the
control plane where the first host has it, at the loopback address.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from .place import EXTERNAL_ADDRESS, HOST, HOSTS, LOOPBACK, PORTS, RUN, STATE
from .processes import Failure, Program, run, wait_until

#: Of the cable for the cloud's programs, and of the one for tunnels. The host's number comes last.
CONTROL, TUNNELS = "10.98.0", "10.99.0"
NFT_TABLE = "berth_openstack_hosts"
#: What each host has of its own.
LOCAL = ("ovsdb",)
PORTS_OF_THE_FIRST = ", ".join(str(port) for name, port in PORTS.items() if name not in LOCAL)
#: The bridge on the first host that the cables for the cloud's programs end at.
HUB = "berth-ctl"


@dataclass(frozen=True)
class Host:
    """A compute host."""

    number: int

    @property
    def is_first(self) -> bool:
        """Whether it is this machine itself."""
        return self.number == 1

    @property
    def suffix(self) -> str:
        """Of the names of what each host has."""
        return "" if self.is_first else f"-{self.number}"

    @property
    def name(self) -> str:
        """As Nova and OVN know it."""
        return f"{HOST}{self.suffix}"

    @property
    def state(self) -> Path:
        """What outlives its programs."""
        return STATE if self.is_first else STATE / f"host{self.suffix}"

    @property
    def run_dir(self) -> Path:
        """Sockets."""
        return RUN if self.is_first else RUN / str(self.number)

    @property
    def ovs_run(self) -> Path:
        """Open vSwitch's and OVN's sockets."""
        return self.run_dir / "ovs"

    @property
    def address(self) -> str:
        """Where other hosts reach its programs."""
        return LOOPBACK if HOSTS == 1 else f"{CONTROL}.{self.number}"

    @property
    def tunnel_address(self) -> str:
        """Where other hosts' tunnels end on it."""
        return LOOPBACK if HOSTS == 1 else f"{TUNNELS}.{self.number}"

    @property
    def cable(self) -> str:
        """The first host's end of the cable between the external bridges; its own end is `external`."""
        return f"berth-ext{self.number}"

    @property
    def _control_cable(self) -> str:
        return f"{HUB}{self.number}"

    @property
    def _namespaces(self) -> Program:
        return Program(f"host{self.suffix}")

    def program(self, name: str) -> Program:
        """One of its programs."""
        return Program(f"{name}{self.suffix}", self.inside())

    def inside(self) -> list[object]:
        """What runs a command on it."""
        if self.is_first:
            return []
        return ["nsenter", f"--target={self._namespaces.pid}", "--net", "--mount", "--uts", "--"]

    def start(self) -> None:
        """Makes its namespaces and cables."""
        for directory in (self.state, self.run_dir, self.ovs_run):
            directory.mkdir(parents=True, exist_ok=True)
        if self.is_first:
            _make_hub()
        if self.is_first or self._namespaces.pid:
            return
        ready, cgroup = self.state / "ready", self.state / "cgroup"
        ready.unlink(missing_ok=True)
        cgroup.mkdir(exist_ok=True)
        # /sys shows the network devices of who mounts it.
        script = f"""
            hostname {self.name}
            mount --rbind /sys/fs/cgroup {cgroup}
            mount -t sysfs sysfs /sys
            mount --rbind {cgroup} /sys/fs/cgroup
            mkdir -p /run/netns
            mount -t tmpfs tmpfs /run/netns
            ip link set lo up
            touch {ready}
            exec sleep infinity"""
        namespaces = ("--net", "--mount", "--uts", "--propagation=private")
        self._namespaces.start("unshare", *namespaces, "sh", "-ec", script)
        wait_until(f"the namespaces of {self.name}", ready.exists, 10, self._namespaces)
        try:
            self._connect()
        except Failure:
            self.stop()  # half connected, it would be taken for whole
            raise

    def _connect(self) -> None:
        pid, first = self._namespaces.pid, Host(1)
        for device, other in ((self._control_cable, "control"), (self.cable, "external")):
            run("ip", "link", "add", device, "type", "veth", "peer", "name", other, "netns", pid)
        run("ip", "link", "set", self._control_cable, "master", HUB, "up")
        _set_up(self, "control")
        run("ip", "link", "set", self.cable, "up")
        run(*self.inside(), "ip", "link", "set", "external", "up")
        run(*self.inside(), "ip", "route", "add", EXTERNAL_ADDRESS, "via", first.address)
        rules = _table(f"""
            chain output {{
                type nat hook output priority -100
                ip daddr {LOOPBACK} tcp dport {{ {PORTS_OF_THE_FIRST} }} dnat to {first.address}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat
                oifname "control" masquerade
            }}""")
        run(*self.inside(), "nft", "-f", "-", stdin=rules)

    def stop(self) -> None:
        """Ends its namespaces; what is in them goes with them."""
        if self.is_first:
            return
        self._namespaces.stop()
        for device in (self._control_cable, self.cable):
            if Path("/sys/class/net", device).exists():
                run("ip", "link", "delete", device)


def _make_hub() -> None:
    if HOSTS == 1 or Path("/sys/class/net", HUB).exists():
        return
    run("ip", "link", "add", HUB, "type", "bridge")
    _set_up(FIRST, HUB)
    rules = _table(f"""
        chain prerouting {{
            type nat hook prerouting priority dstnat
            iifname "{HUB}" ip daddr {FIRST.address} tcp dport {{ {PORTS_OF_THE_FIRST} }} dnat to {LOOPBACK}
        }}""")
    run("nft", "-f", "-", stdin=rules)


def _set_up(host: Host, device: str) -> None:
    run(*host.inside(), "ip", "address", "replace", f"{host.address}/24", "dev", device)
    run(*host.inside(), "sysctl", "-qw", f"net.ipv4.conf.{device}.route_localnet=1")
    run(*host.inside(), "ip", "link", "set", device, "up")


def _table(chains: str) -> str:
    """Makes the table anew, with these chains."""
    return f"table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\ntable ip {NFT_TABLE} {{{chains}\n}}\n"


FIRST = Host(1)
ALL = [Host(number) for number in range(1, HOSTS + 1)]


def start() -> None:
    """All of them."""
    for host in ALL:
        host.start()


def stop() -> None:
    """Ends the others."""
    for host in ALL:
        host.stop()
    if Path("/sys/class/net", HUB).exists():
        run("ip", "link", "delete", HUB)
        with contextlib.suppress(Failure):  # a start that failed has not come to it
            run("nft", "delete", "table", "ip", NFT_TABLE)
