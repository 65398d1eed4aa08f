"""Keystone's content: users, roles, services and their endpoints. Safe to do again."""

from __future__ import annotations

import openstack

from .place import KEYSTONE, PASSWORD, REGION, STATE, url

MADE = STATE / "identity-made"
ROLES = ("admin", "member", "reader", "manager", "service", "heat_stack_owner", "heat_stack_user")
SERVICES = {
    "glance": ("image", url("glance")),
    "placement": ("placement", url("placement")),
    "nova": ("compute", url("nova-api", "/v2.1")),
    "neutron": ("network", url("neutron-api")),
    "heat": ("orchestration", url("heat-api", "/v1/%(project_id)s")),
    "heat-cfn": ("cloudformation", url("heat-api-cfn", "/v1")),
}
SERVICE_USERS = ("nova", "glance", "placement", "neutron", "heat")


def connect(user: str = "admin") -> openstack.connection.Connection:
    """The cloud, as the user of that name in the project of that name."""
    return openstack.connect(
        auth_url=KEYSTONE,
        username=user,
        password=PASSWORD,
        project_name=user,
        user_domain_id="default",
        project_domain_id="default",
        region_name=REGION,
        compute_default_microversion="2.95",
    )


def fill() -> None:
    """Makes what is missing, once."""
    if MADE.exists():
        return
    identity = connect().identity
    roles = {role.name: role for role in identity.roles()}
    for name in ROLES:
        if name not in roles:
            roles[name] = identity.create_role(name=name)
    _make_users(identity, roles)
    _make_heat_domain(identity, roles)
    _make_endpoints(identity)
    MADE.touch()


def _project(identity, name):
    found = identity.find_project(name, domain_id="default")
    return found or identity.create_project(name=name, domain_id="default")


def _user(identity, name, domain="default"):
    found = identity.find_user(name, domain_id=domain)
    return found or identity.create_user(name=name, password=PASSWORD, domain_id=domain)


def _make_users(identity, roles) -> None:
    service, demo, alt, admin = (_project(identity, name) for name in ("service", "demo", "alt", "admin"))
    given = {
        **{name: (service, ("admin", "service")) for name in SERVICE_USERS},
        "demo": (demo, ("member", "reader", "heat_stack_owner")),
        "alt": (alt, ("member", "reader")),
        "admin": (admin, ("heat_stack_owner",)),
    }
    for name, (project, its_roles) in given.items():
        user = _user(identity, name)
        for role in its_roles:
            identity.assign_project_role_to_user(project, user, roles[role])


def _make_heat_domain(identity, roles) -> None:
    """Heat keeps the users of its resources in a domain of its own."""
    domain = identity.find_domain("heat") or identity.create_domain(name="heat")
    identity.assign_domain_role_to_user(
        domain, _user(identity, "heat_domain_admin", domain.id), roles["admin"]
    )


def _make_endpoints(identity) -> None:
    services = {service.name: service for service in identity.services()}
    made = {(endpoint.service_id, endpoint.interface) for endpoint in identity.endpoints()}
    for name, (kind, where) in SERVICES.items():
        service = services.get(name) or identity.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            if (service.id, interface) not in made:
                identity.create_endpoint(
                    service_id=service.id, interface=interface, url=where, region_id=REGION
                )
