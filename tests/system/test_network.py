"""Interfaces: names, addresses, routes, hot plug, the bridge, what is left for a plugger."""

import socket
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from harness import Fault, wait_for

STATE = Path(__file__).parent / "network_state.py"


def inside(instance, command):
    return instance.sh(f"ip {command}")


@pytest.mark.each_runtime
def test_addresses_routes_mtu_and_mac(spawn, service):
    vif = service.vif(
        mtu=1400,
        addresses=[f"{service.subnet}.200/24", "fd00:77::5/64"],
        routes=[
            {"destination": "0.0.0.0/0", "gateway": f"{service.subnet}.1"},
            {"destination": "198.51.100.0/24", "gateway": f"{service.subnet}.7"},
            {"destination": "::/0", "gateway": "fd00:77::1"},
            {"destination": "203.0.113.0/24"},
        ],
    )
    instance = spawn(vifs=[vif])
    link = inside(instance, "link show eth0")
    assert "mtu 1400" in link
    assert vif["address"] in link
    assert "UP" in link
    shown = inside(instance, "-o addr show eth0")
    assert f"{service.subnet}.200/24" in shown
    assert "fd00:77::5/64" in shown
    routes = inside(instance, "route")
    assert f"default via {service.subnet}.1 dev eth0" in routes
    assert f"198.51.100.0/24 via {service.subnet}.7 dev eth0" in routes
    assert "203.0.113.0/24 dev eth0" in routes
    assert "default via fd00:77::1 dev eth0" in inside(instance, "-6 route")


def test_several_interfaces_in_order_and_by_name(spawn, service):
    vifs = [service.vif(), service.vif(name="storage0"), service.vif()]
    instance = spawn(vifs=vifs)
    for name, vif in zip(["eth0", "storage0", "eth1"], vifs, strict=True):
        assert vif["address"] in inside(instance, f"link show {name}")


def test_the_host_end_is_left_up_for_a_plugger(spawn, service):
    vif = service.vif(bridge=False)
    spawn(vifs=[vif])
    end = Path("/sys/class/net") / vif["devname"]
    assert int((end / "flags").read_text(), 16) & 1, "the host end is down"
    assert not (end / "master").exists()


def test_interfaces_are_there_between_create_and_start(service, busybox):
    vif = service.vif(bridge=False)
    instance = service.define(busybox, vifs=[vif])
    end = Path("/sys/class/net") / vif["devname"]
    index = (end / "ifindex").read_text()
    instance.action("start")
    assert (end / "ifindex").read_text() == index, "the host end was replaced: a plug is lost"
    instance.action("reboot", type="HARD")
    assert (end / "ifindex").read_text() == index
    instance.delete()
    assert not end.exists()


@pytest.mark.parametrize("off, on", [("pause", "unpause"), ("suspend", "resume"), ("stop", "start")])
def test_an_instance_that_is_frozen_or_off_is_silent(spawn, service, off, on):
    """The kernel would answer pings for it; a machine does not."""
    flavor = {"extra_specs": {"quota:vif_inbound_average": "1000"}}
    silent, other = spawn(vifs=[service.vif()], flavor=flavor), spawn(vifs=[service.vif()])

    def answers(instance):
        address = instance.get()["vifs"][0]["addresses"][0].split("/")[0]
        return " 0% packet loss" in other.sh(f"ping -c 1 -W 1 {address} || true")

    assert answers(silent)
    silent.action(off)
    assert not answers(silent)
    service.kill()
    service.start()
    assert not answers(silent)
    silent.action(on)
    assert answers(silent)
    silent.action(off)
    silent.action("reboot", type="HARD")
    assert answers(silent)


def test_before_its_first_start_and_after_its_own_power_off_it_is_silent(instance, service, busybox):
    created = service.define(busybox, vifs=[service.vif()])
    try:
        address = created.get()["vifs"][0]["addresses"][0].split("/")[0]
        ping = f"ping -c 1 -W 1 {address} || true"
        assert " 100% packet loss" in instance.sh(ping)
        created.action("start")
        assert " 0% packet loss" in instance.sh(ping)
        created.go_down("poweroff")
        created.wait_state("SHUTDOWN")
        assert " 100% packet loss" in instance.sh(ping)
    finally:
        created.discard()


def test_instances_reach_each_other_and_the_host(spawn, service):
    one, two = spawn(vifs=[service.vif()]), spawn(vifs=[service.vif()])
    address = two.get()["vifs"][0]["addresses"][0].split("/")[0]
    assert " 0% packet loss" in one.sh(f"ping -c 2 -w 10 {address}")
    assert " 0% packet loss" in one.sh(f"ping -c 2 -w 10 {service.subnet}.1")


def test_an_application_is_served_over_the_network(spawn, service, application):
    server = spawn(image=application, vifs=[service.vif()])
    server.wait_console("hello from")
    client = spawn(vifs=[service.vif()])
    address = server.get()["vifs"][0]["addresses"][0].split("/")[0]
    answer = client.sh(f"printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 8080")
    assert answer.splitlines()[0].split()[1] == "200"
    assert answer.endswith("berth serves this page")


def whole_checksum(instance, device: str, host: str) -> bool:
    """Whether a TCP packet to the host's address has its checksum when it comes out at its end."""
    # All kinds: what a bridge takes is shown only to who asks for that.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as end:
        end.bind((device, 0x0003))
        end.settimeout(20)
        instance.sh(f"nc -w 1 {host} 9 < /dev/null || true")
        while True:
            frame = end.recv(2000)
            packet, is_ipv4 = frame[14:], frame[12:14] == b"\x08\x00"
            if is_ipv4 and packet[9] == socket.IPPROTO_TCP and packet[16:20] == socket.inet_aton(host):
                break
    length = (packet[0] & 15) * 4
    segment = packet[length : int.from_bytes(packet[2:4], "big")]
    # RFC 9293, 3.1: the pseudo header, then all of it.
    summed = packet[12:20] + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment
    total = sum(struct.unpack(f"!{(len(summed) + 1) // 2}H", summed + b"\0" * (len(summed) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


@pytest.mark.each_runtime
def test_checksums_are_left_to_the_host_only_where_it_takes_that(spawn, service):
    plain, careful, plugged = service.vif(), service.vif(checksum_offload=False), service.vif()
    instance, host = spawn(vifs=[careful]), f"{service.subnet}.1"
    assert instance.get()["vifs"][0]["checksum_offload"] is False
    assert not whole_checksum(spawn(vifs=[plain]), plain["devname"], host)
    assert whole_checksum(instance, careful["devname"], host)
    for reboot in ("HARD", "inside"):
        # Root inside may want it otherwise, until the next boot.
        netns = f"--net=/proc/{instance.get()['pid']}/ns/net"
        change = [sys.executable, STATE, "checksums", "eth0"]
        subprocess.run(["nsenter", netns, *change], check=True, capture_output=True)
        assert not whole_checksum(instance, careful["devname"], host)
        if reboot == "HARD":
            instance.action("reboot", type="HARD")
        else:
            instance.run("reboot", "-f")
            wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)
        assert whole_checksum(instance, careful["devname"], host), reboot
    # So is one that comes later.
    other = {**plugged, "addresses": [], "routes": [], "checksum_offload": False}
    service.client.put(f"{instance.path}/interfaces/{other['id']}", other)
    address = plugged["addresses"][0]
    instance.sh(f"ip link set eth0 down; ip addr add {address} dev eth1; ip link set eth1 up")
    assert whole_checksum(instance, other["devname"], host)


@pytest.mark.each_runtime
def test_hot_plug_and_unplug(instance):
    service = instance.service
    vif = service.vif(addresses=[f"{service.subnet}.220/24"], routes=[])
    path = f"{instance.path}/interfaces/{vif['id']}"
    for _ in range(2):  # idempotent
        service.client.put(path, vif)
    assert f"{service.subnet}.220/24" in inside(instance, "-o addr show eth1")
    assert [v["id"] for v in instance.get()["vifs"]][1:] == [vif["id"]]
    assert len(instance.stats()["interfaces"]) == 2
    instance.action("reboot", type="HARD")
    assert f"{service.subnet}.220/24" in inside(instance, "-o addr show eth1")
    service.client.delete(path)
    assert "eth1" not in inside(instance, "link")
    assert not (Path("/sys/class/net") / vif["devname"]).exists()
    with pytest.raises(Fault) as fault:
        service.client.delete(path)
    assert fault.value.code == "interface-not-found"
    assert len(instance.get()["vifs"]) == 1


def test_a_stopped_instance_takes_an_interface_too(instance):
    service = instance.service
    instance.action("stop", timeout=0)
    vif = service.vif()
    service.client.put(f"{instance.path}/interfaces/{vif['id']}", vif)
    instance.action("start")
    assert vif["address"] in inside(instance, "link show eth1")


def test_a_taken_device_name_is_a_conflict(instance, busybox):
    service = instance.service
    taken = instance.get()["vifs"][0]["devname"]
    with pytest.raises(Fault) as fault:
        service.define(busybox, vifs=[service.vif(devname=taken)])
    assert (fault.value.status, fault.value.code) == (409, "interface-exists")
    assert instance.sh("ip link show eth0")


def test_a_foreign_link_is_never_taken(service, busybox):
    name = f"{service.token}alien"
    add = ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{service.token}other"]
    subprocess.run(add, check=True)
    try:
        with pytest.raises(Fault) as fault:
            service.define(busybox, vifs=[service.vif(devname=name)])
        assert fault.value.code in ("interface-exists", "network-failed")
        assert Path(f"/sys/class/net/{name}").exists()
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_statistics_are_seen_from_inside(spawn, service):
    one, two = spawn(vifs=[service.vif()]), spawn(vifs=[service.vif()])
    address = two.get()["vifs"][0]["addresses"][0].split("/")[0]
    before = one.stats()["interfaces"][0]
    # Its input stays open: at the end of it, nc would tell the other side to end.
    two.sh("(sleep 60 | nc -l -p 9000 >/dev/null) >/dev/null 2>&1 &")
    wait_for("the listener", lambda: ":2328 " in two.sh("cat /proc/net/tcp /proc/net/tcp6"))
    one.sh(f"head -c 1000000 /dev/zero | nc {address} 9000")
    after = one.stats()["interfaces"][0]
    assert after["tx_bytes"] - before["tx_bytes"] >= 1_000_000
    assert after["rx_bytes"] - before["rx_bytes"] < 1_000_000


BAD_VIFS = [
    ({"devname": "name-longer-than-15"}, "vifs[0].devname"),
    ({"devname": "a/b"}, "vifs[0].devname"),
    ({"devname": ".."}, "vifs[0].devname"),
    ({"address": "fa:16:3e"}, "vifs[0].address"),
    ({"address": "ff:ff:ff:ff:ff:ff"}, "vifs[0].address"),
    ({"mtu": 10}, "vifs[0].mtu"),
    ({"addresses": ["10.0.0.5"]}, "vifs[0].addresses[0]"),
    ({"addresses": ["10.0.0.5/33"]}, "vifs[0].addresses[0]"),
    ({"routes": [{"destination": "everywhere"}]}, "vifs[0].routes[0].destination"),
    (
        {"routes": [{"destination": "0.0.0.0/0", "gateway": "fe80::1"}]},
        "vifs[0].routes[0].gateway",
    ),
    ({"name": "a name"}, "vifs[0].name"),
    ({"name": "lo"}, "vifs[0].name"),
]


@pytest.mark.parametrize("fields,field", BAD_VIFS, ids=[str(f)[:40] for f, _ in BAD_VIFS])
def test_a_bad_interface_is_refused(service, busybox, fields, field):
    with pytest.raises(Fault) as fault:
        service.define(busybox, vifs=[service.vif(**fields)])
    assert (fault.value.status, fault.value.field) == (400, field), fault.value


def test_two_interfaces_with_one_id_are_refused(service, busybox):
    identity = str(uuid.uuid4())
    with pytest.raises(Fault) as fault:
        service.define(busybox, vifs=[service.vif(id=identity), service.vif(id=identity)])
    assert fault.value.status in (400, 409)
