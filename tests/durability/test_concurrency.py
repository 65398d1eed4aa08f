"""Many at once, and one thing in the middle of another."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Fault, Instance, Service, wait_for

SMALL = {"vcpus": 1, "memory_mb": 64, "root_gb": 1}


@pytest.fixture
def many(service: Service):
    """A pool of clients; what they made is deleted afterwards."""
    with ThreadPoolExecutor(50) as pool:
        yield pool
        list(pool.map(lambda i: Instance(service, i["id"]).discard(), service.instances()))
    assert service.leftovers() == []


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.alone
def test_a_hundred_creates_at_once_share_nothing(service, busybox, many):
    instances = list(many.map(lambda n: service.define(busybox, vifs=[bridged(service, n)]), range(100)))
    shown = [i.get() for i in instances]
    assert len({s["id_map_first"] for s in shown}) == 100
    addresses = [s["vifs"][0]["addresses"][0] for s in shown]
    assert len(set(addresses)) == 100, "an address was given twice"
    # A repetition is the same instance, another body a conflict.
    instances[0].service.client.put(instances[0].path, instances[0].definition)
    with pytest.raises(Fault) as fault:
        service.client.put(instances[0].path, instances[0].definition | {"name": "other"})
    assert fault.value.code == "instance-exists"


def bridged(service: Service, number: int) -> dict:
    """An interface whose address the service chooses."""
    return {
        "id": str(uuid.uuid4()),
        "devname": f"{service.token}x{number:x}",
        "address": f"fa:16:3f:00:00:{number:02x}",
        "bridge": True,
    }


def test_the_same_create_many_times_at_once_is_one_instance(service, busybox, many):
    path, body = f"/v1/instances/{uuid.uuid4()}", {"name": "one", "image_id": busybox, "flavor": SMALL}
    list(many.map(lambda _: service.client.put(path, body), range(50)))
    assert len(service.instances()) == 1


@pytest.mark.alone
def test_two_hundred_spawns_at_once(service, busybox, many):
    instances = list(many.map(lambda _: service.spawn(busybox, flavor=SMALL), range(200)))
    shown = {i["id"]: i for i in service.instances()}
    assert [shown[i.id]["power_state"] for i in instances] == ["RUNNING"] * 200
    assert len({i["id_map_first"] for i in shown.values()}) == 200
    assert all(Path(f"/proc/{i['pid']}").exists() for i in shown.values())


def test_attaches_at_once_take_different_addresses(service, busybox, many):
    instances = list(many.map(lambda _: service.define(busybox), range(20)))

    def attach(number: int) -> str:
        vif = bridged(service, 0x80 + number)
        path = f"{instances[number].path}/interfaces/{vif['id']}"
        service.client.put(path, vif)
        service.client.put(path, vif)  # a repetition leaves it undisturbed
        return instances[number].get()["vifs"][0]["addresses"][0]

    addresses = list(many.map(attach, range(20)))
    assert len(set(addresses)) == 20


def test_an_interface_of_another_instance_cannot_be_taken(service, spawn):
    owner, thief = spawn(vifs=[service.vif()]), spawn()
    vif = owner.get()["vifs"][0] | {"id": str(uuid.uuid4())}
    with pytest.raises(Fault) as fault:
        service.client.put(f"{thief.path}/interfaces/{vif['id']}", vif)
    assert fault.value.code == "interface-exists"
    assert owner.sh("ls /sys/class/net").split() == ["eth0", "lo"]
    assert thief.sh("ls /sys/class/net").split() == ["lo"]


def test_a_delete_cuts_a_graceful_stop_short(service, spawn):
    instance = spawn(command=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    stopping = threading.Thread(
        target=ignoring_faults, args=(instance.action, "stop"), kwargs={"timeout": 600}
    )
    stopping.start()
    wait_for("the stop", lambda: instance.get()["task_state"] == "stopping")
    instance.delete()
    stopping.join(30)
    assert not stopping.is_alive(), "the stop's client still waits"
    with pytest.raises(Fault):
        instance.get()


def ignoring_faults(call, *arguments, **named) -> None:
    with contextlib.suppress(Fault, OSError):
        call(*arguments, **named)


@pytest.mark.each_runtime
def test_creates_cut_short_by_kill_leave_nothing(service, busybox):
    for turn in range(5):
        ids = [str(uuid.uuid4()) for _ in range(8)]
        threads = [
            threading.Thread(target=ignoring_all, args=(service, i, busybox, n)) for n, i in enumerate(ids)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.05 * turn)
        service.kill()
        for thread in threads:
            thread.join()
        service.start()
        for instance in service.instances():
            Instance(service, instance["id"]).delete()
        assert service.leftovers() == []


def ignoring_all(service: Service, identity: str, image: str, number: int) -> None:
    body = {"name": "cut", "image_id": image, "flavor": SMALL, "vifs": [bridged(service, number)]}
    with contextlib.suppress(Exception):
        service.client.put(f"/v1/instances/{identity}", body)


@pytest.mark.parametrize("shared", ["state_dir", "run_dir", "cgroup"])
def test_a_second_service_is_refused(service, spawn, shared):
    """With its own state it would take the first one's instances for rubbish."""
    instance = spawn()
    second = Service(service.settings["runtime"]["program"])
    section = "instances" if shared == "cgroup" else "service"
    second.settings[section][shared] = service.settings[section][shared]
    try:
        with pytest.raises(AssertionError, match="another berth serve uses"):
            second.start()
    finally:
        second.cgroup = f"berth-{second.token}"
        second.sweep()
    assert instance.sh("echo fine") == "fine"


def test_sigterm_waits_for_what_is_under_way(service, spawn):
    instance = spawn(command=["/bin/sh", "-c", "trap 'sleep 3; exit 0' TERM; while :; do sleep 0.2; done"])
    outcome: list[BaseException] = []

    def stop() -> None:
        try:
            instance.action("stop", timeout=30)
        except BaseException as error:
            outcome.append(error)

    stopping = threading.Thread(target=stop)
    stopping.start()
    wait_for("the stop", lambda: instance.get()["task_state"] == "stopping")
    service.process.send_signal(signal.SIGTERM)
    stopping.join(60)
    service.process.wait(60)
    assert outcome == [], "the client was not answered"
    assert service.process.returncode == 0
    service.start()
    assert instance.state == "SHUTDOWN"


@pytest.mark.each_runtime
def test_a_stop_cut_short_is_finished_by_the_next_service(service, spawn):
    script = "trap 'echo asked; sleep 4; exit 0' TERM; echo ready; while :; do sleep 0.2; done"
    instance = spawn(command=["/bin/sh", "-c", script])
    instance.wait_console("ready")
    stopping = threading.Thread(target=ignoring_call, args=(instance, "stop"))
    stopping.start()
    # Earlier, the request may be lost with the service before it was taken down.
    instance.wait_console("asked")
    service.kill()
    stopping.join()
    service.start()
    instance.wait_state("SHUTDOWN")
    assert instance.pids() == []


def ignoring_call(instance: Instance, action: str) -> None:
    with contextlib.suppress(Exception):
        instance.action(action)


def test_a_lost_monitor_does_not_keep_a_stop_from_stopping(service, spawn):
    instance = spawn()
    os.kill(instance.monitor_pid(), signal.SIGKILL)
    instance.action("stop", timeout=5)
    wait_for("the end", lambda: instance.state == "SHUTDOWN" and not instance.pids())


def test_instances_do_not_inherit_the_protection_of_the_service(service, spawn):
    """The unit's OOMScoreAdjust is for the service, and a monitor has its own."""
    own = Path(f"/proc/{service.process.pid}/oom_score_adj")
    try:
        own.write_text("-900")
    except PermissionError:
        pytest.skip("lowering oom_score_adj needs CAP_SYS_RESOURCE")
    try:
        instance = spawn()
        assert oom_score_adj(instance.get()["pid"]) == 0
        assert oom_score_adj(instance.monitor_pid()) == -999
        assert instance.sh("cat /proc/self/oom_score_adj") == "0"
        instance.action("reboot", type="SOFT", timeout=30)
        assert {oom_score_adj(pid) for pid in instance.pids()} == {0}
    finally:
        own.write_text("0")
