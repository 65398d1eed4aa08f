"""Create, start, stop, reboot, pause, suspend, delete: what each does, and that twice is once."""

import threading
import uuid
from pathlib import Path

import pytest
from harness import Fault, wait_for

pytestmark = pytest.mark.each_runtime


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_frozen(instance) -> bool:
    group = instance.cgroup("freezer")
    if (group / "freezer.state").exists():
        return (group / "freezer.state").read_text().strip() == "FROZEN"
    return "frozen 1" in (group / "cgroup.events").read_text()


def test_created_is_not_started(service, busybox):
    instance = service.define(busybox)
    shown = instance.get()
    assert shown["power_state"] in ("SHUTDOWN", "NOSTATE")
    assert shown["pid"] is None
    assert shown["flavor"]["memory_mb"] == 64
    instance.delete()


def test_create_is_idempotent_and_another_body_conflicts(service, busybox):
    instance = service.define(busybox, vifs=[service.vif()])
    before = instance.get()
    service.client.put(instance.path, instance.definition)
    assert instance.get()["generation"] == before["generation"]
    other = instance.definition | {"name": "another"}
    with pytest.raises(Fault) as fault:
        service.client.put(instance.path, other)
    assert (fault.value.status, fault.value.code) == (409, "instance-exists")
    assert instance.get()["name"] == before["name"]
    instance.delete()


def test_concurrent_creates_of_one_instance_make_one(service, busybox):
    identity = str(uuid.uuid4())
    body = {
        "name": "one",
        "image_id": busybox,
        "flavor": {"vcpus": 1, "memory_mb": 64, "root_gb": 1},
    }
    statuses, threads = [], []

    def create():
        statuses.append(service.client.put(f"/v1/instances/{identity}", body).status)

    for _ in range(8):
        threads.append(threading.Thread(target=create))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 8
    assert [i["id"] for i in service.instances()].count(identity) == 1
    service.client.delete(f"/v1/instances/{identity}")


def test_an_instance_without_an_interface_has_a_network_of_its_own(service, busybox):
    instance = service.spawn(busybox)
    pid = instance.get()["pid"]
    ours, its = (Path(f"/proc/{p}/ns/net").readlink() for p in ("self", pid))
    assert ours != its
    assert instance.sh("ls /sys/class/net") == "lo"
    assert "UP" in instance.sh("ip link show lo")
    instance.delete()


def test_start_is_idempotent(instance):
    pid = instance.get()["pid"]
    instance.action("start")
    assert instance.get()["pid"] == pid
    assert alive(pid)


def test_a_graceful_stop_lets_the_init_go_down(instance):
    pid = instance.get()["pid"]
    instance.action("stop", timeout=30)
    shown = instance.get()
    assert shown["power_state"] == "SHUTDOWN"
    assert shown["pid"] is None
    assert "goes down" in instance.console()
    assert not alive(pid)
    assert instance.pids() == []
    instance.action("stop", timeout=30)
    assert instance.state == "SHUTDOWN"


def test_a_stop_with_no_timeout_kills(instance):
    pid = instance.get()["pid"]
    instance.action("stop", timeout=0)
    assert instance.state == "SHUTDOWN"
    assert "goes down" not in instance.console()
    assert not alive(pid)


def test_an_init_that_does_not_listen_is_killed_after_the_timeout(spawn, application):
    deaf = spawn(image=application, command=["-v"], environment={"PORT": "8081"})
    # httpd ends at SIGTERM; a stopped process does not.
    deaf.sh("kill -STOP 1 || true")
    deaf.action("stop", timeout=1)
    assert deaf.state == "SHUTDOWN"
    assert deaf.pids() == []


def test_the_file_system_outlives_a_stop(instance):
    instance.sh("echo kept > /root/kept; sync")
    instance.action("stop", timeout=30)
    instance.action("start")
    assert instance.sh("cat /root/kept") == "kept"


def test_a_soft_reboot_goes_through_the_init(instance):
    before = instance.get()
    instance.sh("echo kept > /root/kept; echo gone > /run/gone")
    instance.action("reboot", type="SOFT", timeout=30)
    after = instance.get()
    assert after["power_state"] == "RUNNING"
    assert after["pid"] != before["pid"]
    assert not alive(before["pid"])
    wait_for("the second boot", lambda: instance.console().count("is up") >= 2)
    assert "goes down" in instance.console()
    assert instance.sh("cat /root/kept; ls /run").split()[0] == "kept"


def test_a_hard_reboot_does_not_ask_the_init(instance):
    before = instance.get()
    instance.action("reboot", type="HARD")
    after = instance.get()
    assert after["power_state"] == "RUNNING"
    assert after["pid"] != before["pid"]
    assert not alive(before["pid"])
    wait_for("the second boot", lambda: instance.console().count("is up") >= 2)
    assert "goes down" not in instance.console()
    assert instance.sh("ip -o addr show eth0").count("inet ") == 1


def test_a_stopped_instance_is_started_by_a_hard_reboot(instance):
    instance.action("stop", timeout=0)
    instance.action("reboot", type="HARD")
    assert instance.state == "RUNNING"


def test_pause_freezes_and_unpause_thaws(instance):
    instance.sh("(while :; do date +%s%N > /run/beat; done) >/dev/null 2>&1 &")
    instance.action("pause")
    shown = instance.get()
    assert (shown["power_state"], shown["power_state_number"]) == ("PAUSED", 3)
    assert is_frozen(instance)
    used = instance.stats()["cpu"]["usage_ns"]
    instance.action("pause")
    assert instance.stats()["cpu"]["usage_ns"] == used
    instance.action("unpause")
    assert instance.state == "RUNNING"
    assert not is_frozen(instance)
    wait_for("it to run on", lambda: instance.stats()["cpu"]["usage_ns"] > used)
    instance.action("unpause")
    assert instance.state == "RUNNING"


def test_suspend_freezes_and_gives_memory_back(instance):
    instance.sh("dd if=/dev/zero of=/root/cached bs=1M count=20 2>/dev/null; cat /root/cached >/dev/null")
    before = instance.stats()["memory"]["usage"]
    instance.action("suspend")
    shown = instance.get()
    assert (shown["power_state"], shown["power_state_number"]) == ("SUSPENDED", 7)
    assert is_frozen(instance)
    assert instance.stats()["memory"]["usage"] < before
    instance.action("resume")
    assert instance.state == "RUNNING"
    assert instance.sh("echo awake") == "awake"


@pytest.mark.parametrize("state", ["pause", "suspend"])
def test_a_frozen_instance_can_be_stopped_started_and_deleted(instance, state):
    instance.action(state)
    instance.action("stop", timeout=5)
    assert instance.state == "SHUTDOWN"
    instance.action("start")
    assert not is_frozen(instance)
    instance.action(state)
    instance.delete()
    assert instance.id not in [i["id"] for i in instance.service.instances()]


@pytest.mark.parametrize("action", ["pause", "unpause", "suspend", "resume"])
def test_what_needs_a_running_instance_is_a_conflict_on_a_stopped_one(service, busybox, action):
    instance = service.define(busybox)
    with pytest.raises(Fault) as fault:
        instance.action(action)
    assert (fault.value.status, fault.value.code) == (409, "instance-invalid-state")
    instance.delete()


def test_delete_of_a_running_instance_takes_everything_with_it(service, busybox):
    instance = service.spawn(busybox, vifs=[service.vif()])
    pids = instance.pids()
    instance.delete()
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(Fault) as fault:
        instance.get()
    assert (fault.value.status, fault.value.code) == (404, "instance-not-found")
    left = service.leftovers()
    assert not left, "\n".join(left)


def test_an_id_block_is_used_by_one_instance_only(spawn):
    first, second = spawn().get(), spawn().get()
    assert first["id_map_first"] != second["id_map_first"]
    assert first["id_map_size"] == second["id_map_size"] == 65_536


def test_the_application_runs_as_its_user_in_its_directory(spawn, application, service):
    instance = spawn(image=application, vifs=[service.vif()], hostname="app")
    console = instance.wait_console("hello from")
    assert "hello from app, user www, in /srv/www" in console
    identity = Path(f"/proc/{instance.get()['pid']}/status").read_text()
    first = instance.get()["id_map_first"]
    assert f"Uid:\t{first + 33}\t" in identity
    assert f"{first + 29}" in identity.split("Groups:")[1].splitlines()[0]
    assert "draft" not in instance.sh("ls /srv/www")
    assert instance.sh("cat /srv/www/index.html") == "berth serves this page"
    pid = instance.get()["pid"]
    instance.action("stop", timeout=60)
    exit_status = instance.get()["exit"]
    assert exit_status["signal"] == 15 or exit_status["code"] in (0, 143)
    assert not alive(pid)


def test_the_application_takes_environment_and_command_of_the_request(spawn, application):
    instance = spawn(image=application, environment={"GREETING": "servus"}, command=["-v", "-v"])
    instance.wait_console("servus from")
    pid = instance.get()["pid"]
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-3:-1] == [b"-v", b"-v"]


def test_an_application_that_fails_is_crashed_and_tells_how(service, application):
    instance = service.define(application, environment={"PORT": "no-port"})
    instance.action("start")
    instance.wait_state("CRASHED")
    shown = instance.get()
    assert shown["exit"]["code"] not in (0, None)
    assert shown["pid"] is None
    instance.delete()
