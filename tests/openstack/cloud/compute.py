"""The hypervisors: lxcfs, `berth serve`, and nova-compute with berth's driver."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import commands, control, hosts, network
from .hosts import Host
from .place import BERTH, DEBUG, ETC, HUGETLB, LXCFS, ROOT, RUN, STATE, VENV
from .processes import Failure, Program, run, step, together, wait_until

sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
from harness.certificates import Authority  # noqa: E402
from harness.hosts import return_hugetlb, unified_dir, unmount  # noqa: E402
from hoststate import cgroup_hierarchies, mount_points  # noqa: E402

CGROUP = "berth-openstack"
LXCFS_PROGRAM = Program("lxcfs")
SERVICE, NOVA_COMPUTE = "berth", "nova-compute"
# Apart from the default's, which an installed berth has; each host's apart from another's.
ID_MAP_FIRST, ID_MAPS = 0x3000_0000, 0x800_0000
# Where the services listen for each other: the driver's default.
MIGRATION_PORT = 8788
AUTHORITY = ETC / "tls"


@dataclass(frozen=True)
class Compute:
    """`berth serve` and nova-compute on a host."""

    host: Host

    @property
    def service(self) -> Program:
        """`berth serve`."""
        return self.host.program(SERVICE)

    @property
    def nova_compute(self) -> Program:
        """nova-compute."""
        return self.host.program(NOVA_COMPUTE)

    @property
    def state(self) -> Path:
        """What the service keeps."""
        return self.host.state / "berth"

    @property
    def socket(self) -> Path:
        """The service's."""
        return self.host.run_dir / "berth.sock"

    @property
    def _cgroup(self) -> str:
        return f"{CGROUP}{self.host.suffix}"

    def start_service(self) -> None:
        """Starts `berth serve`, which takes over the instances that run."""
        settings = {
            "service": {
                "socket": str(self.socket),
                "state_dir": str(self.state),
                "run_dir": str(self.host.run_dir / "i"),
                "log_level": "trace" if DEBUG else "info",
            },
            **self._moves(),
            "instances": {
                "id_map_first": ID_MAP_FIRST + (self.host.number - 1) * ID_MAPS,
                "lxcfs": str(LXCFS),
                "cgroup": self._cgroup,
            },
        }
        file = ETC / f"berth{self.host.suffix}.toml"
        # JSON's strings and numbers are TOML's.
        file.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
                for section, keys in settings.items()
            )
        )
        self.service.start(BERTH, "serve", "--config", file)
        wait_until(self.service.name, self._service_answers, 60, self.service)

    def _moves(self) -> dict[str, dict[str, object]]:
        """Between hosts, each of which has a certificate of its name."""
        others = [host.name for host in hosts.ALL if host != self.host]
        if not others:
            return {}
        tls = {
            "listen": f"{self.host.address}:{MIGRATION_PORT}",
            "client_ca": str(AUTHORITY / "ca.pem"),
            "certificate": str(AUTHORITY / f"{self.host.name}.pem"),
            "private_key": str(AUTHORITY / f"{self.host.name}.key"),
        }
        return {"service.tls": tls, "migration": {"peers": others}}

    def berth(self, *words: str) -> str:
        """What berth's command line answers."""
        return run(BERTH, "--socket", self.socket, *words)

    def _service_answers(self) -> bool:
        try:
            self.berth("--json", "host")
            return True
        except Failure:
            return False

    def start_nova_compute(self) -> None:
        """Starts it and waits until its resource tracker has told Placement what there is."""
        program = self.nova_compute
        if program.pid:
            return
        before = program.log.stat().st_size if program.log.exists() else 0
        file = f"{ETC}/nova/nova-compute{self.host.suffix}.conf"
        program.start(VENV / "bin/nova-compute", f"--config-file={file}")

        def is_ready() -> bool:
            text = program.log.read_bytes()[before:]
            return b"Compute node record created" in text or b"update_resources is initialized" in text

        wait_until(program.name, is_ready, 120, program)

    def start(self) -> None:
        """Both."""
        self.start_service()
        self.start_nova_compute()

    def lose_power(self) -> None:
        """Ends all that runs on it, at once and without a word; `run up` switches it on again."""
        for name in (NOVA_COMPUTE, SERVICE, control.METADATA_AGENT, *network.EACH):
            self.host.program(name).signal(signal.SIGKILL, group=True)
        control.end_metadata_proxies(self.host)
        for hierarchy in cgroup_hierarchies():
            for path, _, _ in os.walk(hierarchy / self._cgroup):
                for pid in Path(path, "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        network.unplug(self.host)
        self.host.stop()

    def stop(self) -> None:
        """Ends nova-compute, deletes every instance, ends the service; nothing of it is left."""
        self.nova_compute.stop(4)
        if self.state.exists():
            self._delete_instances()
        self.service.stop(20)
        # The groups that instances lived in, in every hierarchy.
        for hierarchy in cgroup_hierarchies():
            for path, _, _ in os.walk(hierarchy / self._cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()

    def _delete_instances(self) -> None:
        self.host.start()  # its power may be off
        self.start_service()
        listed = json.loads(self.berth("--json", "list"))
        names = [instance["id"] for instance in listed["instances"]]
        if names:
            with step(f"delete {len(names)} instances"):
                self.berth("delete", *names)


def make_certificates() -> None:
    """Of the hosts, for what their services say to each other."""
    if len(ALL) == 1 or (AUTHORITY / "ca.pem").exists():
        return
    authority = Authority(AUTHORITY)
    for host in hosts.ALL:
        authority.sign(host.name, host.address)


ALL = [Compute(host) for host in hosts.ALL]
FIRST = ALL[0]


def start() -> None:
    """Starts the services and nova-computes, and maps the hosts into Nova's cell."""
    make_certificates()
    together([compute.start for compute in ALL])
    run(commands.PLACE / "nova-manage", "cell_v2", "discover_hosts")


def start_lxcfs() -> None:
    """Starts lxcfs, of which all hosts have the mount; so it comes before them."""
    LXCFS.mkdir(exist_ok=True)
    if not LXCFS_PROGRAM.pid:
        unmount(LXCFS)
    LXCFS_PROGRAM.start("lxcfs", "-f", "-l", "--enable-cfs", "-p", STATE / "lxcfs.pid", LXCFS)
    wait_until("lxcfs", (LXCFS / "proc/meminfo").exists, 10, LXCFS_PROGRAM)


def mount_hugetlb() -> None:
    """crun refuses a hybrid host on which any controller is left on the unified hierarchy."""
    if unified_dir() == Path("/sys/fs/cgroup") or HUGETLB.is_mount():
        return
    HUGETLB.mkdir(exist_ok=True)
    command = ["mount", "-t", "cgroup", "-o", "hugetlb", "hugetlb", str(HUGETLB)]
    with contextlib.suppress(Failure):  # runc does without
        # Groups that were just removed hold the controller for a moment.
        wait_until("hugetlb", lambda: subprocess.run(command, capture_output=True).returncode == 0, 10)


def stop() -> None:
    """Ends all of it."""
    for compute in ALL:
        compute.stop()
    LXCFS_PROGRAM.stop(5)
    # lxcfs, and the places that the services keep for mounts.
    for point, _, _ in reversed(list(mount_points())):
        if point != HUGETLB and (point.is_relative_to(STATE) or point.is_relative_to(RUN)):
            unmount(point)


def unmount_hugetlb() -> None:
    """Last: Neutron's proxies have it in mount namespaces of their own."""
    if HUGETLB.is_mount():
        return_hugetlb(HUGETLB)
