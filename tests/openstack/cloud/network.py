"""Open vSwitch and OVN, on the userspace datapath: no kernel module is needed."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from .place import (
    EXTERNAL_ADDRESS,
    HOST,
    LOOPBACK,
    OVN_NB,
    OVN_SB,
    OVS_RUN,
    OVSDB,
    PORTS,
    STATE,
)
from .processes import Failure, Program, listens, run, together, wait_until

INTEGRATION, EXTERNAL = "br-int", "br-ex"
NFT_TABLE = "berth_openstack"
DATABASES = {
    "ovsdb": Path("/usr/share/openvswitch/vswitch.ovsschema"),
    "ovn-nb": Path("/usr/share/ovn/ovn-nb.ovsschema"),
    "ovn-sb": Path("/usr/share/ovn/ovn-sb.ovsschema"),
}
SOCKETS = {"ovsdb": "db.sock", "ovn-nb": "ovnnb_db.sock", "ovn-sb": "ovnsb_db.sock"}
DAEMONS = (*DATABASES, "ovs-vswitchd", "ovn-northd", "ovn-controller", "ovn-no-gateway-mtu")
MTU_LOOP = Path(__file__).with_name("no-gateway-mtu")


def start() -> None:
    """Starts all daemons and waits until OVN knows this host."""
    for directory in (OVS_RUN, STATE / "ovn"):
        directory.mkdir(parents=True, exist_ok=True)
    for name in DATABASES:
        _start_database(name)
    _configure()
    _daemon("ovs-vswitchd", "ovs-vswitchd", OVSDB)
    _make_bridges()
    _daemon("ovn-northd", "ovn-northd", f"--ovnnb-db={OVN_NB}", f"--ovnsb-db={OVN_SB}")
    _daemon("ovn-controller", "ovn-controller", OVSDB)
    Program("ovn-no-gateway-mtu").start(MTU_LOOP, OVN_NB)
    # Neutron's metadata agent, started before, would stay half dead.
    wait_until("OVN's chassis", _has_chassis, 60, Program("ovn-controller"))


def _daemon(name: str, *command: object) -> None:
    """Its own monitor starts it again: ovn-controller 23.03 was seen to crash in its first second."""
    options = ("--monitor", "--no-chdir", f"--pidfile={OVS_RUN}/{name}.pid", "-vsyslog:off", "-vconsole:warn")
    Program(name).start(*command, *options)


def _start_database(name: str) -> None:
    file = STATE / "ovn" / f"{name}.db"
    if not file.exists():
        run("ovsdb-tool", "create", file, DATABASES[name])
    _daemon(
        *(name, "ovsdb-server", file, f"--remote=punix:{OVS_RUN}/{SOCKETS[name]}"),
        *(f"--remote=ptcp:{PORTS[name]}:{LOOPBACK}", f"--unixctl={OVS_RUN}/{name}.ctl"),
    )
    wait_until(name, lambda: listens(PORTS[name]), 20, Program(name))


def _configure() -> None:
    ids = {
        "system-id": HOST,
        "hostname": HOST,
        "ovn-remote": OVN_SB,
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": LOOPBACK,
        "ovn-bridge": INTEGRATION,
        "ovn-bridge-datapath-type": "netdev",
        "ovn-bridge-mappings": f"public:{EXTERNAL}",
        "ovn-cms-options": "enable-chassis-as-gw",
    }
    run("ovs-vsctl", "--no-wait", "init")
    run(
        *("ovs-vsctl", "--no-wait", "set", "Open_vSwitch", "."),
        # With it, the datapath fills in the checksums that veth pairs leave to hardware.
        "other_config:userspace-tso-enable=true",
        *(f'external_ids:{key}="{value}"' for key, value in ids.items()),
    )


def _make_bridges() -> None:
    netdev = "datapath_type=netdev"
    run(
        *("ovs-vsctl", "--timeout=30", "--may-exist", "add-br", INTEGRATION),
        *("--", "set", "bridge", INTEGRATION, netdev, "fail_mode=secure"),
        *("--", "--may-exist", "add-br", EXTERNAL, "--", "set", "bridge", EXTERNAL, netdev),
    )
    for bridge in (INTEGRATION, EXTERNAL):
        run("ip", "link", "set", bridge, "up")
    run("ip", "address", "replace", f"{EXTERNAL_ADDRESS}/24", "dev", EXTERNAL)
    # Nothing that a server sends leaves this machine, whatever ip_forward says.
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


def _has_chassis() -> bool:
    try:
        return bool(
            run("ovn-sbctl", f"--db={OVN_SB}", "--bare", "--columns=name", "find", "Chassis_Private").strip()
        )
    except Failure:
        return False


def stop() -> None:
    """Ends the daemons and takes their devices away."""
    for name in ("ovn-no-gateway-mtu", "ovn-controller"):
        Program(name).stop(5, group=True)  # before what they talk to
    together([lambda n=name: Program(n).stop(5, group=True) for name in DAEMONS])
    for device in (INTEGRATION, EXTERNAL, "ovs-netdev", "ovs-tap"):
        subprocess.run(["ip", "link", "delete", device], capture_output=True, check=False)
    subprocess.run(["nft", "delete", "table", "inet", NFT_TABLE], capture_output=True, check=False)
    for name in _metadata_namespaces():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _metadata_namespaces() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.name for entry in Path("/run/netns").iterdir() if entry.name.startswith("ovnmeta-")]
    return []
