"""The hypervisor: lxcfs, `berth serve`, and nova-compute with berth's driver."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from . import commands
from .place import BERTH, BERTH_SOCKET, DEBUG, ETC, HUGETLB, LXCFS, ROOT, RUN, STATE, VENV
from .processes import Failure, Program, run, step, wait_until

sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
from harness.hosts import return_hugetlb, unified_dir, unmount  # noqa: E402
from hoststate import cgroup_hierarchies, mount_points  # noqa: E402

CGROUP = "berth-openstack"
SERVICE, NOVA_COMPUTE, LXCFS_PROGRAM = (Program(name) for name in ("berth", "nova-compute", "lxcfs"))
SETTINGS = {
    "service": {
        "socket": str(BERTH_SOCKET),
        "state_dir": str(STATE / "berth"),
        "run_dir": str(RUN / "i"),
        "log_level": "trace" if DEBUG else "info",
    },
    # Apart from the default's, which an installed berth has.
    "instances": {"id_map_first": 0x3000_0000, "lxcfs": str(LXCFS), "cgroup": CGROUP},
}


def start() -> None:
    """Starts the service and nova-compute, and maps the host into Nova's cell."""
    _start_lxcfs()
    _mount_hugetlb()
    start_service()
    start_nova_compute()


def _start_lxcfs() -> None:
    LXCFS.mkdir(exist_ok=True)
    if not LXCFS_PROGRAM.pid:
        unmount(LXCFS)
    LXCFS_PROGRAM.start("lxcfs", "-f", "-l", "--enable-cfs", "-p", STATE / "lxcfs.pid", LXCFS)
    wait_until("lxcfs", (LXCFS / "proc/meminfo").exists, 10, LXCFS_PROGRAM)


def _mount_hugetlb() -> None:
    """crun refuses a hybrid host on which any controller is left on the unified hierarchy."""
    if unified_dir() == Path("/sys/fs/cgroup") or HUGETLB.is_mount():
        return
    HUGETLB.mkdir(exist_ok=True)
    command = ["mount", "-t", "cgroup", "-o", "hugetlb", "hugetlb", str(HUGETLB)]
    with contextlib.suppress(Failure):  # runc does without
        # Groups that were just removed hold the controller for a moment.
        wait_until("hugetlb", lambda: subprocess.run(command, capture_output=True).returncode == 0, 10)


def start_service() -> None:
    """Starts `berth serve`, which takes over the instances that run."""
    file = ETC / "berth.toml"
    # JSON's strings and numbers are TOML's.
    file.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for section, keys in SETTINGS.items()
        )
    )
    SERVICE.start(BERTH, "serve", "--config", file)
    wait_until("berth", _service_answers, 60, SERVICE)


def berth(*words: str) -> str:
    """What berth's command line answers."""
    return run(BERTH, "--socket", BERTH_SOCKET, *words)


def _service_answers() -> bool:
    try:
        berth("--json", "host")
        return True
    except Failure:
        return False


def start_nova_compute() -> None:
    """Starts it and waits until its resource tracker has told Placement what there is."""
    if NOVA_COMPUTE.pid:
        return
    before = NOVA_COMPUTE.log.stat().st_size if NOVA_COMPUTE.log.exists() else 0
    NOVA_COMPUTE.start(VENV / "bin/nova-compute", f"--config-file={ETC}/nova/nova-compute.conf")

    def is_ready() -> bool:
        text = NOVA_COMPUTE.log.read_bytes()[before:]
        return b"Compute node record created" in text or b"update_resources is initialized" in text

    wait_until("nova-compute", is_ready, 120, NOVA_COMPUTE)
    run(commands.PLACE / "nova-manage", "cell_v2", "discover_hosts")


def stop() -> None:
    """Ends nova-compute, deletes every instance, ends the service; nothing of it is left."""
    NOVA_COMPUTE.stop(4)
    if (STATE / "berth").exists():
        _delete_instances()
    SERVICE.stop(20)
    LXCFS_PROGRAM.stop(5)
    _remove_cgroups()
    # lxcfs, and the place that the service keeps for mounts.
    for point, _, _ in reversed(list(mount_points())):
        if point != HUGETLB and (point.is_relative_to(STATE) or point.is_relative_to(RUN)):
            unmount(point)


def unmount_hugetlb() -> None:
    """Last: Neutron's proxies have it in mount namespaces of their own."""
    if HUGETLB.is_mount():
        return_hugetlb(HUGETLB)


def _remove_cgroups() -> None:
    """The groups that instances lived in, in every hierarchy."""
    for hierarchy in cgroup_hierarchies():
        for path, _, _ in os.walk(hierarchy / CGROUP, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def _delete_instances() -> None:
    start_service()
    listed = json.loads(berth("--json", "list"))
    names = [instance["id"] for instance in listed["instances"]]
    if names:
        with step(f"delete {len(names)} instances"):
            berth("delete", *names)
