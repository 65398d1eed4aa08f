"""Programs for the administrator, each with this cloud's configuration: `nova-manage`, `berth`, …

`openrc-admin` puts them first in PATH.
"""

from __future__ import annotations

import shlex

from . import hosts
from .place import BERTH, ETC, STATE, VENV

PLACE = STATE / "bin"
# Program: its files below ETC.
CONFIGURED = {
    "nova-manage": ("nova/nova.conf",),
    "nova-status": ("nova/nova.conf",),
    "nova-policy": ("nova/nova.conf",),
    "keystone-manage": ("keystone/keystone.conf",),
    "placement-manage": ("placement/placement.conf",),
    "placement-status": ("placement/placement.conf",),
    "glance-manage": ("glance/glance-api.conf",),
    "heat-manage": ("heat/heat.conf",),
    "neutron-db-manage": ("neutron/neutron.conf", "neutron/ml2_conf.ini"),
}


def write() -> None:
    """Makes them."""
    PLACE.mkdir(exist_ok=True)
    for name, files in CONFIGURED.items():
        options = (f"--config-file={ETC / file}" for file in files)
        # As the services run: Nova warns of the other way at each command.
        native = {"OS_NOVA_DISABLE_EVENTLET_PATCHING": 1} if name.startswith("nova-") else {}
        _write(name, VENV / "bin" / name, *options, **native)
    for host in hosts.ALL:
        _write(f"berth{host.suffix}", BERTH, BERTH_SOCKET=host.run_dir / "berth.sock")


def _write(name: str, *command: object, **environment: object) -> None:
    words = [*(f"{key}={value}" for key, value in environment.items()), *map(str, command)]
    prefix = "exec env" if environment else "exec"
    file = PLACE / name
    file.write_text(f'#!/bin/sh\n{prefix} {shlex.join(words)} "$@"\n')
    file.chmod(0o755)
