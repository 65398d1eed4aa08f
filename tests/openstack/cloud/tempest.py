"""Tempest against the cloud: its configuration with true feature flags, its runs, their figures."""

from __future__ import annotations

import collections
import io
import re
import subprocess
import sys
from pathlib import Path

from subunit import ByteStreamToStreamResult

from . import config, hosts, identity
from .lists import lines
from .place import DATA, KEYSTONE, PASSWORD, REGION, ROOT, STATE, VENV, environment
from .processes import Failure, run

HERE = ROOT / "tests/openstack"
WORKSPACE = STATE / "tempest"
CONFIGURATION = WORKSPACE / "etc/tempest.conf"
EXCLUDED = HERE / "tempest-excluded.txt"
# Tempest keeps a register of workspaces there: in the user's, it would outlive the cloud.
HOME = {"HOME": str(STATE)}
# All that `make tempest` runs, and the part that `make test-openstack` does.
WHOLE = r"^tempest\.(api\.compute|scenario)\."
PART = HERE / "tempest-part.txt"
# It gives its class's floating IP to a server of its own, and deletes that: whatever its class tries
# afterwards by SSH would wait for nobody. So it comes last, alone.
LAST = "tempest.api.compute.servers.test_server_actions.ServerActionsTestJSON.test_change_server_password"

# What berth and its driver do, and what they do not do yet.
FEATURES = {
    "console_output": True,
    "pause": True,
    "suspend": True,
    "interface_attach": True,
    "personality": True,
    "metadata_service": True,
    "enable_instance_password": True,
    "hostname_fqdn_sanitization": True,
    "disk_config": True,
    "change_password": True,
    "snapshot": True,
    "shelve": True,
    "resize": True,
    # To another host.
    "cold_migration": len(hosts.ALL) > 1,
    "rescue": True,
    "stable_rescue": True,
    "vnc_console": True,
    "serial_console": True,
    # There is no IDE bus in a container.
    "ide_bus": False,
    # A later issue's.
    "live_migration": False,
    "block_migration_for_live_migration": False,
    "attach_encrypted_volume": False,
    "volume_multiattach": False,
    "swap_volume": False,
    "spice_console": False,
    # It is a directory inside the server; Tempest wants a block device to mount.
    "config_drive": False,
}


def configure() -> None:
    """Writes tempest.conf for what is in the cloud now."""
    cloud = identity.connect("admin")
    image, other = (cloud.image.find_image(name).id for name in ("tempest", "tempest-alt"))
    config.write(
        CONFIGURATION,
        {
            "DEFAULT": {"log_file": "tempest.log", "debug": False},
            "oslo_concurrency": {"lock_path": DATA / "lock/tempest"},
            "auth": {
                "use_dynamic_credentials": True,
                "admin_username": "admin",
                "admin_password": PASSWORD,
                "admin_project_name": "admin",
                "admin_domain_name": "Default",
            },
            "identity": {"uri_v3": KEYSTONE, "auth_version": "v3", "region": REGION},
            "service_available": {
                **dict.fromkeys(("nova", "glance", "neutron", "heat"), True),
                **dict.fromkeys(("cinder", "swift", "horizon"), False),
            },
            "compute": {
                "image_ref": image,
                "image_ref_alt": other,
                "flavor_ref": "nano",
                "flavor_ref_alt": "micro",
                "min_compute_nodes": len(hosts.ALL),
                "max_microversion": "latest",
                "build_timeout": 120,
                "build_interval": 1,
                "shelved_offload_time": 0,
                "hypervisor_type": "berth",
            },
            "compute-feature-enabled": FEATURES,
            "placement": {"max_microversion": "latest"},
            "image": {"disk_formats": "raw", "container_formats": "bare,docker", "build_timeout": 60},
            "image-feature-enabled": {"import_image": True},
            "scenario": {
                "img_file": _image_file(),
                "img_disk_format": "raw",
                "dhcp_client": "udhcpc",
            },
            "network": {
                "public_network_id": cloud.network.find_network("public").id,
                "floating_network_name": "public",
                "project_network_cidr": "10.100.0.0/16",
                "project_network_mask_bits": 28,
                "build_timeout": 60,
            },
            "network-feature-enabled": {
                "api_extensions": ",".join(extension.alias for extension in cloud.network.extensions()),
                "ipv6": True,
                "ipv6_subnet_attributes": True,
                "floating_ips": True,
                "port_security": True,
            },
            "validation": {
                "run_validation": True,
                "connect_method": "floating",
                "image_ssh_user": "root",
                "image_alt_ssh_user": "root",
                "ssh_key_type": "ecdsa",
                # BusyBox's shell has no pipefail in all its builds.
                "ssh_shell_prologue": "set -eu; PATH=$$PATH:/sbin:/usr/sbin;",
                "ping_timeout": 60,
                "ssh_timeout": 60,
            },
            "heat_plugin": _heat(),
            "heat_features_enabled": {"stack_cancel": True, "multi_cloud": True},
        },
    )


def _heat() -> config.Section:
    """Of Heat's own tests, which are the demo user's: their clean-up relies on its project."""
    return {
        "auth_url": KEYSTONE,
        "username": "demo",
        "password": PASSWORD,
        "project_name": "demo",
        "admin_username": "admin",
        "admin_password": PASSWORD,
        "admin_project_name": "admin",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region": REGION,
        # Both have cloud-init, which signals to Heat from inside.
        "image_ref": "debian",
        "instance_type": "small",
        "minimal_image_ref": "debian",
        "minimal_instance_type": "small",
        "fixed_network_name": "private",
        "fixed_subnet_name": "private-subnet",
        "network_for_ssh": "private",
        "floating_network_name": "public",
        # Heat's default.
        "hidden_stack_tag": "data-processing-cluster",
        "build_timeout": 300,
        "build_interval": 1,
    }


def _image_file() -> Path:
    return Path(run(ROOT / "scripts/image-tempest", log="images").splitlines()[-1])


def part() -> list[str]:
    """Patterns of the part that `make test-openstack` runs."""
    return lines(PART)


def execute(patterns: list[str]) -> None:
    """Runs the tests that any of the patterns finds, and prints the figures of each group."""
    if not (WORKSPACE / ".stestr.conf").exists():
        WORKSPACE.mkdir(exist_ok=True)
        run(VENV / "bin/tempest", "init", WORKSPACE, **HOME)
    configure()
    passed = _run(patterns, [*lines(EXCLUDED), re.escape(LAST)])
    if any(re.search(pattern, f"{LAST}[") for pattern in patterns):
        passed = _run([re.escape(LAST)], lines(EXCLUDED), "--combine") and passed
    sys.stdout.flush()
    counted = report()
    if counted["fail"] or not counted["success"] or not passed:
        raise Failure(f"{counted['fail']} of Tempest's tests failed: cd {WORKSPACE}; stestr last")


def _run(included: list[str], excluded: list[str], *options: str) -> bool:
    files = {"include": included, "exclude": excluded}
    command: list[str | Path] = [VENV / "bin/tempest", "run", "--config-file", CONFIGURATION, *options]
    for name, content in files.items():
        (WORKSPACE / name).write_text("".join(f"{line}\n" for line in content))
        command += [f"--{name}-list", WORKSPACE / name]
    done = subprocess.run(
        [*command, "--concurrency", "2"], cwd=WORKSPACE, env=environment(**HOME), check=False
    )
    return done.returncode == 0


def report() -> collections.Counter[str]:
    """Prints passed, failed and skipped of the last run by group; gives their sums."""
    figures: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    class Count:
        """What subunit calls for each change of a test's state."""

        def startTestRun(self) -> None: ...

        def stopTestRun(self) -> None: ...

        def status(self, test_id=None, test_status=None, **_: object) -> None:
            if test_id and test_status in ("success", "fail", "skip"):
                figures[_group(test_id)][test_status] += 1

    stream = subprocess.run(
        [VENV / "bin/stestr", "last", "--subunit"],
        cwd=WORKSPACE,
        env=environment(),
        capture_output=True,
        check=False,
    ).stdout
    ByteStreamToStreamResult(io.BytesIO(stream)).run(Count())
    kinds = ("success", "fail", "skip")
    print(f"\n   {'group':<44}{'passed':>8}{'failed':>8}{'skipped':>8}")
    for group, counted in sorted(figures.items()):
        print(f"   {group:<44}" + "".join(f"{counted[kind]:>8}" for kind in kinds))
    total = sum(figures.values(), collections.Counter())
    print(f"   {'all':<44}" + "".join(f"{total[kind]:>8}" for kind in kinds), flush=True)
    return total


def _group(test_id: str) -> str:
    """`tempest.api.compute.servers` of a test there; a class's own failure counts to its group."""
    name = test_id.removeprefix("setUpClass (").removeprefix("tearDownClass (")
    parts = name.split(".")
    return ".".join(parts[:4] if parts[1] == "api" else parts[:2])
