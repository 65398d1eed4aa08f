"""Two compute hosts: servers on both, and what becomes of them when a host is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cloud import compute, hosts
from cloud.place import ROOT
from helpers import eventually, server, ssh

if len(hosts.ALL) < 2:
    pytest.skip("this cloud has one host: HOSTS=2", allow_module_level=True)
FIRST, SECOND = compute.ALL[:2]


@contextlib.contextmanager
def only(admin: Any, wanted: compute.Compute) -> Iterator[None]:
    """Nova puts new servers there."""
    others = [service for service in services(admin) if service.host != wanted.host.name]
    for service in others:
        admin.compute.disable_service(service)
    try:
        yield
    finally:
        for service in others:
            admin.compute.enable_service(service)


def services(admin: Any) -> list[Any]:
    return list(admin.compute.services(binary="nova-compute"))


def service_of(admin: Any, wanted: compute.Compute) -> Any:
    return next(service for service in services(admin) if service.host == wanted.host.name)


def switch_on() -> None:
    """What lost its power."""
    subprocess.run([sys.executable, ROOT / "tests/openstack/run", "up"], check=True)


def host_of(admin: Any, made: Any) -> str:
    return admin.compute.get_server(made.id).compute_host


def has(wanted: compute.Compute, made: Any) -> bool:
    """Whether the host's own service has the instance."""
    listed = json.loads(wanted.berth("--json", "list"))["instances"]
    return made.id in [instance["id"] for instance in listed]


def fixed_address(made: Any) -> str:
    addresses = [address for network in made.addresses.values() for address in network]
    return next(address["addr"] for address in addresses if address["OS-EXT-IPS:type"] == "fixed")


@contextlib.contextmanager
def server_on(cloud: Any, admin: Any, wanted: compute.Compute, name: str) -> Iterator[Any]:
    private = cloud.network.find_network("private")
    with contextlib.ExitStack() as stack:
        with only(admin, wanted):
            made = stack.enter_context(server(cloud, name, private, image="tempest", flavor="nano"))
        assert host_of(admin, made) == wanted.host.name
        yield made


def test_servers_of_both_reach_each_other_and_are_reached(admin: Any, demo: Any) -> None:
    with server_on(demo, admin, FIRST, "one") as one, server_on(demo, admin, SECOND, "two") as two:
        for here, there in ((one, two), (two, one)):
            # The first packet of a tunnel asks where its other end is, and is lost.
            ssh("root", here.access_ipv4, f"ping -c 5 -W 5 {fixed_address(there)}")
            # With Geneve's header it must still go through whole.
            ssh("root", here.access_ipv4, f"ping -c 1 -W 5 -s 1400 {fixed_address(there)}")
            # Many full packets: Open vSwitch's tunnels lose those that have no checksum yet.
            # Who listens is kept from ending what it says, which would end the other, too.
            listen = "(sleep 60 | nc -l -p 7000 > /root/got) > /dev/null 2>&1 &"
            ssh("root", there.access_ipv4, listen)
            ssh("root", here.access_ipv4, f"nc -w 10 {fixed_address(there)} 7000 < /bin/busybox > /dev/null")
            sums = ssh("root", there.access_ipv4, "md5sum < /bin/busybox; md5sum < /root/got").split()
            assert sums[0] == sums[2]
            told = ssh(
                "root", here.access_ipv4, "wget -q -O- http://169.254.169.254/latest/meta-data/hostname"
            )
            assert told.split(".")[0] == here.name


def test_a_server_goes_to_the_other_host_and_back(admin: Any, demo: Any) -> None:
    with server_on(demo, admin, FIRST, "moves") as made:
        ssh("root", made.access_ipv4, "echo here > /root/said; ln /root/said /root/again")
        admin.compute.migrate_server(made)
        eventually("its move", lambda: demo.compute.get_server(made.id).status == "VERIFY_RESIZE", 120)
        assert host_of(admin, made) == SECOND.host.name
        assert ssh("root", made.access_ipv4, "cat /root/again; stat -c %h /root/said").split() == [
            "here",
            "2",
        ]
        # Back, as if nothing had been: what was written meanwhile goes with the copy.
        ssh("root", made.access_ipv4, "echo there > /root/said")
        demo.compute.revert_server_resize(made)
        eventually("its return", lambda: demo.compute.get_server(made.id).status == "ACTIVE", 120)
        assert host_of(admin, made) == FIRST.host.name and not has(SECOND, made)
        assert ssh("root", made.access_ipv4, "cat /root/said").strip() == "here"
        # Again, and to stay, with another flavor.
        with only(admin, SECOND):
            demo.compute.resize_server(made, "micro")
            eventually("its move", lambda: demo.compute.get_server(made.id).status == "VERIFY_RESIZE", 120)
        demo.compute.confirm_server_resize(made)
        eventually("its end", lambda: demo.compute.get_server(made.id).status == "ACTIVE", 120)
        assert host_of(admin, made) == SECOND.host.name
        eventually("the rest to go", lambda: not has(FIRST, made), 60)
        seen = ssh("root", made.access_ipv4, "cat /root/said; awk '/MemTotal/ {print $2}' /proc/meminfo")
        assert seen.split() == ["here", str(128 * 1024)]


def test_what_was_evacuated_is_deleted_by_the_host_that_returns(admin: Any, demo: Any) -> None:
    with (
        server_on(demo, admin, SECOND, "evacuated") as made,
        server_on(demo, admin, SECOND, "stays") as other,
    ):
        ssh("root", made.access_ipv4, "echo here > /root/said; sync")
        ssh("root", other.access_ipv4, "echo here > /root/said; sync")
        service = service_of(admin, SECOND)
        SECOND.lose_power()
        admin.compute.update_service_forced_down(service, service.host, service.binary, True)
        try:
            admin.compute.evacuate_server(made)
            eventually("the server elsewhere", lambda: host_of(admin, made) == FIRST.host.name, 120)
            # Since its version 2.95 Nova leaves the start to the user.
            eventually("its end", lambda: admin.compute.get_server(made.id).status == "SHUTOFF", 120)
            demo.compute.start_server(made)
            # A local disk is lost with its host: it is the image again.
            assert ssh("root", made.access_ipv4, "ls /root/said || echo none").strip() == "none"
        finally:
            switch_on()
            admin.compute.update_service_forced_down(service, service.host, service.binary, False)
        eventually("the copy to be gone", lambda: not has(SECOND, made), 60)
        assert has(FIRST, made) and has(SECOND, other)
        demo.compute.reboot_server(other, "HARD")
        assert ssh("root", other.access_ipv4, "cat /root/said").strip() == "here"
        ssh("root", made.access_ipv4, "true")
