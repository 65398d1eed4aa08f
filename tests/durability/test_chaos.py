"""kill -9 at random moments under load, and a full disk: nothing is lost, nothing is leaked.

The service, the monitors and the runtime programs are killed at random points
while workers ask for everything at once. Afterwards every instance is as it
was last asked to be, or reported as what it is, and the host is as before.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

import hoststate
import pytest
from harness import Fault, Instance, Service, small_file_system, wait_for

pytestmark = pytest.mark.alone

WORKERS = 4
ACTIONS = [
    ("start", {}),
    ("start", {}),
    ("stop", {"timeout": 1}),
    ("reboot", {"type": "HARD"}),
    ("reboot", {"type": "SOFT", "timeout": 1}),
    ("pause", {}),
    ("unpause", {}),
    ("suspend", {}),
    ("resume", {}),
    ("rescue", {}),
    ("unrescue", {}),
]
BIGGER = {"vcpus": 1, "memory_mb": 80, "root_gb": 2}
RESIZES = [
    ("resize", {"flavor": BIGGER, "keep": True, "timeout": 1}),
    ("resize", {"flavor": BIGGER, "keep": True, "timeout": 0}),
    ("resize/confirm", {}),
    ("resize/revert", {}),
]


class Worker(threading.Thread):
    """Gives a few instances random lives; whatever is refused or broken off is fine."""

    def __init__(self, service: Service, image: str, seed: int):
        super().__init__(daemon=True)
        self.service, self.image = service, image
        self.random = random.Random(seed)
        self.ended = threading.Event()
        self.known: dict[str, dict] = {}
        self.calls = self.answered = 0
        # One for its instances: whichever has it.
        self.volume = service.base / f"volume-{seed}"
        self.volume.write_bytes(bytes(1 << 20))
        self.volume_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        self.unexpected: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            self.calls += 1
            try:
                self.step()
                self.answered += 1
            except Fault as fault:
                # 5xx is truthful while a monitor or a runtime is being killed under it.
                if fault.code in ("", "invalid-input"):
                    self.unexpected.append(str(fault))
            except (OSError, ValueError):
                time.sleep(0.05)  # the service is away
            except Exception as error:  # http.client: the answer broke off
                if type(error).__module__ != "http.client":
                    self.unexpected.append(repr(error))

    def step(self) -> None:
        if len(self.known) < 2:
            identity = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
            self.known[identity] = self.define(identity)
        identity = self.random.choice(sorted(self.known))
        instance = Instance(self.service, identity)
        chance = self.random.random()
        if chance < 0.15:
            instance.discard()
            del self.known[identity]
        elif chance < 0.3:
            self.service.client.put(instance.path, self.known[identity], timeout=60)
        elif chance < 0.35:
            vif = self.known[identity]["vifs"][1]
            self.service.client.put(f"{instance.path}/interfaces/{vif['id']}", vif, timeout=60)
        elif chance < 0.4:
            source = {"file": {"path": str(self.volume)}}
            self.service.client.put(
                f"{instance.path}/volumes/{self.volume_id}", {"source": source}, timeout=60
            )
        elif chance < 0.45:
            force = "?force=true" if self.random.random() < 0.3 else ""
            self.service.client.delete(f"{instance.path}/volumes/{self.volume_id}{force}", timeout=60)
        else:
            name, body = self.random.choice(ACTIONS if chance < 0.8 else RESIZES)
            if name == "rescue":
                body = {"image_id": self.image}
            self.service.client.post(f"{instance.path}/{name}", body, timeout=60)

    def define(self, identity: str) -> dict:
        return {
            "name": f"chaos-{identity[:8]}",
            "image_id": self.image,
            "flavor": {"vcpus": 1, "memory_mb": 64, "root_gb": 1},
            "vifs": [self.service.vif(), self.service.vif()],
        }


def kill_one(service: Service, dice: random.Random, spared: int) -> str:
    """Kills the service, a monitor but the spared one, or a runtime program; says which, if any."""
    kind = dice.choices(["service", "monitor", "runtime"], [4, 3, 3])[0]
    if kind == "service":
        time.sleep(dice.random() * 0.3)
        service.kill()
        service.start()
        return kind
    find = monitors if kind == "monitor" else runtime_calls
    for _ in range(100):  # runtime programs live for milliseconds
        victims = [p for p in find(service) if p != spared]
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(victims), signal.SIGKILL)
                return kind
    return ""


def monitors(service: Service) -> list[int]:
    return processes_with(f"{service.run_dir}/i/", "monitor.json")


def runtime_calls(service: Service) -> list[int]:
    """Runtime programs; of the native runtime what a monitor has made of itself for an instance."""
    root = f"{service.run_dir}/runtime\0"
    programs = processes_with(f"--root\0{root}") + processes_with(f"berth-monitor\0exec\0{root}")
    recorded = set()
    for file in (service.run_dir / "i").glob("*/monitor.pid"):
        with contextlib.suppress(OSError, ValueError):
            recorded.add(json.loads(file.read_text())["pid"])
    return programs + [pid for pid in monitors(service) if pid not in recorded]


def processes_with(*texts: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{entry}/cmdline").read_text(errors="replace")
                if all(text in line for text in texts):
                    found.append(int(entry))
    return found


def truthful(instance: Instance) -> str:
    """Empty if what is reported is what is; else what is wrong."""
    shown, pids = instance.get(), instance.pids()
    running = shown["power_state"] in ("RUNNING", "PAUSED", "SUSPENDED")
    if running and shown["pid"] not in pids:
        return f"{shown['power_state']} with pid {shown['pid']}, but its cgroup holds {pids}"
    if not running and (shown["pid"] or pids):
        return f"{shown['power_state']} with pid {shown['pid']} and processes {pids}"
    kept = (instance.service.state_dir / "instances" / instance.id / "root.kept").exists()
    if kept != bool(shown["unconfirmed_resize"]):
        return f"unconfirmed resize: {shown['unconfirmed_resize']}, a kept disk: {kept}"
    # What is being detached may still have its device, or no longer.
    volumes = [v for v in shown["volumes"] if v["status"] == "attached"]
    for volume in volumes:
        loops = loops_of(Path(volume["source"]["file"]["path"]))
        if len(loops) != (1 if running else 0):
            return f"{shown['power_state']} with volume {volume['id']} as {loops}"
    return ""


def loops_of(path: Path) -> list[str]:
    said = subprocess.run(["losetup", "-j", path], capture_output=True, text=True, check=True).stdout
    return [line.split(":")[0] for line in said.splitlines()]


def settled(service: Service) -> str:
    wrong = [truthful(Instance(service, i["id"])) for i in service.instances()]
    busy = [i["id"] for i in service.instances() if i["task_state"]]
    return "; ".join(filter(None, wrong)) + (f" busy: {busy}" if busy else "")


def wait_settled(service: Service) -> None:
    last = [""]

    def probe() -> bool:
        last[0] = settled(service)
        return not last[0]

    try:
        wait_for("truthful reports", probe, 90)
    except AssertionError:
        raise AssertionError(last[0]) from None


@pytest.mark.each_runtime
def test_random_kills_under_load(service, busybox, request, capsys):
    kills = request.config.getoption("--kills")
    seed = int.from_bytes(os.urandom(4), "big")
    with capsys.disabled():
        print(f"\n    seed {seed}, {kills} kills", flush=True)
    dice = random.Random(seed)
    bystander = service.spawn(busybox, vifs=[service.vif()])
    steady = bystander.get()
    bystander_monitor = bystander.monitor_pid()
    workers = [Worker(service, busybox, seed + n) for n in range(WORKERS)]
    for worker in workers:
        worker.start()
    done: dict[str, int] = {}
    started = time.monotonic()
    try:
        while sum(done.values()) < kills or len(done) < 3:
            time.sleep(dice.random() * 0.4)
            kind = kill_one(service, dice, bystander_monitor)
            if kind:
                done[kind] = done.get(kind, 0) + 1
            if kind and sum(done.values()) % 20 == 0:
                with capsys.disabled():
                    took = time.monotonic() - started
                    print(f"    … {took:.0f} s: {done}", flush=True)
    finally:
        for worker in workers:
            worker.ended.set()
        for worker in workers:
            worker.join(120)
    assert sum(w.answered for w in workers) > kills, "the workers hardly worked"
    assert [u for w in workers for u in w.unexpected] == []
    assert "panicked" not in service.log.read_text(errors="replace")
    wait_settled(service)

    now = bystander.get()
    assert (now["power_state"], now["pid"]) == ("RUNNING", steady["pid"])
    assert bystander.sh("echo undisturbed") == "undisturbed"

    known = {identity for w in workers for identity in w.known}
    shown = {i["id"] for i in service.instances()} - {bystander.id}
    assert shown <= known, "an instance came back that was deleted"
    for identity in sorted(shown):
        instance = Instance(service, identity)
        instance.action("reboot", type="HARD")
        assert instance.state == "RUNNING"
        assert instance.sh("echo alive") == "alive"
        for volume in instance.get()["volumes"]:
            if volume["status"] == "attached":
                assert instance.sh(f"head -c 512 {volume['device']} | wc -c") == "512"

    service.delete_everything()
    assert {w.volume: loops_of(w.volume) for w in workers if loops_of(w.volume)} == {}
    assert service.leftovers() == []
    service.kill()
    service.start()
    assert service.instances() == []
    assert service.leftovers() == []


@pytest.fixture
def small_disk(tmp_path):
    """Four disks of 1 GiB, and a little."""
    with small_file_system(tmp_path / "disk", 4600) as base:
        yield base


def test_a_full_disk(runtime, lxcfs, busybox_file, small_disk):
    """Somebody else fills it: whoever has all its space goes on writing."""
    storage = {"disk_allocation_ratio": 1.0, "preallocate": True}
    service = Service(runtime, lxcfs.mount_point, base=small_disk / "b", settings={"storage": storage})
    service.run_dir.mkdir()
    # As /run is: not on the disk that is full.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", service.run_dir], check=True)
    filler = small_disk / "filler"
    try:
        service.start()
        image = service.import_image(busybox_file)
        runs, stands = service.spawn(image), service.define(image)
        before = hoststate.snapshot(service.scope())
        doomed, ends = service.spawn(image), service.spawn(image)
        fill(filler)
        write(runs)
        for attempt in (
            lambda: service.spawn(image, flavor={"ephemeral_gb": 1}),
            lambda: service.import_image(busybox_file),
        ):
            with pytest.raises(Fault) as fault:
                attempt()
            assert (fault.value.status, fault.value.code) == (507, "resources-exhausted")
        assert runs.state == "RUNNING"
        write(runs)
        assert {i["id"] for i in service.instances()} == {i.id for i in (runs, stands, doomed, ends)}
        doomed.delete()
        ends.action("stop", timeout=0)
        fill(filler)
        service.kill()
        service.start()
        assert runs.state == "RUNNING"
        write(runs)
        assert {i["id"] for i in service.instances()} == {runs.id, stands.id, ends.id}
        assert ends.state == "SHUTDOWN"
        ends.delete()
        filler.unlink()
        service.kill()
        service.start()
        changed = hoststate.difference(before, hoststate.snapshot(service.scope()))
        # What does not run is mounted again when it starts.
        assert [c for c in changed if "left behind" in c or stands.id not in c] == []
        stands.action("start")
        assert stands.sh("echo fine") == "fine"
        service.spawn(image, flavor={"ephemeral_gb": 1})
    finally:
        filler.unlink(missing_ok=True)
        left = service.close()
    assert not left, "\n".join(left)


def write(instance: Instance) -> None:
    """Writes a file anew to the disk, and reads it from there."""
    instance.sh(
        "rm -f /old; [ ! -e /new ] || mv /new /old;"
        "dd if=/dev/urandom of=/new bs=1M count=200 conv=fsync 2>/dev/null && sum=$(md5sum < /new) &&"
        'sync && dd if=/new iflag=direct bs=1M 2>/dev/null | md5sum | grep -qF "$sum"',
        timeout=300,
    )


def fill(path: Path) -> None:
    """Takes all that is left, to the last block."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\xaa" * size)
            except OSError:
                continue
    os.sync()
