"""What a user of the cloud finds: images, flavors, networks, a key. Safe to do again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from . import commands, identity
from .config import write_secret
from .place import CLOUDS, EXTERNAL_ADDRESS, EXTERNAL_SUBNET, KEY, ROOT, STATE, VENV
from .processes import run, step

EXTERNAL_POOL = {"start": "172.24.4.10", "end": "172.24.4.250"}
PRIVATE_SUBNET = "10.77.0.0/24"
# Where networks come from whose owner gave no addresses.
POOL = "10.82.0.0/16"
# Name: VCPUs, MiB of memory, GiB of disk.
FLAVORS = {"nano": (1, 64, 1), "micro": (1, 128, 1), "small": (1, 512, 3), "medium": (2, 1024, 5)}
# DevStack's, by which templates and guides call them, with its ids.
DEVSTACK_FLAVORS = {
    "m1.tiny": ("1", 1, 512, 1),
    "m1.small": ("2", 1, 2048, 20),
    "m1.medium": ("3", 2, 4096, 40),
    "m1.large": ("4", 4, 8192, 80),
    "m1.xlarge": ("5", 8, 16384, 160),
    "m1.nano": ("42", 1, 192, 1),
    "m1.micro": ("84", 1, 256, 1),
    "cirros256": ("c1", 1, 256, 1),
    "ds512M": ("d1", 1, 512, 5),
    "ds1G": ("d2", 1, 1024, 10),
    "ds2G": ("d3", 2, 2048, 10),
    "ds4G": ("d4", 4, 4096, 20),
}
# What may come in from outside.
INGRESS = ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22})


@dataclass(frozen=True)
class Image:
    """An image, made by a script of this project."""

    name: str
    script: tuple[str, ...]
    container_format: str = "bare"
    min_ram: int = 64
    properties: tuple[tuple[str, str], ...] = ()


IMAGES = (
    Image("debian", ("image-debian", "--cloud"), min_ram=256, properties=(("os_distro", "debian"),)),
    Image("application", ("image-application",), container_format="docker"),
    Image("tempest", ("image-tempest",)),
    Image("tempest-alt", ("image-tempest",)),
)


def fill() -> None:
    """Makes what is missing."""
    admin, demo = identity.connect("admin"), identity.connect("demo")
    for image in IMAGES:
        _upload(admin, image)
    _make_flavors(admin)
    _make_networks(admin, demo)
    _make_key(demo)
    _open_security_group(demo)


def _upload(cloud, image: Image) -> None:
    path = Path(run(ROOT / "scripts" / image.script[0], *image.script[1:], log="images").splitlines()[-1])
    found = cloud.image.find_image(image.name)
    if found and found.properties.get("content_sha256") == _sha256(path):
        return
    if found:
        cloud.image.delete_image(found)
    with (
        step(f"upload the image {image.name}, {path.stat().st_size / 2**20:.1f} MiB"),
        path.open("rb") as data,
    ):
        cloud.image.create_image(
            name=image.name,
            disk_format="raw",
            container_format=image.container_format,
            visibility="public",
            min_ram=image.min_ram,
            data=data,
            content_sha256=_sha256(path),
            **dict(image.properties),
        )


def copy_of_tempest(admin, name: str):
    """The image `tempest` once more, for all, under a name of its own."""
    content = admin.image.download_image(admin.image.find_image("tempest")).content
    return admin.image.create_image(
        name=name, disk_format="raw", container_format="bare", visibility="public", data=content
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_flavors(cloud) -> None:
    made = {flavor.name for flavor in cloud.compute.flavors(is_public=None)}
    wanted = {name: (name, *sizes) for name, sizes in FLAVORS.items()} | DEVSTACK_FLAVORS
    for name, (flavor_id, vcpus, ram, disk) in wanted.items():
        if name not in made:
            cloud.compute.create_flavor(name=name, id=flavor_id, vcpus=vcpus, ram=ram, disk=disk)


def _make_networks(admin, demo) -> None:
    public = admin.network.find_network("public") or admin.network.create_network(
        name="public",
        is_router_external=True,
        is_default=True,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    admin.network.find_subnet("public-subnet") or admin.network.create_subnet(
        name="public-subnet",
        network_id=public.id,
        ip_version=4,
        cidr=EXTERNAL_SUBNET,
        gateway_ip=EXTERNAL_ADDRESS,
        is_dhcp_enabled=False,
        allocation_pools=[EXTERNAL_POOL],
    )
    # With it and a default external network, Neutron makes a project's networks when Nova asks.
    admin.network.find_subnet_pool("default") or admin.network.create_subnet_pool(
        name="default", prefixes=[POOL], default_prefix_length=26, is_shared=True, is_default=True
    )
    private = demo.network.find_network("private") or demo.network.create_network(name="private")
    subnet = demo.network.find_subnet("private-subnet") or demo.network.create_subnet(
        name="private-subnet", network_id=private.id, ip_version=4, cidr=PRIVATE_SUBNET
    )
    if not demo.network.find_router("router"):
        router = demo.network.create_router(name="router", external_gateway_info={"network_id": public.id})
        demo.network.add_interface_to_router(router, subnet_id=subnet.id)


def _make_key(demo) -> None:
    if not KEY.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "berth-openstack", "-f", KEY)
    if not demo.compute.find_keypair("demo"):
        demo.compute.create_keypair(name="demo", public_key=KEY.with_suffix(".pub").read_text().strip())


def _open_security_group(demo) -> None:
    group = next(demo.network.security_groups(name="default", project_id=demo.current_project_id))
    open_to_all = {
        (rule.protocol, rule.port_range_min)
        for rule in demo.network.security_group_rules(security_group_id=group.id, direction="ingress")
        if not rule.remote_group_id
    }
    for rule in INGRESS:
        if (rule["protocol"], rule.get("port_range_min")) not in open_to_all:
            demo.network.create_security_group_rule(security_group_id=group.id, direction="ingress", **rule)


def write_credentials() -> None:
    """Files to be sourced, for a user and for the administrator; and both in one, for programs."""
    for name, user in (("openrc", "demo"), ("openrc-admin", "admin")):
        write_secret(STATE / name, _credentials(user))
    # YAML is what JSON is. The names are DevStack's, which many clients' tests ask for.
    clouds = {
        "devstack": _cloud("demo", project_name="demo"),
        "devstack-alt": _cloud("alt", project_name="alt"),
        "devstack-admin": _cloud("admin", project_name="admin"),
        "devstack-system-admin": _cloud("admin", system_scope="all"),
    }
    write_secret(CLOUDS, json.dumps({"clouds": clouds}, indent=2))


def _cloud(user: str, **scope: str) -> dict[str, object]:
    auth = {
        "auth_url": identity.KEYSTONE,
        "username": user,
        "password": identity.PASSWORD,
        "user_domain_id": "default",
        **scope,
        **({"project_domain_id": "default"} if "project_name" in scope else {}),
    }
    return {"auth": auth, "region_name": identity.REGION, "identity_api_version": "3"}


def _credentials(user: str) -> str:
    programs = [VENV / "bin", *([commands.PLACE] if user == "admin" else [])]
    values = {
        "AUTH_URL": identity.KEYSTONE,
        "IDENTITY_API_VERSION": "3",
        "USERNAME": user,
        "PASSWORD": identity.PASSWORD,
        "PROJECT_NAME": user,
        "USER_DOMAIN_ID": "default",
        "PROJECT_DOMAIN_ID": "default",
        "REGION_NAME": identity.REGION,
        "COMPUTE_API_VERSION": "2.95",
    }
    lines = [f"export OS_{name}={value}" for name, value in values.items()]
    lines += ["export PYTHONWARNINGS=ignore"]
    lines += [f'case :$PATH: in *:{place}:*) ;; *) export PATH={place}:"$PATH" ;; esac' for place in programs]
    return "\n".join(lines) + "\n"
