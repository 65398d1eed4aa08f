"""What the tests of the cloud share."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cloud.place import KEY

from openstack import exceptions

T = TypeVar("T")
SSH_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5")
# What a server or its API answers while it is not ready yet.
NOT_YET = (OSError, subprocess.CalledProcessError, exceptions.HttpException)


def eventually(what: str, probe: Callable[[], T], seconds: float = 60, pause: float = 0.5) -> T:
    """Asks until there is no error and the answer is true, and gives that back."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(*NOT_YET):
            if answer := probe():
                return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(pause)


def stays(probe: Callable[[], object], seconds: float) -> bool:
    """Whether the answer is true all the while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not probe():
            return False
        time.sleep(0.5)
    return True


def ssh(user: str, address: str, command: str) -> str:
    """What a command prints in a server, as soon as it lets the demo user's key in."""
    words = [
        "ssh",
        "-q",
        "-i",
        str(KEY),
        *(f"-o{option}" for option in SSH_OPTIONS),
        f"{user}@{address}",
        command,
    ]
    done = eventually("an SSH login", lambda: _unless_refused(words), 180)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def _unless_refused(words: list[str]) -> subprocess.CompletedProcess[str] | None:
    """ssh says 255 for its own failures."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    return None if done.returncode == 255 else done


@contextlib.contextmanager
def network(cloud: Any, name: str, **subnets: dict[str, Any]) -> Iterator[Any]:
    """A network of its own behind the demo router, with these subnets by name."""
    made = cloud.network.create_network(name=name)
    router = cloud.network.find_router("router")
    interfaces = []
    try:
        for subnet_name, values in subnets.items():
            subnet = cloud.network.create_subnet(name=subnet_name, network_id=made.id, **values)
            cloud.network.add_interface_to_router(router, subnet_id=subnet.id)
            interfaces.append(subnet)
        yield made
    finally:
        for subnet in interfaces:
            cloud.network.remove_interface_from_router(router, subnet_id=subnet.id)
        cloud.network.delete_network(made)


@contextlib.contextmanager
def server(cloud: Any, name: str, network: Any, **values: Any) -> Iterator[Any]:
    """A server with the demo key, ACTIVE, and its floating IP as `access_ipv4`."""
    made = cloud.create_server(
        name, network=network.id, key_name="demo", wait=True, timeout=300, auto_ip=False, **values
    )
    port = next(cloud.network.ports(device_id=made.id))
    external = cloud.network.find_network("public")
    floating = cloud.network.create_ip(floating_network_id=external.id, port_id=port.id)
    made.access_ipv4 = floating.floating_ip_address
    try:
        yield made
    finally:
        cloud.network.delete_ip(floating)
        cloud.delete_server(made.id, wait=True, timeout=120)
