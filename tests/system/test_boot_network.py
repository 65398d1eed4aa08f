"""Every boot has the network as it was given, whatever root inside did to it, however it boots."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import Fault, wait_for

STATE = Path(__file__).parent / "network_state.py"
RATES = {
    "extra_specs": {
        "quota:vif_inbound_average": "20000",
        "quota:vif_outbound_average": "20000",
    }
}
FORWARD = "/proc/sys/net/ipv4/ip_forward"
WALL = "add table inet wall; add chain inet wall input { type filter hook input priority 0; policy drop; }"

# What root inside does, in its own namespaces, with the programs of any distribution.
MESSES = {
    "rules": [
        "nft '" + WALL + "'",
        "ip rule add from all lookup 77 priority 1",
        "ip rule add blackhole priority 2",
    ],
    "addresses": [
        "ip addr flush dev eth0",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip route add blackhole default",
        "ip -6 route add blackhole default",
        "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
    ],
    "sysctls": [
        f"echo 1 > {FORWARD}",
        "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all",
        "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
        "echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter",
        "echo 1 > /proc/sys/net/ipv4/conf/default/proxy_arp",
        "echo 100 > /proc/sys/net/ipv4/ip_default_ttl",
    ],
    "down": ["ip link set eth0 down", "ip link set lo down"],
    "another device": [
        "ip link set eth0 down",
        "ip link set eth0 address 02:00:00:00:00:01 broadcast 02:00:00:00:00:02 mtu 1280 txqueuelen 7",
        "ip link set eth0 alias mine group 9 promisc on allmulticast on multicast off arp off",
        "ip link set eth0 gso_max_size 2048 gso_max_segs 2 gro_max_size 2048 mode dormant",
        "ip link property add dev eth0 altname eth7 altname eth8",
        "ip link set eth0 name wan0",
    ],
    "names exchanged": [
        "ip link set eth0 down",
        "ip link set eth1 down",
        "ip link set eth0 name was0",
        "ip link set eth1 name eth0",
        "ip link set was0 name eth1",
    ],
    "name of another": [
        "ip link set eth1 down",
        "ip link set eth1 name was1",
        "ip link property add dev eth0 altname eth1",
    ],
    "offloads": [f"python3 {STATE} offloads eth0"],
    "devices upon it": [
        "ip link add br0 type bridge",
        "ip link add link eth0 name mac0 type macvlan",
        "ip link set eth1 master br0",
        "ip link add eth9 type veth peer name eth10",
    ],
    "queueing": [
        "tc qdisc add dev eth0 root tbf rate 1kbit burst 1kb latency 1s",
        "tc qdisc add dev eth0 ingress",
        "tc filter add dev eth0 parent ffff: protocol all prio 1 u32 match u32 0 0 "
        "action mirred egress redirect dev lo",
    ],
    "deleted": ["ip link del eth0"],
    "all deleted": ["ip link del eth0", "ip link del eth1"],
}
# In this order one after the other: the host's end outlives them.
TOGETHER = ["rules", "sysctls", "offloads", "queueing", "devices upon it", "addresses", "another device"]


def as_root_inside(instance, command, **options):
    """What root inside could do, with the host's programs."""
    enter = ["nsenter", "-t", str(instance.get()["pid"]), "-U", "-n"]
    result = subprocess.run([*enter, *command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def state(instance):
    return json.loads(as_root_inside(instance, ["python3", str(STATE)]))


def mess(instance, name):
    for line in MESSES[name]:
        as_root_inside(instance, ["sh", "-c", line])


def host_ends(instance):
    """All that the host has of its interfaces, but for how they are at the moment."""
    found = []
    for vif in instance.get()["vifs"]:
        name = vif["devname"]
        for command in (
            ["ip", "-d", "-j", "link", "show", "dev", name],
            ["tc", "-j", "qdisc", "show", "dev", name],
            ["tc", "filter", "show", "dev", name, "parent", "ffff:"],
        ):
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            # An action's number changes when the same rate is given again.
            found.append(re.sub(r"\bindex \d+", "", text))
        found[-3] = {
            key: value
            for key, value in json.loads(found[-3])[0].items()
            if key not in ("link_netnsid", "link_index", "operstate", "flags")
        }
        ports = found[-3].get("linkinfo", {}).get("info_slave_data", {})
        # Timers of the port, and how far it is.
        for key in [
            key for key in ports if "timer" in key or key in ("state", "no", "id", "designated_port")
        ]:
            del ports[key]
    return found


def assert_fresh(instance, given, since=None):
    """The namespace is as it was at first, down to its sysctls, and another one."""
    seen = {}

    def is_fresh():
        seen.update(state(instance))
        return seen == given

    try:
        wait_for("the network to be fresh", is_fresh, 10)
    except AssertionError:
        for key in given:
            assert seen[key] == given[key], key
    if since is not None:
        assert net_ns(instance) != since
    gateway = f"{instance.service.subnet}.1"
    assert " 0% packet loss" in instance.sh(f"ping -c 2 -w 10 {gateway}")


def net_ns(instance):
    return os.readlink(f"/proc/{instance.get()['pid']}/ns/net")


def settled(instance):
    """Its state, once duplicate detection and the like are over."""
    vifs = len(instance.get()["vifs"])

    def rests():
        now = state(instance)
        own = [info for _, info in now["addresses"] if info["scope"] == "link"]
        return now if len(own) == vifs and not any("tentative" in info for info in own) else None

    return wait_for("its network to come to rest", rests)


def reboots(instance):
    return instance.get()["guest_reboots"]


def from_inside(instance):
    before = reboots(instance)
    instance.go_down("reboot")
    wait_for("the reboot", lambda: reboots(instance) == before + 1)


def softly(instance):
    instance.action("reboot", type="SOFT", timeout=30)


def hard(instance):
    instance.action("reboot", type="HARD")


def by_a_stop(instance):
    instance.action("stop", timeout=5)
    instance.action("start")


def while_the_service_is_away(instance):
    first = instance.get()["pid"]
    instance.service.kill()
    # Its init may end it before it has answered.
    subprocess.run(["nsenter", "-t", str(first), "-a", "/bin/busybox", "reboot"], check=False, timeout=20)
    wait_for("it to be up again", lambda: instance.pids() and first not in instance.pids())
    instance.service.start()
    assert instance.state == "RUNNING"


def after_a_pause_of_the_service(instance):
    instance.service.kill()
    instance.service.start()
    hard(instance)


WAYS = [from_inside, softly, hard, by_a_stop, while_the_service_is_away, after_a_pause_of_the_service]


@pytest.fixture
def wired(spawn, service):
    """An instance with two interfaces, and its network as it was given."""
    instance = spawn(vifs=[service.vif(), service.vif(mtu=1400)], flavor=RATES)
    instance.wait_console("is up")
    return instance, settled(instance)


@pytest.mark.each_runtime
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whatever_was_done_ends_with_a_boot(wired, way):
    instance, given = wired
    host, before = host_ends(instance), net_ns(instance)
    for name in TOGETHER:
        mess(instance, name)
    changed = state(instance)
    assert not [key for key in given if changed[key] == given[key]]
    way(instance)
    assert_fresh(instance, given, before)
    assert host_ends(instance) == host, "the host's end is another one"


@pytest.mark.parametrize("name", [name for name in MESSES if name not in TOGETHER])
def test_each_alone(wired, name):
    instance, given = wired
    host = host_ends(instance)
    for way in (from_inside, hard):
        mess(instance, name)
        assert state(instance) != given
        way(instance)
        assert_fresh(instance, given)
        if "deleted" not in name:
            assert host_ends(instance) == host


@pytest.mark.each_runtime
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_deleted_interface_is_back_where_others_had_plugged_it(service, spawn, busybox, way, made):
    """Its host's end went with it: a new one is a port of the same bridge, with the same rates."""
    bridge = f"{service.token}plug"
    subprocess.run(
        ["ip", "link", "add", bridge, "address", "02:00:5e:00:53:01", "type", "bridge"], check=True
    )
    subprocess.run(["ip", "addr", "add", "198.18.7.1/24", "dev", bridge], check=True)
    subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
    try:
        vif = service.vif(bridge=False, addresses=["198.18.7.2/24"], routes=[])
        instance = service.define(busybox, vifs=[vif, service.vif()], flavor=RATES)
        made.append(instance)
        subprocess.run(["ip", "link", "set", vif["devname"], "master", bridge], check=True)
        instance.action("start")
        instance.wait_console("is up")
        given, host = settled(instance), host_ends(instance)
        mess(instance, "all deleted")
        assert not Path("/sys/class/net", vif["devname"]).exists()
        way(instance)
        assert_fresh(instance, given)
        assert " 0% packet loss" in instance.sh("ping -c 2 -w 10 198.18.7.1")
        for was, now in zip(host, host_ends(instance), strict=True):
            if isinstance(was, dict):
                was, now = (
                    {k: v for k, v in d.items() if k not in ("ifindex", "address")} for d in (was, now)
                )
            assert now == was
    finally:
        subprocess.run(["ip", "link", "del", bridge], check=True)


@contextlib.contextmanager
def held(instance):
    """A process of the host's in its namespaces, that outlives its boot."""
    enter = ["nsenter", "-t", str(instance.get()["pid"]), "-U", "-n"]
    holder = subprocess.Popen([*enter, "sleep", "600"])
    wait_for("it", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") == net_ns(instance))
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("way", [from_inside, by_a_stop], ids=lambda way: way.__name__)
def test_a_namespace_that_is_kept_keeps_no_device(wired, way):
    instance, given = wired
    with held(instance) as holder:
        way(instance)
        assert_fresh(instance, given)
        left = subprocess.run(
            ["nsenter", "-t", str(holder.pid), "-n", "ip", "-j", "link"], capture_output=True, text=True
        )
        assert [link["ifname"] for link in json.loads(left.stdout)] == ["lo"]


@pytest.mark.parametrize("way", [from_inside, hard, by_a_stop], ids=lambda way: way.__name__)
def test_an_interface_in_a_namespace_of_its_own_comes_back(wired, way):
    instance, given = wired
    enter = ["nsenter", "-t", str(instance.get()["pid"]), "-U", "-n"]
    own = subprocess.Popen([*enter, "unshare", "-n", "sleep", "600"])
    try:
        wait_for(
            "it",
            lambda: os.readlink(f"/proc/{own.pid}/ns/net")
            not in (net_ns(instance), os.readlink("/proc/self/ns/net")),
        )
        as_root_inside(instance, ["ip", "link", "set", "eth0", "netns", str(own.pid)])
        way(instance)
        assert_fresh(instance, given)
    finally:
        own.kill()
        own.wait()


def test_an_interface_that_came_later_is_given_too(wired):
    instance, _ = wired
    service = instance.service
    vif = service.vif(addresses=[f"{service.subnet}.251/24"], routes=[])
    service.client.put(f"{instance.path}/interfaces/{vif['id']}", vif)
    given = settled(instance)
    as_root_inside(instance, ["ip", "link", "del", "eth2"])
    while_the_service_is_away(instance)
    assert_fresh(instance, given)
    service.client.delete(f"{instance.path}/interfaces/{vif['id']}")
    given = settled(instance)
    from_inside(instance)
    assert_fresh(instance, given)


def test_who_is_killed_in_the_midst_is_gone_on_for(wired):
    """The service or the monitor, some moments after a boot began."""
    instance, given = wired
    service = instance.service
    for moment in range(8):
        mess(instance, "all deleted" if moment % 4 == 3 else "another device")
        delay = 0.006 * moment
        if moment % 2:
            before = reboots(instance)
            monitor = instance.monitor_pid()
            instance.go_down("reboot")
            time.sleep(0.9 + delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(monitor, signal.SIGKILL)
            wait_for("it to run", lambda monitor=monitor: runs_anew(instance, monitor))
            assert reboots(instance) <= before + 1
        else:
            asking = threading.Thread(target=lambda: asked_in_vain(instance))
            asking.start()
            time.sleep(0.02 + delay)
            service.kill()
            asking.join()
            service.start()
            wait_for("it to run", lambda: instance.state == "RUNNING")
        run = service.run_dir / "i" / instance.id
        if not instance.get()["task_state"]:
            boots_whole(instance, given)
        assert not (run / "net.next").exists()


def boots_whole(instance, given):
    # A kill before anything began left the instance as it was.
    if state(instance) != given:
        hard(instance)
    assert_fresh(instance, given)


def runs_anew(instance, monitor):
    try:
        shown = instance.get()
        return (
            shown["power_state"] == "RUNNING"
            and not shown["task_state"]
            and instance.monitor_pid() != monitor
        )
    except (OSError, ValueError):
        return False


def asked_in_vain(instance):
    with contextlib.suppress(Fault, OSError, ConnectionError):
        hard(instance)
