"""The control plane: Keystone, Placement, Glance, Neutron, Nova, Heat."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from . import hosts
from .config import of_host
from .place import DATA, ETC, NOVNC, PORTS, VENV, address, url
from .processes import Program, answers, together, wait_until

# Module and processes of each API; port and configuration go by its name.
APIS = {
    "keystone": ("keystone.wsgi.api", 2),
    "placement": ("placement.wsgi.api", 1),
    "glance": ("glance.wsgi.api", 1),
    "neutron-api": ("neutron.wsgi.api", 2),
    "nova-api": ("nova.wsgi.osapi_compute", 2),
    "nova-metadata": ("nova.wsgi.metadata", 1),
    # One asks the next in the middle of a request: for stacks in stacks, as if they were elsewhere.
    "heat-api": ("heat.wsgi.api", 4),
    "heat-api-cfn": ("heat.wsgi.cfn", 1),
}
CONFIGURATION = {
    "OS_KEYSTONE_CONFIG_DIR": ETC / "keystone",
    "OS_PLACEMENT_CONFIG_DIR": ETC / "placement",
    "OS_GLANCE_CONFIG_DIR": ETC / "glance",
    "OS_NOVA_CONFIG_DIR": ETC / "nova",
    "OS_NEUTRON_CONFIG_DIR": ETC / "neutron",
    "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2_conf.ini",
}
NEUTRON = ("neutron/neutron.conf", "neutron/ml2_conf.ini")
# Program and configuration of each daemon.
DAEMONS = {
    "nova-conductor": ("nova-conductor", "nova/nova.conf"),
    "nova-scheduler": ("nova-scheduler", "nova/nova.conf"),
    "nova-serialproxy": ("nova-serialproxy", "nova/nova.conf"),
    "nova-novncproxy": ("nova-novncproxy", "nova/nova.conf"),
    "heat-engine": ("heat-engine", "heat/heat.conf"),
}
# These want Neutron's API to have made its tables' first rows.
AFTER_NEUTRON = {
    "neutron-maintenance": ("neutron-ovn-maintenance-worker", *NEUTRON),
    "neutron-periodic": ("neutron-periodic-workers", *NEUTRON),
}
# On each host.
METADATA_AGENT = "neutron-metadata"


def start_identity() -> None:
    """Starts Keystone, which all others need."""
    _start_api("keystone")
    _wait_for("keystone")


def start() -> None:
    """Starts all others."""
    for name in APIS:
        _start_api(name)
    for name, (program, *files) in DAEMONS.items():
        _start_daemon(name, program, files)
    _wait_for("neutron-api")
    for name, (program, *files) in AFTER_NEUTRON.items():
        _start_daemon(name, program, files)
    for host in hosts.ALL:
        host.program(METADATA_AGENT).start(
            VENV / "bin/neutron-ovn-metadata-agent",
            f"--config-file={ETC}/neutron/neutron.conf",
            f"--config-file={ETC / of_host('neutron/metadata_agent.ini', host)}",
        )
    for name in APIS:
        _wait_for(name)


def _start_api(name: str) -> None:
    module, processes = APIS[name]
    Program(name).start(
        *(VENV / "bin/uwsgi", "--venv", VENV, "--module", f"{module}:application"),
        *("--http-socket", f"{address(name)}:{PORTS[name]}"),
        *("--master", "--processes", processes, "--threads", 1, "--enable-threads", "--lazy-apps"),
        *("--die-on-term", "--thunder-lock", "--need-app", "--buffer-size", 65535),
        *("--disable-logging", "--log-5xx", "--procname-prefix", f"{name} "),
        *("--add-header", "Connection: close", "--worker-reload-mercy", 5, "--reload-mercy", 5),
        *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all"),
        # Uploads to Glance come chunked.
        *(["--http-chunked-input"] if name == "glance" else []),
        # Heat's modules read their arguments instead of the environment.
        *(["--pyargv", f"--config-file {ETC}/heat/heat.conf"] if name.startswith("heat-") else []),
        **{key: str(value) for key, value in CONFIGURATION.items()},
    )


def _start_daemon(name: str, program: str, files: list[str]) -> None:
    # The pages that a browser gets of it.
    pages = [f"--web={NOVNC}"] if name == "nova-novncproxy" else []
    Program(name).start(VENV / "bin" / program, *(f"--config-file={ETC / file}" for file in files), *pages)


def _wait_for(name: str) -> None:
    wait_until(name, lambda: answers(url(name, "/")), 120, Program(name))


def stop() -> None:
    """Ends everything, and the metadata proxies."""
    names = [*AFTER_NEUTRON, *DAEMONS, *APIS]
    programs = [Program(name) for name in names] + [host.program(METADATA_AGENT) for host in hosts.ALL]
    together([lambda p=program: p.stop(4) for program in programs])
    for host in hosts.ALL:
        end_metadata_proxies(host)


def end_metadata_proxies(host: hosts.Host) -> None:
    """They outlive their agent by design."""
    for record in (DATA / f"neutron{host.suffix}/external/pids").glob("*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(record.read_text())
            if b"haproxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
