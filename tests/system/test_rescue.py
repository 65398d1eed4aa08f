"""Rescue: another image boots, and repairs what it finds at /mnt/instance."""

import contextlib
import crypt
import json
import os
import random
import shutil
import signal
import threading
import time
import uuid

import hoststate
import imagelib
import pytest
from harness import Fault, wait_for

OWN = "/mnt/instance"
INITTAB = "::sysinit:/bin/echo rescue is up\n::respawn:-/bin/sh\n::ctrlaltdel:/sbin/reboot\n"


def rescue_tree() -> imagelib.Tree:
    """A system image that is told from the others by /etc/rescue."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", INITTAB)
    tree.file("etc/rescue", "rescue\n")
    return tree


@pytest.fixture(scope="module")
def rescue_image(service, tmp_path_factory):
    """Id of an image to rescue with."""
    path = tmp_path_factory.mktemp("rescue") / "rescue.tar"
    path.write_bytes(rescue_tree().tar())
    return service.import_image(path)


@pytest.fixture
def rescued(spawn, rescue_image):
    """A rescued instance with a file of its own."""
    instance = spawn()
    instance.sh("echo own > /root/own; sync")
    rescue(instance, rescue_image)
    return instance


def rescue(instance, image, **fields):
    """Rescues it as Nova does: stopped first."""
    instance.action("stop", timeout=0)
    instance.action("rescue", image_id=image, **fields)


def is_rescued(instance) -> bool:
    """What runs inside, and what is shown of it; they must agree."""
    inside = instance.run("test", "-e", "/etc/rescue").returncode == 0
    assert inside == (instance.get()["rescue_image_id"] is not None)
    return inside


def left_of_rescue(instance) -> list[str]:
    """What only a rescued instance has on the host."""
    service = instance.service
    run = service.run_dir / "i" / instance.id
    files = [service.state_dir / "instances" / instance.id / "rescue.disk"]
    mounts = [point for point, _, _ in hoststate.mount_points() if point in (run / "rescue", run / "own")]
    return [str(path) for path in [*files, *mounts] if path in mounts or path.exists()]


def check_own(instance) -> None:
    """It runs from its own root file system, with its own file, and nothing is left."""
    assert instance.state == "RUNNING"
    assert not is_rescued(instance)
    assert instance.sh("cat /root/own") == "own"
    assert left_of_rescue(instance) == []


def environment(instance) -> list[str]:
    """What its first process was given."""
    bundle = instance.service.run_dir / "i" / instance.id / "bundle/config.json"
    return json.loads(bundle.read_text())["process"]["env"]


def refused(act, code: str, *words: str) -> None:
    """It is refused with this code, and says so."""
    with pytest.raises(Fault) as fault:
        act()
    assert fault.value.code == code, fault.value
    assert all(word in fault.value.detail for word in words), fault.value


@pytest.mark.each_runtime
def test_a_broken_root_file_system_is_repaired(service, spawn, rescue_image):
    instance = spawn(vifs=[service.vif()], hostname="patient", flavor={"ephemeral_gb": 1})
    instance.sh(
        "set -e; echo own > /root/own; echo mine > /root/mine; chown 33:34 /root/mine;"
        "cp /bin/busybox /root/su; chmod 4755 /root/su; echo scratch > /mnt/scratch;"
        "rm /sbin/init; sync"
    )
    before = instance.get()
    link = instance.sh("ip -o addr show eth0 | grep -o 'inet [^ ]*'")
    memory = instance.stats()["memory"]["limit"]
    instance.action("stop", timeout=0)
    with pytest.raises(Fault):
        instance.action("start")

    instance.action("rescue", image_id=rescue_image)
    shown = instance.get()
    assert (shown["power_state"], shown["rescue_image_id"]) == ("RUNNING", rescue_image)
    for same in ("id", "image_id", "name", "flavor", "vifs", "id_map_first", "metadata"):
        assert shown[same] == before[same], same
    assert f"rescued with   image {rescue_image}" in service.berth("show", instance.id)
    assert is_rescued(instance)
    assert instance.sh("hostname; cat /etc/hostname").split() == ["patient", "patient"]
    assert instance.sh("ip -o addr show eth0 | grep -o 'inet [^ ]*'") == link
    assert instance.stats()["memory"]["limit"] == memory
    assert [disk["name"] for disk in instance.stats()["block"]] == ["rescue", "root", "ephemeral"]
    assert [disk["size"] > 900 << 20 for disk in instance.stats()["block"]] == [True] * 3
    instance.wait_console("rescue is up")

    # Its own root file system is whole, ids and all, and its own disk beside.
    assert instance.sh(f"cat {OWN}/root/own {OWN}/etc/hostname /mnt/ephemeral/scratch").split() == [
        "own", "patient", "scratch",
    ]  # fmt: skip
    assert instance.sh(f"stat -c %u:%g:%a {OWN}/root/mine {OWN}/root/su {OWN}").split() == [
        "33:34:644", "0:0:4755", "0:0:755",
    ]  # fmt: skip
    assert instance.sh(f"ls {OWN}/etc/rescue 2>&1 || true").endswith("No such file or directory")
    assert instance.sh(f"chroot {OWN} /bin/busybox id -u") == "0"
    instance.sh(f"ln -s /bin/busybox {OWN}/sbin/init; echo new > {OWN}/root/new; chown 33 {OWN}/root/new")
    instance.sh("echo lost > /root/lost; echo kept > /mnt/ephemeral/kept")

    instance.action("unrescue")
    check_own(instance)
    assert instance.get()["rescue_image_id"] is None
    assert instance.sh("stat -c %u /root/new; cat /mnt/kept /mnt/scratch").split() == [
        "33",
        "kept",
        "scratch",
    ]
    assert instance.run("ls", "/mnt/ephemeral").returncode != 0, "the rescue wrote to the ephemeral disk"
    assert instance.run("ls", "/root/lost").returncode != 0
    assert instance.run("ls", "-d", OWN).returncode != 0
    assert [disk["name"] for disk in instance.stats()["block"]] == ["root", "ephemeral"]
    instance.action("reboot", type="HARD")
    check_own(instance)


def test_an_instance_that_was_never_started_is_rescued(service, busybox, rescue_image):
    instance = service.define(busybox)
    try:
        instance.action("rescue", image_id=rescue_image)
        assert is_rescued(instance)
        instance.sh(f"echo own > {OWN}/root/own")
        instance.action("unrescue")
        check_own(instance)
    finally:
        instance.discard()


def test_each_rescue_has_a_new_disk(rescued, rescue_image, application):
    rescued.sh("echo old > /root/old")
    rescue(rescued, rescue_image)
    assert rescued.run("ls", "/root/old").returncode != 0
    assert rescued.sh(f"cat {OWN}/root/own") == "own"
    # An application image, by its own command and not the instance's.
    rescue(rescued, application, environment={"GREETING": "rescue", "PORT": "8099"})
    rescued.wait_console("rescue from")
    assert rescued.get()["rescue_image_id"] == application
    assert rescued.sh(f"cat {OWN}/root/own; echo more > {OWN}/root/more") == "own"
    rescued.action("unrescue")
    check_own(rescued)
    assert rescued.sh("cat /root/more") == "more"


@pytest.mark.each_runtime
def test_an_application_is_rescued(spawn, rescue_image, application):
    instance = spawn(image=application, environment={"GREETING": "hi"}, command=["-vv"])
    instance.sh("echo own > /root/own")
    rescue(instance, rescue_image, environment={})
    assert is_rescued(instance)
    assert not any(variable.startswith("GREETING=") for variable in environment(instance))
    instance.action("unrescue")
    check_own(instance)
    assert "GREETING=hi" in environment(instance)


def test_debian_rescues(spawn, debian):
    instance = spawn()
    instance.sh("echo own > /root/own")
    rescue(instance, debian)
    assert instance.sh(f"cat {OWN}/root/own; . /etc/os-release; echo $ID").split() == ["own", "debian"]
    wait_for("systemd", lambda: "running" in instance.run("systemctl", "is-system-running", "--wait").stdout)
    assert instance.sh(f"cat {OWN}/root/own") == "own"
    instance.action("reboot", type="SOFT", timeout=60)
    assert instance.sh(f"cat {OWN}/root/own") == "own"
    instance.action("unrescue")
    check_own(instance)


def test_it_is_rescued_with_its_own_image(service, spawn, busybox):
    instance = spawn()
    instance.sh("echo own > /root/own; rm /bin/ls")
    rescue(instance, busybox)
    assert instance.sh(f"ls {OWN}/root") == "own"
    assert instance.run("ls", f"{OWN}/bin/ls").returncode != 0
    instance.action("unrescue")
    check_own(instance)
    # It still stands on it.
    refused(lambda: service.client.delete(f"/v1/images/{busybox}"), "image-in-use")


def test_its_files(spawn, rescue_image):
    given = [{"path": "/config-drive/given", "content": "Z2l2ZW4="}]
    instance = spawn(files=[{"path": "/config-drive/own", "content": "b3du"}])
    instance.sh("echo own > /root/own")
    rescue(instance, rescue_image)
    assert instance.run("ls", "/config-drive").returncode != 0
    assert instance.sh(f"cat {OWN}/config-drive/*") == "own"
    rescue(instance, rescue_image, files=given)
    assert instance.sh("cat /config-drive/*") == "given"
    marker = b"Z2l2ZW4="
    record = instance.service.state_dir / "instances" / instance.id / "record.json"
    for file in (record, instance.service.log):
        assert marker not in file.read_bytes()
    instance.action("unrescue")
    check_own(instance)


def test_the_password_is_that_of_the_rescue_image(rescued):
    secret = "rescue-p4ssw0rd"
    rescued.action("password", user="root", password=secret)
    shadow = rescued.sh("cat /etc/shadow /etc/passwd | grep ^root:").splitlines()
    hashes = [line.split(":")[1] for line in shadow if line.split(":")[1].startswith("$")]
    assert [crypt.crypt(secret, value) == value for value in hashes] == [True]
    assert hashes[0] not in rescued.sh(f"cat {OWN}/etc/shadow {OWN}/etc/passwd 2>/dev/null || true")
    assert secret.encode() not in rescued.service.log.read_bytes()


def lose_power(service):
    """What a loss of the host's power leaves: the state directory, of another boot."""
    service.kill()
    service.sweep_all_but_files()
    shutil.rmtree(service.run_dir)
    for path in service.state_dir.glob("instances/*/record.json"):
        record = json.loads(path.read_text())
        record["boot_id"] = str(uuid.uuid4())
        path.write_text(json.dumps(record))


def test_it_stays_rescued(rescued):
    service = rescued.service
    rescued.sh("echo here > /root/here; sync")

    def check():
        rescued.wait_state("RUNNING")
        assert is_rescued(rescued)
        assert rescued.sh(f"cat /root/here {OWN}/root/own").split() == ["here", "own"]

    rescued.action("reboot", type="SOFT", timeout=30)
    check()
    rescued.action("reboot", type="HARD")
    check()
    rescued.run("reboot")
    wait_for("the reboot from inside", lambda: rescued.get()["guest_reboots"] == 1)
    check()
    rescued.action("stop", timeout=20)
    assert (rescued.state, rescued.get()["rescue_image_id"] is not None) == ("SHUTDOWN", True)
    rescued.action("start")
    check()
    for name, back in (("pause", "unpause"), ("suspend", "resume")):
        rescued.action(name)
        rescued.action(back)
        check()
    pid = rescued.get()["pid"]
    service.kill()
    service.start()
    assert rescued.get()["pid"] == pid
    check()
    os.kill(rescued.monitor_pid(), signal.SIGKILL)
    wait_for("another start", lambda: rescued.get()["pid"] not in (pid, None))
    check()
    lose_power(service)
    service.start()
    assert rescued.state == "SHUTDOWN"
    rescued.action("start")
    check()
    service.settings["host"]["resume_guests_state_on_host_boot"] = True
    try:
        lose_power(service)
        service.start()
        check()
    finally:
        del service.settings["host"]["resume_guests_state_on_host_boot"]
    service.kill()
    lose_power(service)
    service.start()
    assert rescued.state == "SHUTDOWN"
    # From a stop, too.
    rescued.action("unrescue")
    check_own(rescued)


def test_what_makes_no_sense_is_refused(spawn, rescue_image, application):
    instance = spawn()
    state = "instance-invalid-state"
    refused(lambda: instance.action("rescue", image_id=rescue_image), state, "RUNNING", "stop it first")
    instance.action("stop", timeout=0)
    refused(lambda: instance.action("rescue", image_id=str(uuid.uuid4())), "image-not-found")
    bad = {"image_id": rescue_image, "environment": {"A=B": "c"}}
    refused(lambda: instance.action("rescue", **bad), "invalid-input")
    assert left_of_rescue(instance) == []
    instance.action("rescue", image_id=rescue_image)
    pid = instance.get()["pid"]
    destination = {
        "type": "glance", "endpoint": "http://127.0.0.1:1", "token": "x", "image_id": str(uuid.uuid4()),
    }  # fmt: skip
    for action, body in [
        ("resize", {"flavor": instance.get()["flavor"] | {"memory_mb": 80}}),
        ("snapshot", {"destination": destination}),
        ("quiesce", {}),
    ]:
        refused(lambda action=action, body=body: instance.action(action, **body), state, "unrescue it first")
    refused(lambda: instance.action("rescue", image_id=application), state, "RUNNING")
    # The same again is what there is.
    instance.action("rescue", image_id=rescue_image)
    assert instance.get()["pid"] == pid
    image = f"/v1/images/{rescue_image}"
    refused(lambda: instance.service.client.delete(image), "image-in-use")
    instance.action("unrescue")
    pid = instance.get()["pid"]
    instance.action("unrescue")
    assert instance.get()["pid"] == pid
    assert instance.id not in instance.service.client.get(image)["users"]


def test_a_rescue_that_fails_leaves_the_instance_as_it_was(service, spawn, tmp_path):
    path = tmp_path / "nothing.tar"
    tree = imagelib.Tree()
    tree.file("etc/nothing-to-boot", "")
    path.write_bytes(tree.tar())
    image = service.import_image(path)
    instance = spawn()
    instance.sh("echo own > /root/own; sync")
    instance.action("stop", timeout=0)
    before = hoststate.snapshot(service.scope())
    refused(lambda: instance.action("rescue", image_id=image), "image-unacceptable")
    assert (instance.state, instance.get()["rescue_image_id"]) == ("SHUTDOWN", None)
    assert left_of_rescue(instance) == []

    def as_it_was() -> bool:
        changed = hoststate.difference(before, hoststate.snapshot(service.scope()))
        # How it last ended is in its record.
        return [line for line in changed if not line.endswith("/exit.json")] == []

    # Mount namespaces that others just make hold its disk for a moment.
    wait_for("the host to be as it was", as_it_was)
    assert service.client.get(f"/v1/images/{image}")["users"] == []
    instance.action("start")
    check_own(instance)


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "SHUTDOWN", "of another boot"])
def test_a_rescued_instance_is_deleted(service, spawn, rescue_image, state):
    before = hoststate.snapshot(service.scope())
    instance = spawn(vifs=[service.vif()], flavor={"ephemeral_gb": 1})
    rescue(instance, rescue_image)
    if state == "PAUSED":
        instance.action("pause")
    elif state == "SHUTDOWN":
        instance.action("stop", timeout=0)
    elif state != "RUNNING":
        lose_power(service)
        service.start()
    instance.delete()
    left = hoststate.difference(before, hoststate.snapshot(service.scope()))
    assert [line for line in left if instance.id in line or "loop" in line] == []
    assert instance.id not in service.client.get(f"/v1/images/{rescue_image}")["users"]


@pytest.mark.parametrize("verb", ["rescue", "unrescue"])
def test_the_service_is_killed_at_any_moment(spawn, rescue_image, verb):
    instance = spawn()
    service = instance.service
    instance.sh("echo own > /root/own; sync")
    dice = random.Random()
    for _ in range(8):
        rescue(instance, rescue_image) if verb == "unrescue" else instance.action("stop", timeout=0)

        def ask():
            # The answer is lost with the service.
            with contextlib.suppress(Exception):
                body = {"image_id": rescue_image} if verb == "rescue" else {}
                instance.action(verb, **body)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(dice.random() * 0.5)
        service.kill()
        asking.join()
        service.start()
        wait_for("the work to end", lambda: instance.get()["task_state"] is None)
        shown = instance.get()
        if shown["rescue_image_id"] is None:
            assert left_of_rescue(instance) == []
        if shown["power_state"] == "RUNNING":
            assert is_rescued(instance) == (shown["rescue_image_id"] is not None)
        # Asked again, as Nova does, it comes to its end.
        if verb == "rescue":
            if shown["power_state"] != "RUNNING":
                instance.action("rescue", image_id=rescue_image)
            assert is_rescued(instance)
            assert instance.sh(f"cat {OWN}/root/own") == "own"
        instance.action("unrescue")
        check_own(instance)
