"""Root inside an instance speaks Ethernet to the host and to its neighbours, as others would not.

Frames are composed here and sent by a compiled program inside (probe_net.c): what the
instance's own kernel would refuse to send is sent too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.program import compiled, injected
from harness.service import BERTH

ALL = "ff:ff:ff:ff:ff:ff"
#: Bridges hand what is sent there to the host's stack, by the port's name.
RESERVED = "01:80:c2:00:00:0e"
MARK = b"berth-mark:"
PORT = 40_067
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
UDP, ICMP, ICMPV6 = 17, 1, 58


# -- frames ------------------------------------------------------------------


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def frame(to: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(to: str, source: str, protocol: int, payload: bytes) -> bytes:
    """A packet of the addresses' version, with the checksums that a receiver looks at."""
    a, b = packed(source), packed(to)
    if len(a) == 4:
        if protocol == ICMP:
            payload = payload[:2] + struct.pack("!H", checksum(payload)) + payload[4:]
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + a + b
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
    pseudo = a + b + struct.pack("!II", len(payload), protocol)
    if protocol in (UDP, ICMPV6):
        at = 6 if protocol == UDP else 2
        sum_ = struct.pack("!H", checksum(pseudo + payload) or 0xFFFF)
        payload = payload[:at] + sum_ + payload[at + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255) + a + b + payload


def udp(data: bytes, source: int = 40_000, to: int = PORT) -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(data), 0) + data


def echo(version: int, data: bytes) -> bytes:
    return struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, 1, 1) + data


def arp(operation: int, hardware: str, sender: str, target: str, mark: bytes = b"") -> bytes:
    head = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation)
    return head + mac(hardware) + packed(sender) + bytes(6) + packed(target) + mark


def neighbour(kind: int, target: str, hardware: str, mark: bytes = b"") -> bytes:
    """A neighbour solicitation (135) or advertisement (136)."""
    flags = 0 if kind == 135 else 0x6000_0000
    # The mark is an option that nobody knows.
    mark = mark and bytes([200, 4]) + mark.ljust(30, b"\0")
    option = bytes([kind - 134, 1]) + mac(hardware)
    return struct.pack("!BBHI", kind, 0, 0, flags) + packed(target) + option + mark


def advertisement(prefix: str, mark: bytes = b"") -> bytes:
    """A router's: this prefix, for addresses, and a default route."""
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + packed(prefix)
    mark = mark and bytes([200, 4]) + mark.ljust(30, b"\0")
    return struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option + mark


def link_local(hardware: str) -> str:
    a, *rest = mac(hardware)
    return str(ipaddress.IPv6Address(packed("fe80::")[:8] + bytes([a ^ 2, *rest[:2], 255, 254, *rest[2:]])))


# -- who speaks and who listens ----------------------------------------------


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The compiled program, as a file for instances."""
    program = compiled(Path(__file__).with_name("probe_net.c"), tmp_path_factory.mktemp("probe"))
    return injected(program, "/bin/probe_net")


def send(instance, *frames: bytes) -> None:
    result = instance.run("/bin/probe_net", "send", "eth0", *(one.hex() for one in frames))
    assert result.returncode == 0, result.stdout + result.stderr


@contextlib.contextmanager
def hearing(instance, seconds: float = 2.5) -> Iterator[list[bytes]]:
    """What arrives at the instance from now on; complete at the end."""
    command = [BERTH, "exec", "--socket", instance.service.socket, instance.id]
    command += ["--", "/bin/probe_net", "hear", "eth0", str(seconds)]
    heard: list[bytes] = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        yield heard
        heard += [bytes.fromhex(line) for line in program.stdout.read().split()]
    assert program.returncode == 0


def marks(heard: list[bytes]) -> set[str]:
    """The names of the marked frames that were heard."""
    return {part.split(b":")[0].decode() for one in heard for part in one.split(MARK)[1:]}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def set_conf(device: str, **values: int) -> None:
    for family in ("ipv4", "ipv6"):
        for key, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/sys/net/{family}/conf/{device}/{key}").write_text(str(value))


class HostListener:
    """Sockets of the host's: any datagram, and any frame with a mark on another device than `end`."""

    def __init__(self, end: str):
        self.end = end
        self.sockets = []
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            listener = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, PORT))
            self.sockets.append(listener)
        self.sockets.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))

    def heard(self) -> set[str]:
        """Names of everything that came up in the next second."""
        found = set()
        deadline = time.monotonic() + 1
        while (left := deadline - time.monotonic()) > 0:
            for ready in select.select(self.sockets, [], [], left)[0]:
                data, source = ready.recvfrom(2048)
                if ready.family != socket.AF_PACKET or source[0] != self.end:
                    found |= {f"{name} at {source[0]}" for name in marks([data])}
        return found

    def close(self) -> None:
        for one in self.sockets:
            one.close()


# -- the host's end is a wire ------------------------------------------------


@pytest.fixture(scope="module")
def other_network(service) -> Iterator[dict[str, str]]:
    """A network of the host's that has nothing to do with instances, and somebody in it."""
    one, two = f"{service.token}own", f"{service.token}far"
    run("ip", "link", "add", one, "type", "veth", "peer", "name", two)
    try:
        for device in (one, two):
            run("ip", "link", "set", device, "up")
        for address in ("198.51.100.1/24", "fd00:77:1::1/64"):
            run("ip", "address", "add", address, "dev", one, *(["nodad"] if ":" in address else []))
        for there in ("198.51.100.7", "fd00:77:1::7"):
            run("ip", "neighbour", "add", there, "lladdr", "02:00:00:00:00:07", "dev", one)
        yield {"gateway": "198.51.100.1", "gateway6": "fd00:77:1::1"}
    finally:
        run("ip", "link", "del", one)


@pytest.fixture(scope="module")
def server(service, busybox, speaker, other_network) -> Iterator:
    """A server whose gateway is, by chance or not, an address of the host's too."""
    vif = service.vif(
        bridge=False,
        addresses=["198.51.100.5/24", "fd00:77:1::5/64"],
        routes=[
            {"destination": "0.0.0.0/0", "gateway": other_network["gateway"]},
            {"destination": "::/0", "gateway": other_network["gateway6"]},
        ],
    )
    instance = service.spawn(busybox, vifs=[vif], files=[speaker])
    instance.vif = vif
    yield instance
    instance.discard()


def host_addresses() -> list[str]:
    links = json.loads(run("ip", "-json", "address", "show"))
    found = [info["local"] for link in links for info in link.get("addr_info", [])]
    # Many services may share the host: a few of each kind are enough.
    four = [a for a in found if ":" not in a]
    six = [a for a in found if ":" in a]
    return list(dict.fromkeys(["198.51.100.1", *four[:6], "fd00:77:1::1", *six[:6]]))


def calls(server, end_mac: str, reserved_only: bool) -> list[bytes]:
    """Everything by which the host could be reached, at each of its addresses and beyond."""
    own = server.vif["address"]
    frames = []
    beyond = ["198.51.100.7", "fd00:77:1::7", "255.255.255.255", "224.0.0.1", "ff02::1", "ff02::2"]
    for to in host_addresses() + beyond:
        version = 6 if ":" in to else 4
        # From a stranger, for whom the host has a route elsewhere, and from a neighbour.
        sources = ["203.0.113.5", "198.51.100.5"] if version == 4 else ["fd00:77:2::5", "fd00:77:1::5"]
        kind, group = (IPV4, "01:00:5e:00:00:01") if version == 4 else (IPV6, "33:33:00:00:00:01")
        for hardware in [RESERVED] if reserved_only else [end_mac, ALL, group, RESERVED]:
            for source in sources:
                mark = MARK + f"{to.replace(':', '_')} by {hardware.replace(':', '')}:".encode()
                ping = ip(to, source, ICMP if version == 4 else ICMPV6, echo(version, mark))
                for packet in (ip(to, source, UDP, udp(mark)), ping):
                    frames.append(frame(hardware, own, kind, packet))
            if version == 4:
                frames.append(frame(hardware, own, ARP, arp(1, own, "198.51.100.5", to)))
                frames.append(frame(hardware, own, ARP, arp(1, own, "0.0.0.0", to)))
            else:
                asked = ip(to, link_local(own), ICMPV6, neighbour(135, to, own))
                frames.append(frame(hardware, own, IPV6, asked))
    return frames


def assert_a_wire(server, reserved_only: bool = False) -> None:
    end = server.vif["devname"]
    end_mac = Path(f"/sys/class/net/{end}/address").read_text().strip()
    frames = calls(server, end_mac, reserved_only)
    listener = HostListener(end)
    try:
        with hearing(server) as heard:
            for first in range(0, len(frames), 100):
                send(server, *frames[first : first + 100])
            assert listener.heard() == set()
        assert heard == [], "the host answers"
    finally:
        listener.close()


@pytest.mark.parametrize("moment", ["as it is made", "against all settings", "after the service was killed"])
def test_the_host_hears_nothing_and_says_nothing(server, moment):
    service, end = server.service, server.vif["devname"]
    if moment == "against all settings":
        set_conf(end, arp_ignore=0, rp_filter=0, accept_local=1, proxy_arp=1, route_localnet=1)
        set_conf(end, drop_unicast_in_l2_multicast=0, forwarding=1, disable_ipv6=0, accept_ra=2)
        run("ip", "link", "set", end, "arp", "on")
    if moment == "after the service was killed":
        service.kill()
        service.start()
    assert_a_wire(server)


def test_a_port_of_somebodys_bridge_hands_nothing_up(server):
    service, end = server.service, server.vif["devname"]
    set_conf(end, rp_filter=0, drop_unicast_in_l2_multicast=0)
    bridge = f"{service.token}plug"
    run("ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    try:
        # What the bridge itself says is none of ours.
        set_conf(bridge, disable_ipv6=1)
        run("ip", "link", "set", bridge, "up")
        run("ip", "link", "set", end, "master", bridge)
        assert_a_wire(server, reserved_only=True)
    finally:
        run("ip", "link", "del", bridge)


def test_a_servers_gateway_is_not_the_hosts(server):
    """By the instance's own kernel: its connections do not end on the host."""
    with socket.create_server(("198.51.100.1", PORT)):
        result = server.run("/bin/sh", "-c", f"nc -w 2 198.51.100.1 {PORT} </dev/null")
        assert result.returncode != 0


# -- neighbours on the stand-alone bridge ------------------------------------


@pytest.fixture(scope="module")
def attacker(service, busybox, speaker) -> Iterator:
    vif = service.vif()
    vif["addresses"] += [f"fd00:77::{service.token[1:]}:1/64"]
    instance = service.spawn(busybox, vifs=[vif], files=[speaker])
    instance.vif = vif
    yield instance
    instance.discard()


@pytest.fixture(scope="module")
def victim(service, busybox, speaker) -> Iterator:
    vif = service.vif()
    vif["addresses"] += [f"fd00:77::{service.token[1:]}:2/64"]
    instance = service.spawn(busybox, vifs=[vif], files=[speaker])
    instance.vif = vif
    yield instance
    instance.discard()


def attacks(attacker, victim) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What an instance may say, and what it may not, to a neighbour and to all."""
    own, to = attacker.vif["address"], victim.vif["address"]
    own4, own6 = (a.split("/")[0] for a in attacker.vif["addresses"])
    to4, to6 = (a.split("/")[0] for a in victim.vif["addresses"])
    gateway = f"{attacker.service.subnet}.1"
    other = "02:00:00:00:00:99"
    local, all_nodes, all_macs = link_local(own), "ff02::1", "33:33:00:00:00:01"

    def marked(name: str) -> bytes:
        return MARK + name.encode() + b":"

    def hidden(between: int, head: bytes, mark: bytes) -> bytes:
        """A router's advertisement behind another header."""
        packet = ip(all_nodes, local, ICMPV6, advertisement("fd00:77:bad::", mark))
        payload = head + packet[40:]
        return struct.pack("!IHBB", 6 << 28, len(payload), between, 255) + packet[8:40] + payload

    def tagged(identity: int, kind: int, payload: bytes) -> bytes:
        return struct.pack("!HH", identity, kind) + payload

    options = bytes([ICMPV6, 0, 1, 4, 0, 0, 0, 0])
    kinds = {
        "arp": lambda m: (to, own, ARP, arp(1, own, own4, to4, m)),
        "udp": lambda m: (to, own, IPV4, ip(to4, own4, UDP, udp(m))),
        "udp6": lambda m: (to, own, IPV6, ip(to6, own6, UDP, udp(m))),
        "ping6": lambda m: (to, own, IPV6, ip(to6, local, ICMPV6, echo(6, m))),
        "advertisement": lambda m: (to, own, IPV6, ip(to6, own6, ICMPV6, neighbour(136, own6, own, m))),
    }
    forbidden = {
        "arp for the gateway": lambda m: (to, own, ARP, arp(2, own, gateway, to4, m)),
        "arp for the gateway to all": lambda m: (ALL, own, ARP, arp(1, own, gateway, gateway, m)),
        "arp of another MAC": lambda m: (to, own, ARP, arp(2, other, own4, to4, m)),
        "arp from another MAC": lambda m: (to, other, ARP, arp(1, own, own4, to4, m)),
        "another MAC": lambda m: (to, other, IPV4, ip(to4, own4, UDP, udp(m))),
        "the gateways address": lambda m: (to, own, IPV4, ip(to4, gateway, UDP, udp(m))),
        "a strangers address": lambda m: (to, own, IPV4, ip(to4, "203.0.113.5", UDP, udp(m))),
        "a strangers address 6": lambda m: (to, own, IPV6, ip(to6, "fd00:77::bad", UDP, udp(m))),
        "dhcp": lambda m: (to, own, IPV4, ip(to4, own4, UDP, udp(m, 67, 68))),
        "dhcp6": lambda m: (to, own, IPV6, ip(to6, local, UDP, udp(m, 547, 546))),
        "router": lambda m: (
            *(all_macs, own, IPV6),
            ip(all_nodes, local, ICMPV6, advertisement("fd00:77:bad::", m)),
        ),
        "router behind options": lambda m: (all_macs, own, IPV6, hidden(60, options, m)),
        "router behind hop by hop": lambda m: (all_macs, own, IPV6, hidden(0, options, m)),
        "router in a fragment": lambda m: (all_macs, own, IPV6, hidden(44, options[:1] + bytes(7), m)),
        "for a neighbour": lambda m: (to, own, IPV6, ip(to6, own6, ICMPV6, neighbour(136, to6, own, m))),
        "tag 0": lambda m: (to, own, VLAN, tagged(0, ARP, arp(2, own, gateway, to4, m))),
        "tag 7": lambda m: (to, own, VLAN, tagged(7, IPV4, ip(to4, own4, UDP, udp(m)))),
        "lldp": lambda m: (to, own, 0x88CC, m),
        # The last: if it gets through, the bridge leads what is the victim's to the attacker.
        "a neighbours MAC": lambda m: (ALL, to, IPV4, ip(to4, own4, UDP, udp(m))),
    }

    def made(table) -> dict[str, bytes]:
        return {name: frame(*make(marked(name))) for name, make in table.items()}

    return made(kinds), made(forbidden)


def heard_by(victim, attacker, frames: dict[str, bytes]) -> set[str]:
    with hearing(victim) as heard:
        send(attacker, *frames.values())
    return marks(heard)


def bridge_ipv6(service) -> str:
    """The addresses and routes of IPv6 that the host has by its bridge."""
    return run("ip", "-6", "address", "show", "dev", service.bridge) + run(
        *("ip", "-6", "route", "show", "dev", service.bridge, "table", "all")
    )


def test_an_instance_speaks_for_itself_alone(attacker, victim):
    service = attacker.service
    allowed, forbidden = attacks(attacker, victim)
    everything = allowed | forbidden
    victim.sh(f"ping -c 1 -W 2 {service.subnet}.1")
    gateway = Path(f"/sys/class/net/{service.bridge}/address").read_text().strip()

    assert heard_by(victim, attacker, everything) == allowed.keys()
    known = victim.sh("ip neigh show dev eth0").splitlines()
    assert [line for line in known if f"{service.subnet}.1 " in line and gateway in line], known
    assert "02:00:00:00:00:99" not in run("bridge", "fdb", "show", "br", service.bridge)
    assert "fd00:77:bad" not in victim.sh("ip -6 address; ip -6 route")
    assert bridge_ipv6(service) == ""

    # The guard comes with the service's start where it is missing, and this test would see that.
    run("tc", "qdisc", "del", "dev", attacker.vif["devname"], "ingress")
    assert heard_by(victim, attacker, everything) == everything.keys()
    service.kill()
    service.start()
    # The attack had worked: the victim sent what was for the gateway elsewhere.
    victim.sh(f"ip neigh flush dev eth0; ping -c 3 -W 2 {service.subnet}.1")
    assert heard_by(victim, attacker, everything) == allowed.keys()


def test_the_host_believes_no_router_on_its_bridge(attacker, victim):
    """Not even one that no guard holds back."""
    _, forbidden = attacks(attacker, victim)
    end = attacker.vif["devname"]
    run("tc", "qdisc", "del", "dev", end, "ingress")
    try:
        send(attacker, forbidden["router"])
        time.sleep(1)
        assert bridge_ipv6(attacker.service) == ""
        assert "fd00:77:bad" not in run("ip", "-6", "route", "show", "table", "all")
    finally:
        attacker.service.kill()
        attacker.service.start()


@pytest.mark.parametrize("limit", ["", "quota:vif_outbound_average"])
def test_a_guard_goes_with_its_interface(service, busybox, limit):
    vif = service.vif()
    flavor = {"extra_specs": {limit: "1000"} if limit else {}}
    instance = service.spawn(busybox, vifs=[vif], flavor=flavor)
    try:
        filters = run("tc", "filter", "show", "dev", vif["devname"], "ingress")
        assert filters.count("bytecode") == 1
        assert instance.sh(f"ping -c 1 -W 2 {service.subnet}.1")
    finally:
        instance.discard()
    assert not Path(f"/sys/class/net/{vif['devname']}").exists()


@pytest.fixture
def port_isolation(service):
    """Switches it, with a restart that no instance notices."""

    def switch(on: bool) -> None:
        service.kill()
        service.settings["bridge"]["port_isolation"] = on
        service.start()

    yield switch
    switch(False)


def test_isolated_ports_reach_the_gateway_alone(attacker, victim, port_isolation):
    """Neither to a neighbour's MAC address, nor to all, nor to the host as a router."""
    service = attacker.service
    own, to = attacker.vif["address"], victim.vif["address"]
    own4, to4 = (one.vif["addresses"][0].split("/")[0] for one in (attacker, victim))
    gateway = Path(f"/sys/class/net/{service.bridge}/address").read_text().strip()
    packets = {"direct": (to, to4), "to all": (ALL, to4), "by the gateway": (gateway, to4)}
    frames = {
        name: frame(mac_address, own, IPV4, ip(address, own4, UDP, udp(MARK + name.encode() + b":")))
        for name, (mac_address, address) in packets.items()
    }
    frames["arp"] = frame(ALL, own, ARP, arp(1, own, own4, to4, MARK + b"arp:"))
    for on, heard in ((False, frames.keys()), (True, set()), (False, frames.keys())):
        port_isolation(on)
        # The router asks for a neighbour that it does not know, and that is heard all the same.
        victim.sh(f"ping -c 1 -W 2 {service.subnet}.1")
        attacker.sh(f"ping -c 1 -W 2 {service.subnet}.1")
        assert heard_by(victim, attacker, frames) == heard, on
