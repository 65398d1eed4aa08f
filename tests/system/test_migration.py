"""An instance goes from one host to another, stopped, and perhaps comes back."""

from __future__ import annotations

import json
import os
import random
import time
import uuid

import pytest
from harness import Fault, Instance, small_file_system, wait_for
from harness.pair import Pair

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def pair(runtime, lxcfs):
    pair = Pair(runtime, lxcfs.mount_point)
    try:
        pair.start()
        yield pair
    finally:
        left = pair.close()
    assert not left, "left on the hosts:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def image(pair, busybox_file):
    return pair.source.import_image(busybox_file)


@pytest.fixture
def spawn(pair, image):
    made = []

    def make(**fields):
        made.append(pair.source.spawn(fields.pop("image", image), **fields))
        made[-1].wait_console("is up")
        return made[-1]

    yield make
    for service in pair.services:
        if not service.process or service.process.poll() is not None:
            service.start()
    for instance in made:
        for service in pair.services:
            Instance(service, instance.id).discard()


def migrate(pair, instance, **fields):
    instance.action("migrate", to=pair.url(), **{"timeout": 5, **fields})
    return pair.there(instance)


def begin(pair, instance, **fields):
    """A move under way: its operation's path."""
    body = {"to": pair.url(), "timeout": 5, **fields}
    answer = pair.source.client.request("POST", f"{instance.path}/migrate", body, ASYNC)
    return answer.headers["Location"]


def ended(service, operation, seconds=60):
    return service.client.get(f"{operation}?wait={seconds}")


def refused(call, code):
    with pytest.raises(Fault) as error:
        call()
    assert error.value.code == code, error.value
    return error.value.detail


def is_known(service, instance):
    return instance.id in {i["id"] for i in service.instances()}


def nothing_of(service, instance):
    """Of an instance nothing is on a host, neither in the API nor in the state."""
    directories = service.state_dir / "instances", service.run_dir / "i"
    return not is_known(service, instance) and not any((d / instance.id).exists() for d in directories)


FILES = """
echo kept > /root/file; chown 1:4 /root/file; chmod 4750 /root/file
ln /root/file /root/hard; ln -s file /root/soft; mkfifo /root/fifo
dd if=/dev/urandom of=/root/data bs=1M count=5 2>/dev/null
dd if=/dev/zero of=/root/sparse bs=1 count=1 seek=200M 2>/dev/null
rm -f /etc/motd; rm -rf /etc/init.d.none; mkdir -p /var/deep/er
dd if=/dev/urandom of=/mnt/data bs=1M count=3 2>/dev/null; chown 7:8 /mnt/data
sync
"""
SEEN = """
stat -c '%n %u %g %a %h %s %F' /root/file /root/hard /root/soft /root/fifo /root/sparse /var/deep/er /mnt/data
md5sum /root/data /root/file /mnt/data; cat /etc/machine-id /etc/hostname; ls /etc | md5sum
du -k /root/sparse
"""


@pytest.mark.each_runtime
def test_all_of_it_goes_along_and_comes_back(pair, spawn):
    vif = pair.source.vif(bridge=False)
    old = spawn(flavor={"ephemeral_gb": 1}, vifs=[vif], metadata={"who": "me"})
    old.sh(FILES)
    seen, was, console = old.sh(SEEN), old.get(), old.console()

    new = migrate(pair, old)
    assert new.state == "SHUTDOWN"
    there = new.get()
    for same in ("name", "flavor", "image_id", "metadata", "created_at"):
        assert there[same] == was[same], same
    assert there["id_map_first"] != was["id_map_first"]
    assert new.console().startswith(console)
    new.action("start")
    assert new.sh(SEEN) == seen
    assert vif["devname"] in {v["devname"] for v in new.get()["vifs"]}
    assert new.sh("ip -o link show eth0").count(vif["address"]) == 1
    new.sh("echo written there > /root/there")

    # Here it is kept, and nothing can be done to it.
    kept = old.get()
    assert (kept["power_state"], kept["migration"]["state"]) == ("SHUTDOWN", "moved")
    assert kept["migration"]["to"] == pair.url()
    for verb, body in (("start", {}), ("reboot", {"type": "HARD"}), ("resize", {"flavor": was["flavor"]})):
        assert pair.url() in refused(lambda v=verb, b=body: old.action(v, **b), "instance-invalid-state")
    old.action("stop")
    # The same again is the same.
    old.action("migrate", to=pair.url())
    # One that ran there is not simply taken back.
    assert "delete it there" in refused(lambda: old.action("migrate/revert"), "instance-invalid-state")
    new.delete()
    old.action("migrate/revert")
    old.action("migrate/revert")
    assert old.get()["migration"] is None
    old.action("start")
    assert old.sh(SEEN) == seen
    assert old.sh("ls /root/there 2>/dev/null || echo none") == "none"
    assert nothing_of(pair.destination, new)


def test_it_is_confirmed_by_a_delete_and_can_go_back(pair, spawn):
    old = spawn()
    old.sh("echo one > /root/way; sync")
    new = migrate(pair, old)
    old.delete()
    assert nothing_of(pair.source, old)
    new.action("start")
    new.sh("echo two >> /root/way; sync")
    new.action("migrate", to=pair.url(pair.source), timeout=5)
    new.delete()
    old.action("start")
    assert old.sh("cat /root/way").split() == ["one", "two"]


def test_one_that_never_ran_and_one_that_was_stopped(pair, image, spawn):
    defined = pair.source.define(image)
    new = migrate(pair, defined)
    defined.delete()
    new.action("start")
    new.wait_console("is up")
    new.delete()
    stopped = spawn()
    stopped.sh("echo kept > /root/file")
    stopped.action("stop", timeout=5)
    new = migrate(pair, stopped)
    new.action("start")
    assert new.sh("cat /root/file") == "kept"


def test_with_another_flavor(pair, spawn):
    old = spawn()
    old.sh("echo kept > /root/file; sync")
    flavor = old.get()["flavor"] | {"memory_mb": 96, "vcpus": 2, "root_gb": 2, "ephemeral_gb": 1}
    smaller = flavor | {"root_gb": 1}
    new = migrate(pair, old, flavor=flavor)
    assert new.get()["flavor"] == flavor
    new.action("start")
    assert int(new.sh("df -m / | tail -n 1 | awk '{ print $(NF-4) }'")) > 1800
    assert "ephemeral" in new.sh("df /mnt; echo ephemeral") and new.sh("cat /root/file") == "kept"
    assert new.stats()["memory"]["limit"] == 96 << 20
    # A disk does not shrink on its way either, and what is refused changes nothing.
    refused(lambda: new.action("migrate", to=pair.url(pair.source), flavor=smaller), "instance-exists")
    old.delete()
    refused(lambda: new.action("migrate", to=pair.url(pair.source), flavor=smaller), "invalid-input")
    assert new.sh("echo still") == "still"
    assert new.get()["migration"] is None


@pytest.fixture
def only_here(pair, application_file):
    """An image that the destination has never seen, with layers that hide files of others."""
    return pair.source.import_image(application_file)


def test_layers_that_are_missing_go_along(pair, only_here):
    old = pair.source.define(only_here, command=["sleep", "1000"])
    old.action("start")
    try:
        # The root and /etc have what berth gives each instance when it is made.
        left_out = " ".join(f"! -path '{path}*'" for path in ("/proc", "/sys", "/dev", "/etc"))
        tree = f"find / -mindepth 1 -xdev {left_out} -exec stat -c '%n %f %u:%g %s %Y' {{}} + | sort | md5sum"
        whole = f"{tree}; ls -lan /etc | md5sum"
        seen, seen_whole = old.sh(tree), old.sh(whole)
        assert only_here not in {i["id"] for i in pair.destination.client.get("/v1/images")["images"]}
        new = migrate(pair, old)
        here, there = (s.client.get(f"/v1/images/{only_here}") for s in pair.services)
        for same in ("layers", "config", "hash", "size", "name"):
            assert here[same] == there[same], same
        assert there["users"] == [new.id]
        new.action("start")
        assert new.sh(whole) == seen_whole
        # It is an image like any other there.
        other = pair.destination.spawn(only_here, command=["sleep", "1000"])
        assert other.sh(tree) == seen
        other.delete()
        new.delete()
    finally:
        old.discard()
    pair.destination.client.delete(f"/v1/images/{only_here}")


def test_progress_in_bytes_and_an_abort(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=60 2>/dev/null; sync")
    sum_before = old.sh("md5sum /root/data")
    pair.source.settings["migration"]["max_bandwidth_mb"] = 10
    pair.source.stop()
    pair.source.start()
    try:
        operation = begin(pair, old)

        def progress():
            return pair.source.client.get(operation).get("bytes")

        wait_for("bytes to be on their way", lambda: (progress() or {}).get("processed", 0) > 2 << 20)
        now = progress()
        assert now["total"] > 60 << 20 and now["remaining"] == now["total"] - now["processed"]
        assert old.get()["migration"]["state"] == "copying"
        # It runs meanwhile, and its destination keeps others off its id.
        assert old.sh("echo runs") == "runs"
        there = pair.there(old)
        body = {"name": "x", "image_id": old.definition["image_id"], "flavor": old.definition["flavor"]}
        refused(lambda: pair.destination.client.put(there.path, body), "instance-invalid-state")
        pid = old.get()["pid"]
        pair.source.client.delete(operation)
        assert ended(pair.source, operation)["status"] == "failed"
    finally:
        pair.source.settings["migration"]["max_bandwidth_mb"] = 0
        pair.source.stop()
        pair.source.start()
    assert (old.state, old.get()["pid"], old.get()["migration"]) == ("RUNNING", pid, None)
    assert nothing_of(pair.destination, old)
    refused(lambda: pair.source.client.delete(operation), "operation-not-found")
    new = migrate(pair, old)
    new.action("start")
    assert new.sh("md5sum /root/data") == sum_before


def test_what_never_came_goes_with_the_next_start(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=60 2>/dev/null; sync")
    pid = old.get()["pid"]
    pair.source.settings["migration"]["max_bandwidth_mb"] = 10
    pair.source.stop()
    pair.source.start()
    try:
        operation = begin(pair, old)
        wait_for("bytes", lambda: (pair.source.client.get(operation).get("bytes") or {}).get("processed"))
        pair.source.kill()
        disk = pair.destination.state_dir / "instances" / old.id / "root.disk"
        assert disk.exists() and not is_known(pair.destination, old)
        pair.destination.kill()
        pair.destination.start()
        assert nothing_of(pair.destination, old)
    finally:
        pair.source.settings["migration"]["max_bandwidth_mb"] = 0
        pair.source.stop()
        pair.source.start()
    wait_for("the move to be given up", lambda: old.get()["migration"] is None)
    # It was not stopped yet, and never noticed.
    assert (old.state, old.get()["pid"]) == ("RUNNING", pid)


def test_what_a_peer_makes_up_is_refused(pair, spawn):
    old = spawn()
    peer = pair.authority.sign("host0", pair.addresses[0])
    record = json.loads((pair.source.state_dir / "instances" / old.id / "record.json").read_text())
    body = {"format": 1, "instance_id": old.id, "instance": record, "image": {}, "bytes": 0}
    for change, field in [
        ({"format": 2}, "format"),
        ({"instance": {}}, "instance"),
        ({}, "image"),
        ({"more": 1}, "more"),
    ]:
        with pytest.raises(Fault) as error:
            pair.call(peer, "PUT", f"/v1/incoming/{old.id}", body | change)
        assert (error.value.code, error.value.field) == ("invalid-input", field)
    assert nothing_of(pair.destination, old)


def test_a_delete_does_not_wait_for_a_move(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=60 2>/dev/null; sync")
    operation = begin(pair, old)
    old.delete()
    if ended(pair.source, operation)["status"] == "failed":
        assert nothing_of(pair.destination, old)
    assert nothing_of(pair.source, old)


def test_only_a_peer_sends_and_it_does_nothing_else(pair, spawn):
    old = spawn()
    peer, client = (
        pair.authority.sign("host0", pair.addresses[0]),
        pair.authority.sign("nova", pair.addresses[0]),
    )
    move = f"/v1/incoming/{old.id}"
    calls = [
        ("DELETE", move),
        ("PUT", move),
        ("POST", f"{move}/commit"),
        ("DELETE", move.replace("inc", "%69nc")),
    ]
    for method, path in calls:
        refused(lambda m=method, p=path: pair.call(client, m, p, {}), "forbidden")
        refused(lambda m=method, p=path: pair.destination.client.request(m, p, {}), "forbidden")
    assert pair.call(client, "GET", "/v1/host")["hypervisor_type"] == "berth"
    # A peer is nobody else: it sees nothing and changes nothing.
    for method, path in [
        ("GET", "/v1/host"),
        ("GET", "/v1/instances"),
        ("DELETE", old.path),
        ("GET", "/metrics"),
    ]:
        refused(lambda m=method, p=path: pair.call(peer, m, p), "forbidden")
    assert pair.call(peer, "DELETE", move) == {"outcome": "aborted"}
    # Nor is a service at the other end whose name is not known, though the authority signed it.
    pair.source.settings["migration"]["peers"] = ["another"]
    pair.source.stop()
    pair.source.start()
    try:
        assert "migration.peers" in refused(lambda: migrate(pair, old), "peer-unavailable")
    finally:
        pair.source.settings["migration"]["peers"] = ["host1"]
        pair.source.stop()
        pair.source.start()
    assert (old.state, old.get()["migration"]) == ("RUNNING", None)


def test_bad_targets_change_nothing(pair, spawn):
    old = spawn()
    pid = old.get()["pid"]
    for to, code in [
        ("http://192.0.2.1:1", "invalid-input"),
        ("https://192.0.2.1", "invalid-input"),
        (pair.url().replace("8788", "1"), "peer-unavailable"),
    ]:
        refused(lambda t=to: old.action("migrate", to=t), code)
    old.action("resize", flavor=old.get()["flavor"], keep=True, timeout=5)
    assert "resize" in refused(lambda: migrate(pair, old), "instance-invalid-state")
    old.action("resize/revert")
    assert pid != old.get()["pid"]


def test_one_with_volumes_stays_as_it_is(pair, spawn):
    old = spawn()
    source = pair.source.base / "volume"
    source.write_bytes(bytes(1 << 20))
    path = f"{old.path}/volumes/{uuid.uuid4()}"
    pair.source.client.put(path, {"source": {"file": {"path": str(source)}}})
    try:
        pid = old.get()["pid"]
        with pytest.raises(Fault) as refused:
            old.action("migrate", to=pair.url())
        assert refused.value.code == "instance-invalid-state" and "detach all volumes" in refused.value.detail
        assert old.get()["pid"] == pid and old.get()["migration"] is None
        assert old.sh("head -c 512 /dev/vdb | wc -c") == "512"
    finally:
        pair.source.client.delete(path)
        source.unlink()


def test_a_destination_without_room_refuses_before_anything_is_touched(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=100 2>/dev/null; sync")
    pid = old.get()["pid"]
    storage = pair.destination.settings["storage"]
    before = dict(storage)
    found = os.statvfs(pair.destination.state_dir)
    storage["reserved_host_disk_mb"] = (found.f_bavail * found.f_frsize >> 20) - 60
    pair.destination.stop()
    try:
        pair.destination.start()
        assert "reserved" in refused(lambda: migrate(pair, old), "resources-exhausted")
    finally:
        pair.destination.settings["storage"] = before
        pair.destination.stop()
        pair.destination.start()
    assert (old.get()["pid"], old.get()["migration"]) == (pid, None)
    assert nothing_of(pair.destination, old)


def test_a_host_that_gives_fewer_ids_is_refused(pair, spawn):
    ids = pair.source.settings["instances"]
    before = dict(ids)
    ids |= {"id_map_size": 131_072, "id_map_blocks": 128}
    pair.source.stop()
    try:
        pair.source.start()
        old = spawn()
        pid = old.get()["pid"]
        assert "instances.id_map_size" in refused(lambda: migrate(pair, old), "resources-exhausted")
        assert (old.get()["pid"], old.get()["migration"]) == (pid, None)
        assert nothing_of(pair.destination, old)
        old.delete()
    finally:
        pair.source.settings["instances"] = before
        pair.source.stop()
        pair.source.start()


def test_what_came_goes_when_nothing_more_comes(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=60 2>/dev/null; sync")
    pair.source.settings["migration"]["max_bandwidth_mb"] = 10
    pair.destination.settings["migration"]["idle_timeout"] = 10
    try:
        for service in pair.services:
            service.stop()
            service.start()
        operation = begin(pair, old)
        wait_for("bytes", lambda: (pair.source.client.get(operation).get("bytes") or {}).get("processed"))
        pair.source.kill()
        assert not nothing_of(pair.destination, old)
        wait_for("it to be given up", lambda: nothing_of(pair.destination, old), 60)
    finally:
        del pair.source.settings["migration"]["max_bandwidth_mb"]
        del pair.destination.settings["migration"]["idle_timeout"]
        for service in pair.services:
            service.stop()
            service.start()
    assert (old.state, old.get()["migration"]) == ("RUNNING", None)
    assert migrate(pair, old).state == "SHUTDOWN"


def test_a_disk_there_that_fills_meanwhile(runtime, lxcfs, busybox_file, tmp_path):
    with small_file_system(tmp_path / "disk", 900) as base:
        pair = Pair(runtime, lxcfs.mount_point, destination=base / "b")
        pair.source.settings["migration"]["max_bandwidth_mb"] = 20
        try:
            pair.start()
            old = pair.source.spawn(pair.source.import_image(busybox_file))
            old.sh("dd if=/dev/urandom of=/root/data bs=1M count=200 2>/dev/null; sync")
            seen, pid = old.sh("md5sum /root/data"), old.get()["pid"]
            operation = begin(pair, old)

            def begun():
                return (pair.source.client.get(operation).get("bytes") or {}).get("processed", 0) > 8 << 20

            wait_for("bytes to be there", begun)
            free = os.statvfs(base)
            with (base / "other").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, free.f_bavail * free.f_frsize - (2 << 20))
            failed = ended(pair.source, operation)
            assert (failed["status"], failed["fault"]["code"]) == ("failed", "resources-exhausted"), failed
            assert "No space left on device" in failed["fault"]["detail"]
            assert (old.get()["pid"], old.get()["migration"]) == (pid, None)
            assert old.sh("md5sum /root/data") == seen
            wait_for("what came to go", lambda: nothing_of(pair.destination, old))
            (base / "other").unlink()
            new = migrate(pair, old)
            new.action("start")
            assert new.sh("md5sum /root/data") == seen
            new.delete()
            old.delete()
        finally:
            left = pair.close()
    assert not left, "left on the hosts:\n" + "\n".join(left)


def test_a_line_that_breaks_for_a_moment(pair, spawn):
    old = spawn()
    old.sh("dd if=/dev/urandom of=/root/data bs=1M count=60 2>/dev/null; sync")
    was = old.sh("md5sum /root/data")
    operation = begin(pair, old)
    wait_for("bytes", lambda: (pair.source.client.get(operation).get("bytes") or {}).get("processed"))
    pair.cut()
    time.sleep(2)
    pair.cut(up=True)
    assert ended(pair.source, operation, 120)["status"] == "succeeded"
    new = pair.there(old)
    new.action("start")
    assert new.sh("md5sum /root/data") == was


def test_what_was_not_told_is_found_out(pair, spawn):
    """The source dies just when the other host was told to take the instance."""
    old = spawn()
    new = migrate(pair, old)
    pair.source.kill()
    record = pair.source.state_dir / "instances" / old.id / "record.json"
    text = json.loads(record.read_text())
    assert text["departure"]["state"] == "moved"
    text["departure"]["state"] = "committing"
    record.write_text(json.dumps(text))
    pair.cut()
    pair.source.start()
    assert old.get()["migration"]["state"] == "committing"
    refused(lambda: old.action("start"), "instance-invalid-state")
    pair.cut(up=True)
    wait_for("the answer", lambda: old.get()["migration"]["state"] == "moved", 60)
    # The instance went through its whole life there before its source could ask.
    pair.source.kill()
    record.write_text(json.dumps(text))
    marker = pair.destination.state_dir / "instances" / old.id / "unacknowledged"
    assert not marker.exists(), "what was acknowledged is remembered"
    marker.touch()
    new.action("start")
    new.delete()
    pair.source.start()
    wait_for("the answer", lambda: old.get()["migration"]["state"] == "moved", 60)
    ended_moves = pair.destination.state_dir / "moves"
    wait_for("the note of it to go", lambda: not list(ended_moves.iterdir()))


def test_one_that_was_never_taken_stays(pair, spawn):
    old = spawn()
    old.sh("echo kept > /root/file; sync")
    new = migrate(pair, old)
    pair.source.kill()
    new.delete()
    record = pair.source.state_dir / "instances" / old.id / "record.json"
    text = json.loads(record.read_text())
    text["departure"]["state"] = "committing"
    record.write_text(json.dumps(text))
    pair.source.start()
    wait_for("the answer", lambda: old.get()["migration"] is None, 60)
    # It ran when it was to go.
    old.wait_state("RUNNING")
    assert old.sh("cat /root/file") == "kept"


def test_one_that_did_not_start_there_is_given_back_by_the_command_line(pair, spawn):
    old = spawn()
    pair.source.berth("migrate", old.id, pair.url(), "--timeout", "5")
    new = pair.there(old)
    assert is_known(pair.destination, new)
    assert f"moved to {pair.url()}" in pair.source.berth("show", old.id)
    pair.source.berth("migrate-revert", old.id)
    assert nothing_of(pair.destination, new)
    old.action("start")
    assert old.get()["migration"] is None


def test_a_host_that_never_comes_back(pair, spawn):
    old = spawn()
    migrate(pair, old)
    pair.cut()
    try:
        refused(lambda: old.action("migrate/revert"), "peer-unavailable")
        old.action("migrate/revert", force=True)
        old.action("start")
    finally:
        pair.cut(up=True)
    assert old.state == "RUNNING"


def settled(pair, instance):
    """Who has the instance, once both services know."""
    shown = [i for s in pair.services for i in s.instances() if i["id"] == instance.id]
    moving = [
        i
        for i in shown
        if (i["migration"] or {}).get("state") in ("copying", "committing") or i["task_state"]
    ]
    if moving or not shown:
        return None
    owners = [i for i in shown if not i["migration"]]
    return owners if len(owners) == 1 else None


@pytest.mark.alone
def test_both_agree_whoever_is_killed_at_any_moment(pair, image, request, capsys):
    # Each takes as long as several in the durability test.
    kills = max(20, request.config.getoption("--kills") // 4)
    seed = random.randrange(1 << 32)
    with capsys.disabled():
        print(f"\n    seed {seed}, {kills} kills", flush=True)
    dice = random.Random(seed)
    went = 0
    instance = pair.source.spawn(image)
    instance.wait_console("is up")
    instance.sh("dd if=/dev/urandom of=/root/data bs=1M count=20 2>/dev/null; sync")
    was = instance.sh("md5sum /root/data")
    try:
        for _ in range(kills):
            operation = begin(pair, instance, timeout=1)
            time.sleep(dice.random() * 1.6)
            victim = dice.choice(("source", "destination", "line", "both"))
            if victim == "line":
                pair.cut()
                time.sleep(dice.random() * 3)
                pair.cut(up=True)
            for service in pair.services:
                if victim == "both" or service is getattr(pair, victim, None):
                    service.kill()
            for service in pair.services:
                if service.process.poll() is not None:
                    service.start()
            if victim in ("destination", "line"):
                ended(pair.source, operation, 120)
            wait_for(f"an owner after a kill of {victim}", lambda: settled(pair, instance), 120)
            there = pair.there(instance)
            if is_known(pair.destination, there):
                # It is the other host's: what it was is there, and what is kept here goes back.
                went += 1
                assert instance.get()["migration"]["state"] == "moved"
                there.action("start")
                assert there.sh("md5sum /root/data") == was
                there.delete()
                instance.action("migrate/revert")
                instance.action("start")
            else:
                wait_for("the rest to go", lambda: nothing_of(pair.destination, instance), 30)
                if instance.state != "RUNNING":
                    instance.wait_state("RUNNING")
            assert instance.sh("md5sum /root/data") == was
    finally:
        for service in pair.services:
            if service.process.poll() is not None:
                service.start()
        for service in pair.services:
            Instance(service, instance.id).discard()
    with capsys.disabled():
        print(f"    {went} of {kills} moves went through", flush=True)
    for service in pair.services:
        assert "panicked" not in service.log.read_text(errors="replace")
        assert [line for line in service.leftovers() if instance.id in line] == []
