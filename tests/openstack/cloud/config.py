"""The services' configuration files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from oslo_log.log import get_default_log_levels

from . import hosts
from .hosts import Host
from .place import (
    DATA,
    DEBUG,
    ETC,
    HOST,
    KEYSTONE,
    LOOPBACK,
    OVN_NB,
    OVN_SB,
    OVSDB,
    PASSWORD,
    PASSWORD_FILE,
    PORTS,
    REGION,
    STATE,
    VENV,
    url,
)

Section = dict[str, object]
Ini = dict[str, Section]

BROKER = f"rabbit://guest:guest@{LOOPBACK}:{PORTS['rabbitmq']}/"
UNLIMITED = -1
# The helper for what needs root: this is root already, and sudo may not be there.
PRIVSEP = {"helper_command": f"{VENV}/bin/privsep-helper"}


def database(name: str) -> str:
    """The URL of a database, whose root needs no password on loopback."""
    return f"mysql+pymysql://root@{LOOPBACK}:{PORTS['mariadb']}/{name}?charset=utf8mb4"


def _database(name: str) -> Section:
    return {"connection": database(name), "max_pool_size": 5, "max_overflow": 50}


def _user(name: str) -> Section:
    """Keystone credentials of a service's user."""
    return {
        "auth_type": "password",
        "auth_url": KEYSTONE,
        "username": name,
        "password": PASSWORD,
        "project_name": "service",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region_name": REGION,
    }


# oslo.log's own, and Nova's, with one more: a third of a quiet nova-compute's log was neutronclient
# telling, at each request, that programs should use another library.
LOG_LEVELS = (
    *get_default_log_levels(),
    *("glanceclient=WARN", "oslo.privsep.daemon=INFO", "neutronclient.v2_0.client=ERROR"),
)


def _default(**more: object) -> Section:
    levels = ",".join(LOG_LEVELS)
    return {"use_stderr": True, "debug": DEBUG, "default_log_levels": levels, "host": HOST, **more}


def _service(name: str) -> Ini:
    """What all services say alike."""
    return {
        "keystone_authtoken": {
            "www_authenticate_uri": KEYSTONE,
            "memcached_servers": f"{LOOPBACK}:{PORTS['memcached']}",
            "service_token_roles": "service",
            "service_token_roles_required": True,
            **_user(name),
        },
        "service_user": {"send_service_user_token": True, **_user(name)},
        "oslo_messaging_notifications": {"driver": "noop"},
        "oslo_messaging_rabbit": {"heartbeat_in_pthread": False},
        "oslo_concurrency": {"lock_path": DATA / "lock" / name},
    }


def _keystone() -> Ini:
    keys = {"key_repository": ETC / "keystone/fernet-keys"}
    return {
        "DEFAULT": _default(),
        "database": _database("keystone"),
        "token": {"provider": "fernet", "expiration": 86400},
        # Not to be guessed as it is, and each call of a client has it hashed.
        "identity": {"password_hash_rounds": 4},
        "fernet_tokens": keys,
        "fernet_receipts": keys,
        "credential": {"key_repository": ETC / "keystone/credential-keys"},
        "cache": {
            "enabled": True,
            "backend": "dogpile.cache.pymemcache",
            "memcache_servers": f"{LOOPBACK}:{PORTS['memcached']}",
        },
        "oslo_messaging_notifications": {"driver": "noop"},
    }


def _glance() -> Ini:
    work = DATA / "glance"
    return {
        "DEFAULT": _default(
            enabled_backends="file:file",
            node_staging_uri=f"file://{work}/staging",
            enabled_import_methods="[glance-direct]",
        ),
        "glance_store": {"default_backend": "file"},
        "file": {"filesystem_store_datadir": work / "images"},
        "os_glance_staging_store": {"filesystem_store_datadir": work / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": work / "tasks"},
        "paste_deploy": {"flavor": "keystone", "config_file": ETC / "glance/glance-api-paste.ini"},
        "database": _database("glance"),
        **_service("glance"),
    }


def _placement() -> Ini:
    return {
        "DEFAULT": _default(),
        "api": {"auth_strategy": "keystone"},
        "placement_database": _database("placement"),
        **_service("placement"),
    }


def _nova_common(host: Host = hosts.FIRST) -> Ini:
    return {
        "DEFAULT": _default(
            host=host.name,
            my_ip=host.address,
            # nova-compute keeps there which compute node it is.
            state_path=DATA / f"nova{host.suffix}",
            transport_url=BROKER,
            allow_resize_to_same_host=True,
            default_schedule_zone="nova",
        ),
        **_service("nova"),
        "glance": _user("nova"),
        "placement": _user("nova"),
        "neutron": {
            **_user("nova"),
            "service_metadata_proxy": True,
            "metadata_proxy_shared_secret": PASSWORD,
        },
        # The hypervisors, the proxies and who looks are on one machine.
        "serial_console": {
            "enabled": True,
            "base_url": f"ws://{LOOPBACK}:{PORTS['nova-serialproxy']}/",
            "serialproxy_host": LOOPBACK,
            "serialproxy_port": PORTS["nova-serialproxy"],
            "proxyclient_address": host.address,
        },
        "vnc": {
            "enabled": True,
            "novncproxy_base_url": f"http://{LOOPBACK}:{PORTS['nova-novncproxy']}/vnc_lite.html",
            "novncproxy_host": LOOPBACK,
            "novncproxy_port": PORTS["nova-novncproxy"],
            "server_listen": host.address,
            "server_proxyclient_address": host.address,
        },
        "spice": {"enabled": False},
    }


def _nova() -> Ini:
    common = _nova_common()
    return common | {
        "wsgi": {"api_paste_config": ETC / "nova/api-paste.ini"},
        "api_database": _database("nova_api"),
        "database": _database("nova_cell1"),
        "scheduler": {"workers": 1},
        "conductor": {"workers": 1},
        # A hundred servers in one request are among the tests.
        "quota": {"instances": 200, "cores": 400, "ram": 200 * 1024},
    }


def _nova_compute(host: Host) -> Ini:
    """Without the databases: with them nova-compute warns at every start."""
    common = _nova_common(host)
    common["DEFAULT"] |= {
        "compute_driver": "berth.BerthDriver",
        "vif_plugging_is_fatal": True,
        "vif_plugging_timeout": 120,
        "reserved_host_memory_mb": 512,
        # A small machine stands for a large one.
        "initial_cpu_allocation_ratio": 64,
        "initial_ram_allocation_ratio": 2,
        # One limit on native threads, or nova-compute says that it takes the larger of two.
        "max_concurrent_snapshots": 10,
    }
    return common | {
        "berth": {"url": f"unix://{host.run_dir}/berth.sock", "snapshot_format": "as-base"},
        "vif_plug_ovs": {"ovsdb_connection": f"tcp:{LOOPBACK}:{PORTS['ovsdb']}"},
        "vif_plug_ovs_privileged": PRIVSEP,
        "vif_plug_linux_bridge_privileged": PRIVSEP,
        "nova_sys_admin": PRIVSEP,
    }


def _neutron_root() -> Ini:
    """Neutron asks for a program that makes it root, which it is."""
    contexts = ("", "_dhcp_release", "_ovs_vsctl", "_namespace", "_conntrack", "_link")
    return {"agent": {"root_helper": "env"}} | {f"privsep{name}": PRIVSEP for name in contexts}


def _neutron() -> Ini:
    things = ("port", "network", "subnet", "router", "floatingip", "security_group", "security_group_rule")
    return {
        "DEFAULT": _default(
            bind_host=LOOPBACK,
            state_path=DATA / "neutron",
            core_plugin="ml2",
            service_plugins="ovn-router,qos,trunk",
            auth_strategy="keystone",
            transport_url=BROKER,
            api_workers=1,
            rpc_workers=0,
            global_physnet_mtu=1500,
            dns_domain="berth.test.",
            notify_nova_on_port_status_changes=True,
            notify_nova_on_port_data_changes=True,
            send_events_interval=1,
            api_paste_config=ETC / "neutron/api-paste.ini",
        ),
        "database": _database("neutron"),
        **_service("neutron"),
        **_neutron_root(),
        "nova": _user("nova"),
        "placement": _user("placement"),
        "quotas": {f"quota_{thing}": UNLIMITED for thing in things},
    }


def _ml2() -> Ini:
    return {
        "ml2": {
            "type_drivers": "local,flat,vlan,geneve",
            "project_network_types": "geneve",
            "mechanism_drivers": "ovn",
            "extension_drivers": "port_security,qos,dns",
            "path_mtu": 1500,
            "overlay_ip_version": 4,
        },
        "ml2_type_geneve": {"vni_ranges": "1:65536", "max_header_size": 38},
        "ml2_type_flat": {"flat_networks": "public"},
        "securitygroup": {"enable_security_group": True},
        "ovn": {
            "ovn_nb_connection": OVN_NB,
            "ovn_sb_connection": OVN_SB,
            "ovn_metadata_enabled": True,
            "dns_servers": LOOPBACK,
            "enable_distributed_floating_ip": True,
        },
        "ovs": {"ovsdb_connection": OVSDB},
    }


def _neutron_metadata(host: Host) -> Ini:
    return {
        "DEFAULT": _default(
            host=host.name,
            state_path=DATA / f"neutron{host.suffix}",
            nova_metadata_host=LOOPBACK,
            nova_metadata_port=PORTS["nova-metadata"],
            metadata_proxy_shared_secret=PASSWORD,
            metadata_workers=1,
        ),
        **_neutron_root(),
        "ovs": {"ovsdb_connection": f"unix:{host.ovs_run}/db.sock"},
        "ovn": {"ovn_nb_connection": OVN_NB, "ovn_sb_connection": OVN_SB},
        "oslo_concurrency": {"lock_path": DATA / f"lock/neutron{host.suffix}"},
    }


def _heat() -> Ini:
    return {
        "DEFAULT": _default(
            transport_url=BROKER,
            num_engine_workers=1,
            stack_domain_admin="heat_domain_admin",
            stack_domain_admin_password=PASSWORD,
            stack_user_domain_name="heat",
            # Of 32 characters, as this is.
            auth_encryption_key=PASSWORD,
            region_name_for_services=REGION,
            plugin_dirs="",
            environment_dir=ETC / "heat/environment.d",
            template_dir=ETC / "heat/templates",
        ),
        "paste_deploy": {"api_paste_config": ETC / "heat/api-paste.ini"},
        # Of no project: what is signed or scaled later is done in that of the trust.
        "trustee": {k: v for k, v in _user("heat").items() if not k.startswith("project_")},
        "clients": {"endpoint_type": "publicURL"},
        "clients_keystone": {"auth_uri": KEYSTONE},
        # By these the CloudFormation API has signatures checked. It appends the path itself.
        "ec2authtoken": {**_user("heat"), "endpoint_override": url("keystone")},
        "database": _database("heat"),
        **_service("heat"),
    }


FILES = {
    "keystone/keystone.conf": _keystone,
    "glance/glance-api.conf": _glance,
    "placement/placement.conf": _placement,
    "nova/nova.conf": _nova,
    "neutron/neutron.conf": _neutron,
    "neutron/ml2_conf.ini": _ml2,
    "heat/heat.conf": _heat,
}
# Of each host, with its number before the ending.
FILES_OF_A_HOST = {
    "nova/nova-compute.conf": _nova_compute,
    "neutron/metadata_agent.ini": _neutron_metadata,
}
# Files that the services' packages bring.
COPIED = (
    "nova/api-paste.ini",
    "neutron/api-paste.ini",
    "glance/glance-api-paste.ini",
    "heat/api-paste.ini",
    "heat/environment.d",
    "heat/templates",
)


def of_host(name: str, host: Host) -> str:
    """The name of a host's own file."""
    path = Path(name)
    return str(path.with_stem(f"{path.stem}{host.suffix}"))


def write(path: Path, ini: Ini) -> None:
    """Writes a file as oslo.config reads it."""
    lines = []
    for section, values in ini.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items()), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, "\n".join(lines))


def write_secret(path: Path, text: str) -> None:
    """Writes a file that at no moment is anybody's but root's: all of these have passwords."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def write_all() -> None:
    """Writes everybody's configuration, and the password in it."""
    if not PASSWORD_FILE.exists():
        write_secret(PASSWORD_FILE, f"{PASSWORD}\n")
    for name in COPIED:
        source, target = VENV / "etc" / name, ETC / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    for name, make in FILES.items():
        write(ETC / name, make())
    for host in hosts.ALL:
        for name, make in FILES_OF_A_HOST.items():
            write(ETC / of_host(name, host), make(host))
        for name in ("nova", "neutron"):
            (DATA / f"{name}{host.suffix}").mkdir(parents=True, exist_ok=True)
    for name in ("images", "staging", "tasks"):
        (DATA / "glance" / name).mkdir(parents=True, exist_ok=True)
    temporary = STATE / "tmp"
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o1777)
