"""Where everything is: directories, ports, names."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
VENV = ROOT / "target/venv-openstack"
NOVNC = ROOT / "target/novnc/usr/share/novnc"
IMAGES = ROOT / "target/images"
BERTH = Path(os.environ.get("BERTH_BIN", ROOT / "target/release/berth"))
# Everything is logged, by berth too.
DEBUG = bool(os.environ.get("BERTH_OPENSTACK_DEBUG"))

STATE = Path(os.environ.get("BERTH_OPENSTACK_STATE", "/var/lib/berth-openstack"))
ETC, LOG, PIDS, DATA = STATE / "etc", STATE / "log", STATE / "pids", STATE / "data"
# Sockets: a path of theirs has at most 107 bytes.
RUN = Path("/run/berth-openstack")
LXCFS, HUGETLB = STATE / "lxcfs", STATE / "hugetlb"
OVS_RUN = RUN / "ovs"
OVSDB = f"unix:{OVS_RUN}/db.sock"
KEY = STATE / "key"
CLOUDS = STATE / "clouds.yaml"

HOST = socket.gethostname()
# Compute hosts: this machine, and others in namespaces on it. A cloud that has them keeps them.
HOSTS = max(int(os.environ.get("HOSTS", "1")), 1 + len(list(STATE.glob("host-*"))))
# Root's alone to read.
PASSWORD_FILE = STATE / "password"


def _password() -> str:
    """One for Keystone's users and what services share, new with each cloud.

    MariaDB, RabbitMQ and memcached ask for none: not for a machine that others use.
    """
    try:
        return PASSWORD_FILE.read_text().strip()
    except FileNotFoundError:
        return secrets.token_hex(16)


PASSWORD = _password()
REGION = "RegionOne"
LOOPBACK = "127.0.0.1"
# The external network, whose gateway is this machine. Servers reach what listens here.
EXTERNAL_SUBNET, EXTERNAL_ADDRESS = "172.24.4.0/24", "172.24.4.1"

PORTS = {
    "memcached": 11211,
    "mariadb": 3306,
    "rabbitmq": 5672,
    "ovsdb": 6640,
    "ovn-nb": 6641,
    "ovn-sb": 6642,
    "keystone": 5000,
    "glance": 9292,
    "placement": 8778,
    "nova-api": 8774,
    "nova-metadata": 8775,
    "nova-novncproxy": 6080,
    "nova-serialproxy": 6083,
    "neutron-api": 9696,
    "heat-api": 8004,
    "heat-api-cfn": 8000,
}
OVN_NB, OVN_SB = (f"tcp:{LOOPBACK}:{PORTS[name]}" for name in ("ovn-nb", "ovn-sb"))


# What servers reach by their routers, to signal to Heat and to ask it for what they shall do.
FOR_SERVERS = ("keystone", "heat-api", "heat-api-cfn")


def address(service: str) -> str:
    """Where a service listens."""
    return EXTERNAL_ADDRESS if service in FOR_SERVERS else LOOPBACK


def url(service: str, path: str = "") -> str:
    """Where an API answers."""
    return f"http://{address(service)}:{PORTS[service]}{path}"


KEYSTONE = url("keystone", "/v3")


def environment(**more: str) -> dict[str, str]:
    """What every program of the cloud gets."""
    kept = {name: os.environ[name] for name in ("HOME", "USER", "TERM") if name in os.environ}
    return kept | {
        "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        # Neutron keeps a file there that must not be an earlier cloud's.
        "TMPDIR": str(STATE / "tmp"),
        "PYTHONWARNINGS": "ignore",
        "OVS_RUNDIR": str(OVS_RUN),
        "OVN_RUNDIR": str(OVS_RUN),
        "OVS_LOGDIR": str(LOG),
        **more,
    }
