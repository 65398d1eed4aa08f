"""Open vSwitch and OVN, on the userspace datapath: no kernel module is needed."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from pathlib import Path

from . import hosts
from .hosts import Host
from .place import EXTERNAL_ADDRESS, LOOPBACK, OVN_NB, OVN_SB, PORTS
from .processes import Failure, Program, run, together, wait_until

INTEGRATION, EXTERNAL = "br-int", "br-ex"
NFT_TABLE = "berth_openstack"
DATABASES = {
    "ovsdb": Path("/usr/share/openvswitch/vswitch.ovsschema"),
    "ovn-nb": Path("/usr/share/ovn/ovn-nb.ovsschema"),
    "ovn-sb": Path("/usr/share/ovn/ovn-sb.ovsschema"),
}
SOCKETS = {"ovsdb": "db.sock", "ovn-nb": "ovnnb_db.sock", "ovn-sb": "ovnsb_db.sock"}
# What the first host has, and every host.
CENTRAL = ("ovn-nb", "ovn-sb", "ovn-northd")
EACH = ("ovsdb", "ovs-vswitchd", "ovn-controller")
MTU_LOOP = Path(__file__).with_name("no-gateway-mtu")


def start() -> None:
    """Starts all daemons and waits until OVN knows every host."""
    for name in ("ovn-nb", "ovn-sb"):
        _start_database(hosts.FIRST, name)
    for host in hosts.ALL:
        _start_database(host, "ovsdb")
        _configure(host)
        _daemon(host, "ovs-vswitchd", "ovs-vswitchd", f"unix:{host.ovs_run}/{SOCKETS['ovsdb']}")
        _make_bridges(host)
    _confine()
    _daemon(hosts.FIRST, "ovn-northd", "ovn-northd", f"--ovnnb-db={OVN_NB}", f"--ovnsb-db={OVN_SB}")
    for host in hosts.ALL:
        _daemon(host, "ovn-controller", "ovn-controller", f"unix:{host.ovs_run}/{SOCKETS['ovsdb']}")
    Program("ovn-no-gateway-mtu").start(MTU_LOOP, OVN_NB)
    # Neutron's metadata agent, started before, would stay half dead.
    for host in hosts.ALL:
        controller = host.program("ovn-controller")
        wait_until(f"OVN's chassis {host.name}", lambda host=host: _has_chassis(host), 60, controller)


def _daemon(host: Host, name: str, *command: object) -> None:
    """Its own monitor starts it again: ovn-controller 23.03 was seen to crash in its first second."""
    pidfile = f"--pidfile={host.ovs_run}/{name}.pid"
    options = ("--monitor", "--no-chdir", pidfile, "-vsyslog:off", "-vconsole:warn")
    host.program(name).start(*command, *options, **_directories(host))


def _directories(host: Host) -> dict[str, str]:
    return {"OVS_RUNDIR": str(host.ovs_run), "OVN_RUNDIR": str(host.ovs_run)}


def _start_database(host: Host, name: str) -> None:
    file = host.state / "ovn" / f"{name}.db"
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        run("ovsdb-tool", "create", file, DATABASES[name])
    _daemon(
        *(host, name, "ovsdb-server", file, f"--remote=punix:{host.ovs_run}/{SOCKETS[name]}"),
        *(f"--remote=ptcp:{PORTS[name]}:{LOOPBACK}", f"--unixctl={host.ovs_run}/{name}.ctl"),
    )
    wait_until(name, lambda: _answers(host, name), 20, host.program(name))


def _answers(host: Host, database: str) -> bool:
    try:
        run("ovsdb-client", "list-dbs", f"unix:{host.ovs_run}/{SOCKETS[database]}")
        return True
    except Failure:
        return False


def _vsctl(host: Host, *words: object) -> None:
    run(*host.inside(), "ovs-vsctl", "--timeout=30", *words, **_directories(host))


def _configure(host: Host) -> None:
    ids = {
        "system-id": host.name,
        "hostname": host.name,
        "ovn-remote": OVN_SB,
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": host.tunnel_address,
        "ovn-bridge": INTEGRATION,
        "ovn-bridge-datapath-type": "netdev",
        "ovn-bridge-mappings": f"public:{EXTERNAL}",
        **({"ovn-cms-options": "enable-chassis-as-gw"} if host.is_first else {}),
    }
    _vsctl(host, "--no-wait", "init")
    external_ids = (f'external_ids:{key}="{value}"' for key, value in ids.items())
    _vsctl(host, "--no-wait", "set", "Open_vSwitch", ".", *external_ids)


def _make_bridges(host: Host) -> None:
    netdev = "datapath_type=netdev"
    _vsctl(
        *(host, "--may-exist", "add-br", INTEGRATION),
        *("--", "set", "bridge", INTEGRATION, netdev, "fail_mode=secure"),
        *("--", "--may-exist", "add-br", EXTERNAL, "--", "set", "bridge", EXTERNAL, netdev),
        # The same after the host's boot: who tunnels to it remembers it for a quarter of an hour.
        f"other-config:hwaddr=02:00:00:00:be:{host.number:02x}",
    )
    for bridge in (INTEGRATION, EXTERNAL):
        # Where the host had it before, nothing waits for its device.
        up = [str(word) for word in (*host.inside(), "ip", "link", "set", bridge, "up")]
        done = functools.partial(subprocess.run, up, capture_output=True, check=False)
        wait_until(bridge, lambda done=done: done().returncode == 0, 20, host.program("ovs-vswitchd"))
    if host.is_first:
        run("ip", "address", "replace", f"{EXTERNAL_ADDRESS}/24", "dev", EXTERNAL)
    else:
        _vsctl(hosts.FIRST, "--may-exist", "add-port", EXTERNAL, host.cable)
        _vsctl(host, "--may-exist", "add-port", EXTERNAL, "external")
    if len(hosts.ALL) > 1:
        run(*host.inside(), "ip", "address", "replace", f"{host.tunnel_address}/24", "dev", EXTERNAL)


def unplug(host: Host) -> None:
    """Takes its cable out of the first host, whose Open vSwitch would be deaf on one that comes again."""
    _vsctl(hosts.FIRST, "--if-exists", "del-port", EXTERNAL, host.cable)


def _confine() -> None:
    """Nothing that a server sends leaves this machine, whatever ip_forward says."""
    rules = f"""
        table inet {NFT_TABLE}
        delete table inet {NFT_TABLE}
        table inet {NFT_TABLE} {{
            chain forward {{
                type filter hook forward priority -200; policy accept;
                iifname "{EXTERNAL}" drop; oifname "{EXTERNAL}" drop;
            }}
        }}"""
    run("nft", "-f", "-", stdin=rules)


def _has_chassis(host: Host) -> bool:
    find = ("--bare", "--columns=name", "find", "Chassis_Private", f"name={host.name}")
    try:
        return bool(run("ovn-sbctl", f"--db={OVN_SB}", *find).strip())
    except Failure:
        return False


def stop() -> None:
    """Ends the daemons and takes their devices away."""
    # Before what they talk to.
    Program("ovn-no-gateway-mtu").stop(5, group=True)
    together([lambda h=host: h.program("ovn-controller").stop(5, group=True) for host in hosts.ALL])
    daemons = [Program(name) for name in CENTRAL]
    daemons += [host.program(name) for host in hosts.ALL for name in EACH]
    together([lambda d=daemon: d.stop(5, group=True) for daemon in daemons])
    for device in (INTEGRATION, EXTERNAL, "ovs-netdev", "ovs-tap"):
        subprocess.run(["ip", "link", "delete", device], capture_output=True, check=False)
    subprocess.run(["nft", "delete", "table", "inet", NFT_TABLE], capture_output=True, check=False)
    for name in _metadata_namespaces():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _metadata_namespaces() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.name for entry in Path("/run/netns").iterdir() if entry.name.startswith("ovnmeta-")]
    return []
