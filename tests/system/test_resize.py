"""A resize that can be undone: what it was is kept until confirm or revert."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import Fault, Service

BIGGER = {"vcpus": 2, "memory_mb": 96, "root_gb": 2, "ephemeral_gb": 2, "swap_mb": 32}


def bigger(instance, **fields):
    return instance.get()["flavor"] | BIGGER | fields


def keep(instance, **fields):
    instance.action("resize", flavor=bigger(instance, **fields), keep=True, timeout=5)


def kept_files(instance):
    return sorted(p.name for p in files_of(instance) if ".kept" in p.name)


def files_of(instance):
    return (instance.service.state_dir / "instances" / instance.id).iterdir()


def disk(instance, path="/"):
    """MiB of a file system, as `df` inside has it."""
    return int(instance.sh(f"df -m {path} | tail -n 1 | awk '{{ print $(NF-4) }}'"))


def record(instance):
    return instance.service.state_dir / "instances" / instance.id / "record.json"


@pytest.fixture
def old(spawn, service):
    """A running instance with data on both disks, and what it is."""
    vif = service.vif()
    instance = spawn(flavor={"ephemeral_gb": 1}, vifs=[vif])
    instance.vif = vif
    instance.sh("dd if=/dev/urandom of=/root/old bs=1M count=20 2>/dev/null; echo old > /mnt/old; sync")
    instance.was = instance.get()
    instance.disks = disk(instance), disk(instance, "/mnt")
    instance.sum = instance.sh("md5sum /root/old")
    return instance


def check_old(instance):
    """It is what it was: flavor, disks and what is on them."""
    now = instance.get()
    assert now["flavor"] == instance.was["flavor"]
    assert now["unconfirmed_resize"] is None
    assert kept_files(instance) == []
    if now["power_state"] != "RUNNING":
        instance.action("start")
    assert (disk(instance), disk(instance, "/mnt")) == instance.disks
    assert instance.sh("md5sum /root/old") == instance.sum
    assert instance.sh("cat /mnt/old") == "old"
    assert instance.stats()["memory"]["limit"] == instance.was["flavor"]["memory_mb"] << 20


def check_bigger(instance):
    """It has the new flavor, and what was on its disks."""
    if instance.state != "RUNNING":
        instance.action("start")
    assert disk(instance) > 1.8 * instance.disks[0]
    assert disk(instance, "/mnt") > 1.8 * instance.disks[1]
    assert instance.sh("md5sum /root/old") == instance.sum
    assert instance.sh("cat /mnt/old") == "old"
    assert instance.stats()["memory"]["limit"] == 96 << 20


class TestConfirm:
    @pytest.mark.each_runtime
    def test_nothing_is_kept_afterwards(self, old):
        keep(old)
        shown = old.get()
        assert shown["power_state"] == "SHUTDOWN"
        assert shown["unconfirmed_resize"]["flavor"] == old.was["flavor"]
        assert kept_files(old) == ["ephemeral.kept", "root.kept"]
        check_bigger(old)
        pid = old.get()["pid"]
        old.action("resize/confirm")
        old.action("resize/confirm")
        shown = old.get()
        assert (shown["pid"], shown["unconfirmed_resize"]) == (pid, None)
        assert kept_files(old) == []
        old.action("resize/revert")
        old.action("reboot", type="HARD")
        check_bigger(old)

    def test_of_a_stopped_instance_by_the_command_line(self, old, service):
        old.action("stop", timeout=5)
        service.berth("resize", old.id, "--root", "2", "--keep")
        assert "awaits confirm or revert" in service.berth("show", old.id)
        service.berth("resize-confirm", old.id)
        assert "awaits" not in service.berth("show", old.id)
        assert old.state == "SHUTDOWN"
        assert kept_files(old) == []
        service.berth("resize", old.id, "--root", "3", "--keep")
        service.berth("resize-revert", old.id)
        assert old.get()["flavor"]["root_gb"] == 2
        old.action("start")
        assert 1.8 * old.disks[0] < disk(old) < 2.2 * old.disks[0]


def test_a_disk_grows_far(old):
    """From a tiny flavor to a large one: more than the file system was made to grow while mounted."""
    keep(old, root_gb=80)
    assert 70 << 10 < started_disk(old) <= 80 << 10
    assert old.sh("md5sum /root/old") == old.sum
    old.action("resize/revert")
    check_old(old)


def started_disk(instance):
    instance.action("start")
    return disk(instance)


def test_how_far_it_is(old, service):
    headers = {"Prefer": "respond-async"}
    body = {"flavor": bigger(old), "keep": True, "timeout": 5}
    answer = service.client.request("POST", f"{old.path}/resize", body, headers)
    assert answer.status == 202
    operation = service.client.get(f"{answer.headers['Location']}?wait=20")
    assert (operation["kind"], operation["status"]) == ("instance.resize", "succeeded")
    # The last stage, and all of it.
    assert (operation["stage"], operation["progress"]) == ("copying", 100)


class TestRevert:
    def test_of_an_instance_whose_ports_are_unplugged(self, old, service):
        """As Nova does it, whose plugs end and begin with a revert."""
        keep(old)
        subprocess.run(["ip", "link", "delete", old.vif["devname"]], check=True)
        old.action("resize/revert")
        service.client.put(f"{old.path}/interfaces/{old.vif['id']}", old.vif)
        check_old(old)
        assert old.vif["address"] in old.sh("ip link show eth0")

    @pytest.mark.parametrize("started", [False, True])
    def test_it_is_what_it_was(self, old, service, started):
        keep(old)
        if started:
            check_bigger(old)
            old.sh("rm /root/old; echo new > /root/new; echo new > /mnt/old; sync")
        # An interface is no part of the flavor.
        vif = service.vif()
        service.client.put(f"{old.path}/interfaces/{vif['id']}", vif)
        old.action("resize/revert")
        old.action("resize/revert")
        assert old.state == "SHUTDOWN"
        check_old(old)
        assert old.sh("ls /root") == "old"
        assert [v["id"] for v in old.get()["vifs"]][1] == vif["id"]
        # And can do it again.
        keep(old)
        check_bigger(old)

    def test_an_added_ephemeral_disk_is_gone(self, spawn):
        instance = spawn()
        keep(instance, ephemeral_gb=1)
        instance.action("start")
        instance.sh("grep -q ' /mnt ' /proc/mounts && echo x > /mnt/x")
        instance.action("resize/revert")
        assert not [p for p in files_of(instance) if "ephemeral" in p.name]
        instance.action("start")
        assert instance.sh("grep -c ' /mnt ' /proc/mounts || :") == "0"

    def test_a_copy_that_somebody_took_away_is_found_first(self, old):
        keep(old)
        kept = next(p for p in files_of(old) if p.name == "root.kept")
        away = kept.with_name("away")
        kept.rename(away)
        with pytest.raises(Fault) as fault:
            old.action("resize/revert")
        assert "root.kept" in fault.value.detail
        assert old.get()["flavor"]["root_gb"] == 2
        away.rename(kept)
        old.action("resize/revert")
        check_old(old)


class TestRefusals:
    @pytest.mark.parametrize("field", ["root_gb", "ephemeral_gb"])
    def test_a_disk_that_would_shrink(self, spawn, field):
        instance = spawn(flavor={"root_gb": 2, "ephemeral_gb": 2})
        before = instance.get()
        with pytest.raises(Fault) as fault:
            keep(instance, **{field: 1})
        assert (fault.value.code, fault.value.field) == ("invalid-input", f"flavor.{field}")
        now = instance.get()
        assert (now["pid"], now["flavor"]) == (before["pid"], before["flavor"])
        assert kept_files(instance) == []

    def test_one_resize_after_the_other(self, old):
        keep(old)
        since = old.get()["unconfirmed_resize"]["since"]
        keep(old)
        assert old.get()["unconfirmed_resize"]["since"] == since, "a repeated request did it again"
        for body in ({"keep": True}, {}):
            with pytest.raises(Fault) as fault:
                old.action("resize", flavor=bigger(old, root_gb=3), **body)
            assert fault.value.code == "instance-invalid-state"
            assert "confirm or revert" in fault.value.detail
        # Once it has run, the same request is another one.
        old.action("start")
        with pytest.raises(Fault):
            keep(old)
        assert old.state == "RUNNING"
        old.action("resize/revert")
        check_old(old)

    def test_a_timeout_for_nothing(self, spawn):
        instance = spawn()
        with pytest.raises(Fault) as fault:
            instance.action("resize", flavor=bigger(instance), timeout=5)
        assert fault.value.field == "timeout"


def test_no_room_for_a_copy(runtime, lxcfs, busybox_file, tmp_path):
    base = Path("/var/tmp") / f"berth-small-{os.getpid()}"
    base.mkdir()
    file = tmp_path / "disk"
    with file.open("wb") as disk_file:
        disk_file.truncate(400 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, base], check=True)
    try:
        service = Service(runtime, lxcfs.mount_point, base=base / "b")
        try:
            service.start()
            instance = service.spawn(service.import_image(busybox_file))
            instance.sh("dd if=/dev/urandom of=/root/old bs=1M count=200 2>/dev/null; sync")
            flavor = instance.get()["flavor"]
            with pytest.raises(Fault) as fault:
                keep(instance)
            assert (fault.value.status, fault.value.code) == (507, "resources-exhausted")
            assert "make room" in fault.value.detail
            # Stopped for it, it was started again.
            assert instance.state == "RUNNING"
            assert instance.get()["flavor"] == flavor
            assert kept_files(instance) == []
            assert instance.sh("ls /root") == "old"
        finally:
            left = service.close()
        assert not left, "\n".join(left)
    finally:
        subprocess.run(["umount", base], check=True)
        base.rmdir()


class TestKilled:
    def begin(self, instance, path, body):
        """Asks for it and does not wait; the service may die under it."""

        def ask():
            with contextlib.suppress(OSError, Fault, http.client.HTTPException):
                instance.service.client.post(f"{instance.path}/{path}", body)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        return thread

    def kill_after(self, service, thread, delay):
        time.sleep(delay)
        service.kill()
        thread.join(60)
        service.start()

    @pytest.mark.parametrize("delay", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0])
    def test_a_resize_is_done_or_it_was_nothing(self, old, service, delay):
        body = {"flavor": bigger(old), "keep": True, "timeout": 0}
        self.kill_after(service, self.begin(old, "resize", body), delay)
        # Comes after a stop that was cut short and is now finished.
        old.action("stop", timeout=5)
        shown = old.get()
        if shown["unconfirmed_resize"]:
            assert kept_files(old) == ["ephemeral.kept", "root.kept"]
            check_bigger(old)
            self.kill_after(service, self.begin(old, "resize/revert", {}), delay / 5)
            old.action("resize/revert")
        check_old(old)

    @pytest.mark.parametrize("delay", [0.001, 0.005, 0.02])
    def test_a_confirm(self, old, service, delay):
        keep(old)
        self.kill_after(service, self.begin(old, "resize/confirm", {}), delay)
        assert len(kept_files(old)) == (2 if old.get()["unconfirmed_resize"] else 0)
        check_bigger(old)
        old.action("resize/confirm")
        assert kept_files(old) == []

    def edit(self, instance, change):
        """The record as an earlier moment left it."""
        instance.service.kill()
        path = record(instance)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def undo(self, content):
        before = content["resize"]["unconfirmed"]
        content["definition"]["flavor"] = before["flavor"]
        content["root_bytes"], content["ephemeral_bytes"] = before["root_bytes"], before["ephemeral_bytes"]
        content["resize"] = "undoing"

    def test_between_the_copy_and_the_end_of_a_resize(self, old, service):
        """Disks are larger, and the record knows only that this is to be undone."""
        keep(old)
        self.edit(old, self.undo)
        service.start()
        check_old(old)

    def test_between_two_disks_of_a_revert(self, old, service):
        keep(old)
        self.edit(old, self.undo)
        directory = record(old).parent
        (directory / "root.kept").rename(directory / "root.disk")
        service.start()
        check_old(old)

    def test_before_the_record_knows_of_copies(self, old, service):
        service.kill()
        directory = record(old).parent
        for name in ("root.kept", "ephemeral.kept", "ephemeral.kept.new"):
            (directory / name).write_bytes(b"half")
        service.start()
        check_old(old)

    def test_what_awaits_confirmation_survives_it(self, old, service):
        keep(old)
        old.action("start")
        pid = old.get()["pid"]
        service.kill()
        service.start()
        assert old.get()["pid"] == pid
        assert old.get()["unconfirmed_resize"]["flavor"] == old.was["flavor"]
        old.action("resize/revert")
        check_old(old)


@pytest.mark.parametrize("started", [False, True])
def test_delete_while_it_awaits_confirmation(old, service, started):
    keep(old)
    if started:
        old.action("start")
    directory = record(old).parent
    old.delete()
    assert not directory.exists()
    assert [line for line in service.leftovers() if old.id in line] == []


def test_what_is_kept_counts_as_used(old, service):
    def used():
        return service.client.get("/v1/host")["inventory"]["local_gb_used"]

    before = used()
    keep(old, swap_mb=0)
    # Two disks of 2 GiB, and two of 1 GiB that are kept.
    assert used() == before + 2 + 2
    old.action("resize/confirm")
    assert used() == before + 2


def test_a_delete_does_not_wait_for_a_copy(spawn, service):
    instance = spawn()
    instance.sh("dd if=/dev/urandom of=/root/old bs=1M count=300 2>/dev/null; sync")
    headers = {"Prefer": "respond-async"}
    body = {"flavor": bigger(instance), "keep": True, "timeout": 0}
    answer = service.client.request("POST", f"{instance.path}/resize", body, headers)
    instance.delete()
    operation = service.client.get(f"{answer.headers['Location']}?wait=20")
    # Cut short, or done before it: in no case is anything left.
    if operation["status"] == "failed":
        assert operation["fault"]["code"] in ("instance-invalid-state", "instance-not-found")
    assert not record(instance).parent.exists()
