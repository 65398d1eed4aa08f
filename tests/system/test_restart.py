"""The service, a monitor, the runtime program die; the instances do not notice."""

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

import hoststate
import pytest
from harness import Service, wait_for

pytestmark = pytest.mark.each_runtime


def test_instances_consoles_and_pings_go_on_while_the_service_is_killed(spawn, service):
    one, two = spawn(vifs=[service.vif()]), spawn(vifs=[service.vif()])
    address = two.get()["vifs"][0]["addresses"][0].split("/")[0]
    one.sh(f"ping {address} > /run/ping 2>&1 &")
    two.sh("(i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo n-$i; usleep 10000; done > /dev/console) &")
    before = [i.get() for i in (one, two)]
    monitors = [i.monitor_pid() for i in (one, two)]
    wait_for("output", lambda: "n-10\r" in two.console())
    for _ in range(3):
        service.kill()
        service.start()
    after = [i.get() for i in (one, two)]
    for old, new in zip(before, after, strict=True):
        assert new["power_state"] == "RUNNING"
        assert (new["pid"], new["started_at"]) == (old["pid"], old["started_at"])
        assert new["guest_reboots"] == 0
    assert [i.monitor_pid() for i in (one, two)] == monitors
    two.wait_console("n-1000\r", 90)
    numbers = re.findall(r"n-(\d+)\r", two.console())
    assert numbers == [str(i) for i in range(1, 1001)], "console output was lost"
    one.sh("kill -INT $(pidof ping)")
    wait_for("the ping's summary", lambda: "packet loss" in one.sh("cat /run/ping"))
    assert " 0% packet loss" in one.sh("cat /run/ping")


def test_a_graceful_stop_of_the_service_leaves_instances_alone(instance):
    service = instance.service
    pid = instance.get()["pid"]
    service.stop()
    assert Path(f"/proc/{pid}").exists()
    service.start()
    assert instance.get()["pid"] == pid
    assert instance.sh("echo fine") == "fine"


def test_everything_works_on_an_instance_after_a_restart(instance):
    service = instance.service
    service.kill()
    service.start()
    instance.action("pause")
    instance.action("unpause")
    instance.action("resize", flavor=instance.get()["flavor"] | {"memory_mb": 80})
    assert instance.stats()["memory"]["limit"] == 80 << 20
    instance.action("reboot", type="SOFT", timeout=30)
    assert instance.state == "RUNNING"
    instance.action("stop", timeout=30)
    assert instance.state == "SHUTDOWN"


def test_a_paused_instance_stays_paused(instance):
    instance.action("pause")
    instance.service.kill()
    instance.service.start()
    assert instance.state == "PAUSED"
    instance.action("unpause")
    assert instance.sh("echo fine") == "fine"


def truthful(instance):
    """Whether what is reported is what is."""
    shown = instance.get()
    if shown["power_state"] in ("RUNNING", "PAUSED", "SUSPENDED"):
        return shown["pid"] in instance.pids()
    return shown["pid"] is None and instance.pids() == []


def test_a_killed_monitor_is_noticed_and_the_instance_is_usable(instance):
    first = instance.get()["pid"]
    os.kill(instance.monitor_pid(), signal.SIGKILL)
    # Before it is noticed, the report is what was.
    wait_for("it to be started again", lambda: instance.get()["pid"] not in (None, first))
    instance.action("start")
    instance.wait_state("RUNNING")
    assert truthful(instance)
    assert instance.sh("echo fine") == "fine"
    instance.action("stop", timeout=5)
    assert instance.pids() == []


def test_service_and_monitor_killed_together(instance):
    monitor = instance.monitor_pid()
    instance.service.kill()
    os.kill(monitor, signal.SIGKILL)
    instance.service.start()
    wait_for("a truthful report", lambda: truthful(instance))
    instance.action("reboot", type="HARD")
    assert instance.state == "RUNNING"
    assert instance.sh("echo fine") == "fine"


def pretend_reboot(service: Service) -> None:
    """What a reboot of the host leaves: the state directory, with the mark of another boot."""
    service.kill()
    service.sweep_all_but_files()
    shutil.rmtree(service.run_dir)
    for path in service.state_dir.glob("instances/*/record.json"):
        record = json.loads(path.read_text())
        if record.get("boot_id"):
            record["boot_id"] = str(uuid.uuid4())
        path.write_text(json.dumps(record))


def test_after_a_reboot_of_the_host_instances_are_shut_down_and_start_again(instance):
    service = instance.service
    instance.sh("echo kept > /root/kept; sync")
    pretend_reboot(service)
    service.start()
    assert instance.state == "SHUTDOWN"
    instance.action("start")
    assert instance.sh("cat /root/kept") == "kept"
    assert instance.sh("ip -o -4 addr show eth0").count("inet ") == 1


def test_after_a_reboot_of_the_host_a_stopped_instance_takes_an_interface(instance):
    service = instance.service
    instance.action("stop", timeout=0)
    pretend_reboot(service)
    service.start()
    # As when taking the instance up had failed.
    subprocess.run(["umount", service.run_dir / "i" / instance.id / "net"], check=True)
    vif = service.vif()
    service.client.put(f"{instance.path}/interfaces/{vif['id']}", vif)
    instance.action("start")
    assert instance.sh("ip -o -4 addr | grep -c 'eth[01] .*inet '") == "2"


def test_after_a_reboot_of_the_host_instances_resume_when_configured(runtime, lxcfs, busybox_file):
    service = Service(
        runtime, lxcfs.mount_point, settings={"host": {"resume_guests_state_on_host_boot": True}}
    )
    try:
        service.start()
        image = service.import_image(busybox_file)
        ran, stood = service.spawn(image), service.define(image)
        pretend_reboot(service)
        service.start()
        ran.wait_state("RUNNING")
        assert stood.state in ("SHUTDOWN", "NOSTATE")
    finally:
        left = service.close()
    assert not left, "\n".join(left)


def test_a_corrupt_record_loses_one_instance_and_not_the_service(spawn, service):
    broken, fine = spawn(), spawn()
    service.stop()
    record = service.state_dir / "instances" / broken.id / "record.json"
    content = record.read_bytes()
    record.write_bytes(content[: len(content) // 2])
    service.start()
    assert fine.state == "RUNNING"
    assert fine.sh("echo fine") == "fine"
    assert broken.id in service.log.read_text()
    service.stop()
    record.write_bytes(content)
    service.start()
    broken.wait_state("RUNNING")


def test_what_no_instance_owns_is_cleaned_at_start(instance):
    service = instance.service
    stranger = "11111111-2222-3333-4444-555555555555"
    service.stop()
    state = service.state_dir / "instances" / stranger
    run = service.run_dir / "i" / stranger / "disk"
    state.mkdir(parents=True)
    (state / "root.disk").write_bytes(b"\0" * 1024)
    run.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", run], check=True)
    service.start()
    assert instance.state == "RUNNING"
    wait_for("the mount to go", lambda: run not in [p for p, _, _ in hoststate.mount_points()])
    wait_for("the directories to go", lambda: not state.exists() and not run.parent.exists())


@pytest.mark.parametrize(
    "shared,words", [("socket", "stop that one first"), ("state_dir", "another berth serve uses")]
)
def test_a_second_service_refuses_to_start(service, tmp_path, shared, words):
    other = service.config.read_text()
    if shared != "socket":
        other = other.replace(str(service.socket), str(tmp_path / "sock"))
    config = tmp_path / "berth.toml"
    config.write_text(other)
    result = subprocess.run(
        [service.process.args[0], "serve", "--config", config], capture_output=True, text=True, timeout=30
    )
    assert result.returncode != 0
    assert words in result.stderr + result.stdout
    service.client.get("/v1/host")
