"""Servers in ways that Tempest does not try: cloud-init, static addresses, two stacks, restarts, caching."""

from __future__ import annotations

import json
from typing import Any

from cloud import compute, resources
from cloud.place import HOST
from helpers import eventually, network, server, ssh

USER_DATA = """#!/bin/sh
echo "user data of $(hostname)" >/root/said
"""


def test_config_drive_and_a_subnet_without_dhcp(demo: Any) -> None:
    static = {
        "ip_version": 4,
        "cidr": "10.79.0.0/24",
        "is_dhcp_enabled": False,
        "dns_nameservers": ["192.0.2.53"],
    }
    with (
        network(demo, "static", static=static) as net,
        server(
            demo, "static", net, image="debian", flavor="small", config_drive=True, userdata=USER_DATA
        ) as made,
    ):
        address = made.access_ipv4
        assert "status: done" in ssh("debian", address, "cloud-init status --wait")
        assert "user data of static" in ssh("debian", address, "sudo cat /root/said")
        assert "DataSourceConfigDrive" in ssh("debian", address, "cat /run/cloud-init/result.json")
        assert made.addresses["static"][0]["addr"] in ssh("debian", address, "ip -4 address show eth0")
        assert "192.0.2.53" in ssh("debian", address, "cat /run/systemd/resolve/resolv.conf /etc/resolv.conf")
        assert "failed" not in ssh("debian", address, "systemctl is-system-running --wait || true")


def test_both_stacks_and_the_mtu(demo: Any) -> None:
    slaac = {"ip_version": 6, "cidr": "fd00:7a::/64", "ipv6_address_mode": "slaac", "ipv6_ra_mode": "slaac"}
    with (
        network(demo, "dual", four={"ip_version": 4, "cidr": "10.80.0.0/24"}, six=slaac) as net,
        server(demo, "dual", net, image="tempest", flavor="nano") as made,
    ):
        addresses = {entry["addr"] for entry in made.addresses["dual"]}
        assert len(addresses) == 2

        def all_there() -> bool:
            links = ssh("root", made.access_ipv4, "ip address show eth0")
            return all(f"{address}/" in links for address in addresses) and f"mtu {net.mtu}" in links

        eventually("both addresses", all_there, 60)


def test_metadata_tells_the_server_who_it_is(demo: Any) -> None:
    private = demo.network.find_network("private")
    with server(demo, "who", private, image="tempest", flavor="nano", meta={"role": "test"}) as made:
        data = json.loads(
            ssh("root", made.access_ipv4, "curl -s http://169.254.169.254/openstack/latest/meta_data.json")
        )
        assert (data["uuid"], data["name"], data["meta"]) == (made.id, "who", {"role": "test"})
        assert ssh("root", made.access_ipv4, "hostname").strip() == "who"
        assert ssh("root", made.access_ipv4, "grep -c ^processor /proc/cpuinfo").strip() == "1"
        assert int(ssh("root", made.access_ipv4, "awk '/MemTotal/ {print $2}' /proc/meminfo")) == 64 * 1024


def test_nova_compute_restarts_beside_a_server(demo: Any) -> None:
    private = demo.network.find_network("private")
    with server(demo, "stays", private, image="tempest", flavor="nano") as made:
        started = ssh("root", made.access_ipv4, "stat -c %Y /proc/1")
        compute.FIRST.nova_compute.stop()
        compute.FIRST.start_nova_compute()
        assert ssh("root", made.access_ipv4, "stat -c %Y /proc/1") == started
        assert demo.compute.get_server(made).status == "ACTIVE"


def test_an_image_is_fetched_beforehand(admin: Any) -> None:
    image = resources.copy_of_tempest(admin, "beforehand")
    aggregate = admin.compute.create_aggregate(name="beforehand")
    try:
        admin.compute.add_host_to_aggregate(aggregate, HOST)
        admin.compute.aggregate_precache_images(aggregate, [image.id])
        eventually(
            "the image on the host", lambda: image.id in compute.FIRST.berth("--json", "image", "list")
        )
    finally:
        admin.compute.remove_host_from_aggregate(aggregate, HOST)
        admin.compute.delete_aggregate(aggregate)
        admin.image.delete_image(image)
