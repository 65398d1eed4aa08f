"""What befalls a host and its servers, against the real nova-compute: nothing hangs, every reason is seen."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud import compute
from cloud.place import STATE
from cloud.processes import run
from helpers import eventually, network, server, ssh, stays

HOST_ROUTES = [{"destination": "198.51.100.0/24", "nexthop": "10.83.0.9"}]
# Nobody tells the server its addresses: the host sets them.
STATIC = {"ip_version": 4, "is_dhcp_enabled": False, "host_routes": HOST_ROUTES}


def settle(cloud: Any, made: Any) -> Any:
    """The server when Nova does nothing with it any more."""

    def idle() -> Any:
        now = cloud.compute.get_server(made.id)
        return now if now.task_state is None and now.status not in ("BUILD", "REBUILD") else None

    return eventually("Nova to end what it does", idle, 120)


def routes_of(made: Any) -> list[dict[str, Any]]:
    """The IPv4 routes inside, as `ip` reads them there."""
    record = json.loads(compute.FIRST.berth("--json", "show", made.id))
    out = run("nsenter", f"--net=/proc/{record['pid']}/ns/net", "ip", "-json", "-4", "route")
    return json.loads(out)


def default_gateway(made: Any) -> str | None:
    """The way out that the server has; None: it has none."""
    found = [route["gateway"] for route in routes_of(made) if route["dst"] == "default"]
    assert len(found) < 2, found
    return found[0] if found else None


@pytest.fixture
def private_mounts() -> Iterator[Any]:
    """Starts programs with mount namespaces of their own, as systemd's PrivateTmp does."""
    programs: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        programs.append(subprocess.Popen(["unshare", "-m", "sleep", "900"]))
        eventually("its namespace", lambda: namespace("self") != namespace(str(programs[-1].pid)), 10)

    yield start
    for program in programs:
        program.kill()
        program.wait()


def namespace(process: str) -> str:
    return str(Path(f"/proc/{process}/ns/mnt").readlink())


def test_a_copy_of_the_hosts_mounts_holds_nothing_up(demo: Any, private_mounts: Any) -> None:
    private = demo.network.find_network("private")
    with server(demo, "copied", private, image="tempest", flavor="nano") as made:
        address = made.access_ipv4  # which a rebuild's answer takes away
        ssh("root", address, "echo before >/root/said && sync")
        private_mounts()
        demo.compute.resize_server(made, "micro")
        assert settle(demo, made).status == "VERIFY_RESIZE"
        ssh("root", address, "echo after >/root/said && sync")
        private_mounts()
        demo.compute.revert_server_resize(made)
        assert settle(demo, made).status == "ACTIVE"
        assert ssh("root", address, "cat /root/said").strip() == "before"
        demo.compute.resize_server(made, "micro")
        assert settle(demo, made).status == "VERIFY_RESIZE"
        private_mounts()
        demo.compute.confirm_server_resize(made)
        # Nova has no task while it does that.
        eventually("the confirmation", lambda: demo.compute.get_server(made.id).status == "ACTIVE")
        assert demo.compute.get_server(made.id).flavor.name == "micro"
        image = demo.compute.create_server_image(made, "copied", wait=True, timeout=300)
        demo.image.delete_image(image.id)
        demo.compute.rebuild_server(made, image=demo.image.find_image("tempest-alt").id, name="copied")
        assert settle(demo, made).status == "ACTIVE"
        assert ssh("root", address, "ls /root/said || echo none").strip() == "none"


def test_a_reinstalled_host(demo: Any) -> None:
    if json.loads(compute.FIRST.berth("--json", "list"))["instances"]:
        pytest.skip("other servers of this cloud would be lost")
    private = demo.network.find_network("private")
    with (
        server(demo, "rebuilt", private, image="tempest", flavor="nano") as rebuilt,
        server(demo, "deleted", private, image="tempest", flavor="nano") as deleted,
    ):
        address = rebuilt.access_ipv4
        ssh("root", address, "true")
        compute.FIRST.nova_compute.stop()
        compute.FIRST.berth("delete", rebuilt.id, deleted.id)
        compute.FIRST.service.stop(20)
        shutil.rmtree(STATE / "berth")
        compute.FIRST.start_service()
        compute.FIRST.start_nova_compute()
        for made in (rebuilt, deleted):
            settle(demo, made)
            demo.compute.reboot_server(made, "HARD")
            now = settle(demo, made)
            assert now.status == "ERROR"
            assert "the service on this host has no such instance" in now.fault["message"]
        demo.compute.rebuild_server(rebuilt, image=demo.image.find_image("tempest").id, name="rebuilt")
        assert settle(demo, rebuilt).status == "ACTIVE"
        ssh("root", address, "true")
        demo.delete_server(deleted.id, wait=True, timeout=120)
        assert stays(lambda: demo.compute.get_server(rebuilt.id).status == "ACTIVE", 3)


@contextlib.contextmanager
def port_on(demo: Any, net: Any, **values: Any) -> Iterator[Any]:
    """A port, deleted in the end if nobody else has."""
    port = demo.network.create_port(network_id=net.id, **values)
    try:
        yield port
    finally:
        demo.network.delete_port(port, ignore_missing=True)


@contextlib.contextmanager
def application(demo: Any, *ports: Any) -> Iterator[Any]:
    """A server that asks nobody for its addresses, on these ports."""
    made = demo.create_server(
        "application",
        image="application",
        flavor="nano",
        nics=[{"port-id": port.id} for port in ports],
        wait=True,
        timeout=300,
        auto_ip=False,
    )
    try:
        yield made
    finally:
        demo.delete_server(made.id, wait=True, timeout=120)


def test_two_subnets_on_one_port(demo: Any) -> None:
    subnets = {
        "one": {**STATIC, "cidr": "10.83.0.0/24"},
        "two": {**STATIC, "cidr": "10.84.0.0/24"},
    }
    with network(demo, "twofold", **subnets) as net:
        wanted = [{"subnet_id": demo.network.find_subnet(name).id} for name in subnets]
        with port_on(demo, net, fixed_ips=wanted) as port, application(demo, port) as made:
            gateway = default_gateway(made)
            assert gateway in ("10.83.0.1", "10.84.0.1")
            static = [route for route in routes_of(made) if route["dst"] == "198.51.100.0/24"]
            assert [route["gateway"] for route in static] == ["10.83.0.9"]
            # Nova tells no driver of other addresses; a hard reboot has them.
            now = [{**fixed, "ip_address": _other(fixed["ip_address"])} for fixed in port.fixed_ips]
            demo.network.update_port(port, fixed_ips=now)
            assert stays(lambda: default_gateway(made) == gateway, 5)
            demo.compute.reboot_server(made, "HARD")
            assert settle(demo, made).status == "ACTIVE"
            assert _sources(made) == {fixed["ip_address"] for fixed in now}
            assert default_gateway(made) == gateway


def _other(address: str) -> str:
    last = ipaddress.ip_address(address) + 1
    return str(last if int(str(last).rpartition(".")[2]) < 250 else last - 100)


def _sources(made: Any) -> set[str]:
    return {route["prefsrc"] for route in routes_of(made) if route.get("prefsrc")}


def test_the_way_out_outlives_the_first_interface(demo: Any) -> None:
    first = {"ip_version": 4, "cidr": "10.85.0.0/24"}
    second = {"ip_version": 4, "cidr": "10.86.0.0/24"}
    with (
        network(demo, "first", a=first) as one,
        network(demo, "second", b=second) as two,
        port_on(demo, one) as first_port,
        port_on(demo, two) as second_port,
        application(demo, first_port, second_port) as made,
    ):
        assert default_gateway(made) == "10.85.0.1"
        demo.compute.delete_server_interface(first_port.id, server=made)
        eventually("the other way out", lambda: default_gateway(made) == "10.86.0.1", 60)
        demo.compute.create_server_interface(made, net_id=one.id)
        assert default_gateway(made) == "10.86.0.1"
        demo.compute.reboot_server(made, "HARD")
        assert settle(demo, made).status == "ACTIVE"
        assert default_gateway(made) in ("10.85.0.1", "10.86.0.1")
