"""A throw-away service: its own directories, ids, cgroup, bridge and device names."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hoststate

from .client import Client, Fault
from .hosts import cgroup_dir, unmount

ROOT = Path(__file__).resolve().parent.parent.parent
BERTH = Path(os.environ.get("BERTH_BIN", ROOT / "target/release/berth"))
ID_BLOCK = 65_536
# Tests of other workers run on the same host.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
T = TypeVar("T")

FLAVOR = {"name": "small", "vcpus": 1, "memory_mb": 64, "root_gb": 1}


def wait_for(what: str, probe: Callable[[], T], timeout: float = 30) -> T:
    """Asks `probe` until it answers something true, and gives that back."""
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for {what}; last answer: {answer!r}")
        time.sleep(0.05)


def _toml(config: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, keys in config.items():
        lines.append(f"[{section}]")
        # JSON's strings, numbers, booleans and lists are TOML's.
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


class Service:
    """`berth serve` in a directory of its own."""

    def __init__(
        self,
        runtime: str = "auto",
        lxcfs: Path | None = None,
        base: Path | None = None,
        settings: dict[str, dict[str, Any]] | None = None,
    ):
        token = secrets.randbelow(0xFFFF // WORKERS) * WORKERS + WORKER
        self.token = f"b{token:04x}"
        #: Another version's, where a test says so.
        self.program = BERTH
        self.base = base or Path(tempfile.mkdtemp(prefix=f"{self.token}-", dir="/var/tmp"))
        self.base.mkdir(exist_ok=True)
        self.base.chmod(0o755)
        self.socket = self.base / "sock"
        self.state_dir, self.run_dir = self.base / "state", self.base / "run"
        self.cgroup = f"berth-{self.token}"
        self.subnet = f"10.{100 + token % 100}.{token // 256}"
        self.bridge = f"{self.token}br"
        self.config = self.base / "berth.toml"
        self.log = self.base / "service.log"
        self.client = Client(self.socket)
        self.process: subprocess.Popen[bytes] | None = None
        self._ports = 0
        self.id_map_first = 1_879_048_192 + token % 64 * 512 * ID_BLOCK
        self.settings: dict[str, dict[str, Any]] = {
            "service": {
                "socket": str(self.socket),
                "state_dir": str(self.state_dir),
                "run_dir": str(self.run_dir),
                "log_level": "info",
            },
            "host": {},
            "runtime": {"program": runtime},
            "instances": {
                "id_map_first": self.id_map_first,
                "id_map_blocks": 512,
                "lxcfs": str(lxcfs) if lxcfs else "",
                "cgroup": self.cgroup,
            },
            # A test's host has a small disk. Tests of the admission have it promised once.
            "storage": {"reserved_host_disk_mb": 16, "disk_allocation_ratio": 16.0},
            "images": {},
            "bridge": {
                "enabled": True,
                "name": self.bridge,
                "address": f"{self.subnet}.1/24",
                "nat": True,
            },
        }
        for section, keys in (settings or {}).items():
            self.settings.setdefault(section, {}).update(keys)
        self.before = hoststate.snapshot(self.scope())

    def scope(self) -> hoststate.Scope:
        """What on the host is this service's."""
        pids = {self.process.pid} if self.process else set()
        return hoststate.Scope(
            # The directory's own path is in the service's command line: look below it.
            paths=(self.state_dir, self.run_dir),
            links=(self.token,),
            cgroups=(self.cgroup,),
            ignored_files=(r"^templates", r"^lock$", r"^images(/|$)", r"^(instances|moves|i)$", r"^runtime$"),
            ignored_pids=frozenset(pids),
        )

    # -- the process ---------------------------------------------------------

    def start(self, timeout: float = 60) -> None:
        """Starts it and waits until it answers."""
        self.config.write_text(_toml(self.settings))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "serve", "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"RUST_BACKTRACE": "1"},
            )
        wait_for("the service to answer", self._answers, timeout)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"berth serve ended at once:\n{self.log_tail()}")
        try:
            self.client.get("/v1/host", timeout=5)
            return True
        except (OSError, Fault):
            return False

    def stop(self) -> None:
        """Ends it as systemd would; instances go on."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("the service did not end within 60 s of SIGTERM") from None

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines: int = 60) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # -- use -----------------------------------------------------------------

    def berth(self, verb: str, *arguments: str, check: bool = True, **options: Any) -> str:
        """Runs the command line against this service and gives its standard output."""
        result = self.run_berth(verb, *arguments, **options)
        if check and result.returncode:
            raise AssertionError(
                f"berth {verb} {' '.join(arguments)}: {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result.stdout

    def run_berth(self, verb: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
        """The same, with everything."""
        options = {"stdin": subprocess.DEVNULL, "timeout": 120, "text": True} | options
        if "input" in options:
            del options["stdin"]
        command = [BERTH, *verb.split(), "--socket", self.socket, *arguments]
        return subprocess.run(command, capture_output=True, check=False, **options)

    def import_image(self, path: Path, image: str | None = None, **fields: Any) -> str:
        """Imports a file; gives the image's id."""
        image = image or str(uuid.uuid4())
        source = {"type": "file", "path": str(path)}
        self.client.put(f"/v1/images/{image}", {"name": path.name, "source": source} | fields)
        return image

    def vif(self, **fields: Any) -> dict[str, Any]:
        """A new interface on the bridge, with the next address."""
        self._ports += 1
        number = self._ports
        return {
            "id": str(uuid.uuid4()),
            "devname": f"{self.token}{number:x}",
            "address": f"fa:16:3e:{int(self.token[1:], 16) >> 8:02x}:{number >> 8:02x}:{number & 255:02x}",
            "addresses": [f"{self.subnet}.{10 + number % 240}/24"],
            "routes": [{"destination": "0.0.0.0/0", "gateway": f"{self.subnet}.1"}],
            "bridge": True,
        } | fields

    def define(self, image: str, **fields: Any) -> Instance:
        """Makes an instance that does not run yet."""
        instance = Instance(self, str(uuid.uuid4()))
        flavor = FLAVOR | fields.pop("flavor", {})
        body = {"name": f"i-{instance.id[:8]}", "image_id": image, "flavor": flavor} | fields
        instance.definition = body
        self.client.put(instance.path, body)
        return instance

    def spawn(self, image: str, **fields: Any) -> Instance:
        """Makes and starts an instance."""
        instance = self.define(image, **fields)
        instance.action("start")
        return instance

    def instances(self) -> list[dict[str, Any]]:
        """All instances."""
        return self.client.get("/v1/instances")["instances"]

    # -- the end -------------------------------------------------------------

    def delete_everything(self) -> None:
        """All instances, through the API."""
        for instance in self.instances():
            Instance(self, instance["id"]).discard()

    def leftovers(self) -> list[str]:
        """What is on the host that was not there before, a running service's own left out."""
        deadline = time.monotonic() + 10
        while True:
            lines = hoststate.difference(self.before, hoststate.snapshot(self.scope()))
            # A mount namespace that another worker's test just makes copies all mounts, and holds them
            # a moment.
            held = any(line.startswith("loop devices:") and "(deleted)" in line for line in lines)
            if WORKERS == 1 or not held or time.monotonic() > deadline:
                return [line for line in lines if not self._is_own(line)]
            time.sleep(0.2)

    def _is_own(self, line: str) -> bool:
        """Its bridge, and the mount point that keeps the instances' mounts to themselves."""
        if line.startswith("links:"):
            return self.bridge in line
        if line.startswith("nftables:"):
            return line.endswith(hoststate.table_part(self.bridge))
        return line.startswith(f"mounts: left behind: {self.run_dir / 'i'} (")

    def close(self) -> list[str]:
        """Deletes all, ends the service, gives what it left behind and then sweeps by force."""
        left = []
        try:
            if self.process and self.process.poll() is None:
                self.delete_everything()
                left = self.leftovers()
                self.stop()
        except (OSError, Fault, AssertionError) as error:
            left.append(f"closing: {error}\n{self.log_tail(30)}")
        finally:
            self.sweep()
        return left

    def sweep(self) -> None:
        """Takes everything of this service off the host, whatever state it is in."""
        self.sweep_all_but_files()
        subprocess.run(["rm", "-rf", "--one-file-system", self.base], check=False)

    def sweep_all_but_files(self) -> None:
        """The same, its directories left: what a loss of power does."""
        if self.process and self.process.poll() is None:
            self.kill()
        self._sweep_processes()
        below = [p for p, _, _ in hoststate.mount_points() if p.is_relative_to(self.run_dir)]
        for point in sorted(below, reverse=True):
            unmount(point)
        if any(p.is_relative_to(self.run_dir) for p, _, _ in hoststate.mount_points()):
            raise RuntimeError(f"mounts below {self.run_dir} cannot be unmounted")
        self._sweep_network()
        self._sweep_cgroups()
        self._sweep_loops()

    def _sweep_processes(self) -> None:
        for _ in range(100):
            pids = hoststate.processes_of(self.scope())
            for pid in pids:
                _thaw(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.05)

    def _sweep_network(self) -> None:
        for link in Path("/sys/class/net").iterdir():
            if link.name.startswith(self.token):
                subprocess.run(["ip", "link", "del", link.name], capture_output=True, check=False)
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
        for line in tables.splitlines():
            if hoststate.table_part(self.token) in line:
                subprocess.run(["nft", "delete", *line.split()], capture_output=True, check=False)

    def _sweep_cgroups(self) -> None:
        for hierarchy in hoststate.cgroup_hierarchies():
            for directory, _, _ in os.walk(hierarchy / self.cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)

    def _sweep_loops(self) -> None:
        for line in hoststate.snapshot(self.scope())["loop devices"]:
            subprocess.run(["losetup", "-d", line.split()[0]], capture_output=True, check=False)


def _thaw(pid: int) -> None:
    """Thaws a v1-frozen process, which SIGKILL alone does not end."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer" and "/berth-" in path:
            with contextlib.suppress(OSError):
                (cgroup_dir("freezer") / path.strip("/") / "freezer.state").write_text("THAWED")


class Instance:
    """One instance of a service."""

    def __init__(self, service: Service, identity: str):
        self.service, self.id = service, identity
        self.path = f"/v1/instances/{identity}"
        self.definition: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        """As the API shows it."""
        return self.service.client.get(self.path)

    @property
    def state(self) -> str:
        """Its power state."""
        return self.get()["power_state"]

    def action(self, name: str, **body: Any) -> None:
        """An action; returns when it is done."""
        self.service.client.post(f"{self.path}/{name}", body)

    def delete(self) -> None:
        """Destroys it."""
        self.service.client.delete(self.path)

    def discard(self) -> None:
        """Destroys it if it is still there."""
        try:
            self.delete()
        except Fault as fault:
            if fault.code != "instance-not-found":
                raise

    def wait_state(self, state: str, timeout: float = 30) -> None:
        """Waits for a power state."""
        wait_for(f"{self.id} to be {state}", lambda: self.state == state, timeout)

    def console(self, length: int | None = None) -> str:
        """Its console's output."""
        query = "" if length is None else f"?length={length}"
        answer = self.service.client.request("GET", f"{self.path}/console/output{query}")
        return answer.body.decode(errors="replace")

    def wait_console(self, text: str, timeout: float = 60) -> str:
        """Waits until the console has shown `text`."""
        wait_for(f"{text!r} on the console", lambda: text in self.console(), timeout)
        return self.console()

    def stats(self) -> dict[str, Any]:
        """Its statistics."""
        return self.service.client.get(f"{self.path}/stats")

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess:
        """Runs a command inside, through `berth exec`."""
        return self.service.run_berth("exec", self.id, "--", *command, **options)

    def sh(self, script: str, **options: Any) -> str:
        """Runs a shell script inside, expecting success; gives its output, trimmed."""
        result = self.run("/bin/sh", "-c", script, **options)
        if result.returncode:
            raise AssertionError(f"inside: {script}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout.strip()

    def go_down(self, command: str) -> None:
        """Asks its init to go down. That may end our session inside before the command has answered."""
        result = self.run(command)
        if result.returncode not in (0, 128 + signal.SIGTERM, 128 + signal.SIGKILL):
            raise AssertionError(f"inside: {command}: {result.returncode}\n{result.stdout}{result.stderr}")

    def cgroup(self, controller: str) -> Path:
        """Its cgroup in the controller's hierarchy."""
        return cgroup_dir(controller) / self.service.cgroup / self.id

    def pids(self) -> list[int]:
        """Host process ids of all its processes."""
        found = []
        for directory, _, _ in os.walk(self.cgroup("memory")):
            with contextlib.suppress(OSError):
                found += [int(p) for p in Path(directory, "cgroup.procs").read_text().split()]
        return found

    def monitor_pid(self) -> int:
        """Process id of its monitor, as the monitor wrote it."""
        text = (self.service.run_dir / "i" / self.id / "monitor.pid").read_text()
        try:
            return int(json.loads(text)["pid"])
        except (ValueError, TypeError, KeyError):
            return int(text.split()[0])
