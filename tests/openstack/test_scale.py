"""A hundred servers in one request, while what carries them is killed and comes back."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud import compute, identity, stores
from cloud.processes import together
from helpers import eventually

# Fewer where there is no time for more.
SERVERS = int(os.environ.get("BERTH_SCALE_SERVERS", "100"))
NAME = "scale"


@pytest.fixture
def clean(demo: Any) -> Iterator[Any]:
    """A cloud without our servers, before and afterwards."""
    _delete_all(demo)
    yield demo
    _delete_all(demo)


def _ours(cloud: Any) -> list[Any]:
    return [server for server in cloud.compute.servers() if server.name.startswith(NAME)]


def _delete_all(cloud: Any) -> None:
    for server in _ours(cloud):
        cloud.compute.delete_server(server, ignore_missing=True)
    eventually("the servers to be gone", lambda: not _ours(cloud), 900)


def _request(cloud: Any) -> None:
    """One request for all servers, that wait in Nova for their turn."""
    image, flavor = cloud.image.find_image("tempest"), cloud.compute.find_flavor("nano")
    network = cloud.network.find_network("private")
    cloud.compute.create_server(
        name=NAME,
        image_id=image.id,
        flavor_id=flavor.id,
        networks=[{"uuid": network.id}],
        min_count=SERVERS,
        max_count=SERVERS,
    )


def _states(cloud: Any) -> collections.Counter[str]:
    return collections.Counter(server.status for server in _ours(cloud))


def _settled(cloud: Any) -> bool:
    states = _states(cloud)
    print(f"   {dict(states)}", flush=True)
    return states["ACTIVE"] + states["ERROR"] == SERVERS


def _instances_on_host() -> set[str]:
    listed = json.loads(compute.FIRST.berth("--json", "list"))
    return {instance["id"] for instance in listed["instances"]}


def _agree(cloud: Any) -> None:
    """Nova, Placement and the host know the same servers; each that failed says why."""
    servers = {server.id: cloud.compute.get_server(server) for server in _ours(cloud)}
    active = {identity for identity, server in servers.items() if server.status == "ACTIVE"}
    silent = [i for i, s in servers.items() if s.status == "ERROR" and not s.fault]
    assert silent == [], "servers in ERROR that do not say why"
    here = _instances_on_host()
    assert active <= here, "ACTIVE, but not on the host"
    assert _allocated() >= active, "ACTIVE, but without an allocation"
    everywhere = {server.id for server in identity.connect("admin").compute.servers(all_projects=True)}
    assert here <= everywhere, "on the host, but unknown to Nova"
    assert _allocated() <= everywhere, "allocations of servers unknown to Nova"


def _allocated() -> set[str]:
    placement = identity.connect("admin").placement
    (provider,) = placement.resource_providers()
    answer = placement.get(f"/resource_providers/{provider.id}/allocations")
    return set(answer.json()["allocations"])


def _all_answer_pings(cloud: Any) -> None:
    """From the namespace that Neutron's metadata proxy has on their network."""
    namespace = f"ovnmeta-{cloud.network.find_network('private').id}"
    silent = []
    for server in _ours(cloud):
        if server.status == "ACTIVE":
            address = server.addresses["private"][0]["addr"]
            command = ["ip", "netns", "exec", namespace, "ping", "-c", "1", "-W", "2", address]
            if subprocess.run(command, capture_output=True).returncode:
                silent.append(address)
    assert silent == []


def _devices_of(cloud: Any, servers: set[str]) -> set[str]:
    """The host's ends of their interfaces, as os-vif names them."""
    ports = [port for server in servers for port in cloud.network.ports(device_id=server)]
    return {f"tap{port.id}"[:14] for port in ports}


def _delete_and_look(cloud: Any) -> None:
    """Afterwards nobody knows of them: Nova, Placement, the host."""
    servers = {server.id for server in _ours(cloud)}
    devices = _devices_of(cloud, servers)
    start = time.monotonic()
    _delete_all(cloud)
    print(f"   gone after {time.monotonic() - start:.0f} s")
    assert not servers & _instances_on_host()
    assert not servers & _allocated()

    def gone() -> bool:
        return not any(Path("/sys/class/net", device).exists() for device in devices)

    eventually("their devices to be gone", gone, 60)


def test_a_hundred_servers_in_one_request(clean: Any) -> None:
    start = time.monotonic()
    _request(clean)
    eventually("all servers to be ACTIVE", lambda: _settled(clean), 1200, pause=5)
    print(f"   {SERVERS} servers after {time.monotonic() - start:.0f} s")
    assert _states(clean) == {"ACTIVE": SERVERS}
    _agree(clean)
    _all_answer_pings(clean)
    _delete_and_look(clean)


def test_what_carries_them_is_killed_meanwhile(clean: Any) -> None:
    _request(clean)

    def active(share: float) -> bool:
        return _states(clean)["ACTIVE"] >= SERVERS * share

    eventually("the first servers", lambda: active(0.1), 300, pause=2)
    compute.FIRST.service.signal(signal.SIGKILL)
    compute.FIRST.start_service()
    eventually("more servers", lambda: active(0.25), 300, pause=2)
    compute.FIRST.nova_compute.signal(signal.SIGKILL, group=True)
    time.sleep(1)
    compute.FIRST.start_nova_compute()
    together([stores.RABBITMQ.stop, stores.MARIADB.stop])
    time.sleep(60)
    stores.start()
    stores.wait_for_broker()
    eventually("all servers to be ACTIVE or ERROR", lambda: _settled(clean), 1200, pause=5)
    _agree(clean)
    _all_answer_pings(clean)
    _delete_and_look(clean)
