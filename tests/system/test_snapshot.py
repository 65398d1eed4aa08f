"""Snapshots: what was in the instance boots again, and nothing else is in the image."""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import time
import uuid
from pathlib import Path

import pytest
from harness import Fault, Service, wait_for
from harness.glance import TOKEN


def snapshot(instance, glance, **fields) -> Path:
    """Takes one; gives the file of its content."""
    image = str(uuid.uuid4())
    instance.action("snapshot", **glance.to(image, **fields))
    return glance.file(image)


def boot(service, made, file, **fields):
    """A running instance of a snapshot."""
    made.append(service.spawn(service.import_image(file), **fields))
    return made[-1]


def archive(file: Path) -> tarfile.TarFile:
    """The image archive, plain."""
    plain = subprocess.run(["zstd", "-dc", file], stdout=subprocess.PIPE, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(plain))


def layers(file: Path) -> list[tarfile.TarFile]:
    """The layers of the image archive, lowest first."""
    whole = archive(file)
    manifest = json.load(whole.extractfile("manifest.json"))[0]
    return [tarfile.open(fileobj=whole.extractfile(name)) for name in manifest["Layers"]]


def left_behind(service) -> list[Path]:
    """Temporary files of snapshots."""
    return [*service.state_dir.rglob("root.copy*"), *(service.state_dir / "images/tmp").iterdir()]


CHANGE = r"""
set -e
mkdir -p /data/deep/er && echo kept > /data/deep/er/file && ln /data/deep/er/file /data/again
ln -s ../data /etc/link && mkfifo /data/pipe
echo replaced > /etc/profile
rm -rf /etc/init.d/rcK
mv /bin/ls /bin/ls-moved && ln -s busybox /bin/ls
rm -rf /srv && mkdir /srv && echo new > /srv/only
chown -R 33:33 /data/deep && chmod 4755 /data/again
dd if=/dev/zero of=/data/holes bs=1 count=1 seek=300000000 2>/dev/null
echo middle | dd of=/data/holes bs=1 seek=1000000 conv=notrunc 2>/dev/null
touch -d '2001-02-03 04:05:06' /data/again
name=$(printf 'n%.0s' $(seq 1 200)); mkdir -p /data/$name/$name && echo long > /data/$name/$name/x
touch /data/.wh.notme
"""
LIST = r"find / -xdev -not -path '/dev*' -not -path '/proc*' -not -path '/sys*' | sort"
SHOW = r"""
cat /data/deep/er/file /etc/profile /srv/only /data/n*/n*/x; readlink /etc/link
stat -c '%n %a %u:%g %s %Y %h' /data/again /data/deep /data/holes /data/pipe
[ /data/again -ef /data/deep/er/file ] && echo linked; md5sum < /data/holes
[ -e /etc/init.d/rcK ] || echo deleted; stat -c %b /data/holes | grep -c '^[0-9]\{1,3\}$'
"""


@pytest.mark.each_runtime
def test_what_was_in_it_boots_again(service, instance, glance, made):
    instance.sh(CHANGE)
    expected = instance.sh(SHOW)
    files = instance.sh(LIST)
    file = snapshot(instance, glance)
    assert instance.state == "RUNNING"
    copy = boot(service, made, file)
    copy.wait_console("is up")
    assert copy.sh(SHOW) == expected
    assert copy.sh(LIST) == files
    # A snapshot of the snapshot, with something of its own.
    copy.sh("echo second > /data/second; rm /srv/only")
    again = boot(service, made, snapshot(copy, glance))
    assert again.sh("cat /data/second /data/deep/er/file; ls /srv") == "second\nkept"
    assert len(layers(file)) == 2
    assert not left_behind(service)


def test_a_tarball_boots_again_too_and_so_does_a_snapshot_of_it(service, instance, glance, made):
    instance.sh(CHANGE)
    expected = instance.sh(SHOW)
    files = instance.sh(LIST)
    file = snapshot(instance, glance, format="rootfs-tar")
    with archive(file) as whole:
        members = whole.getmembers()
    names = [member.name for member in members]
    assert "data/deep/er/file" in names and "bin/busybox" in names and "manifest.json" not in names
    assert len(names) == len(set(names))
    assert [name for name in names if ".wh." in name] == ["data/.wh.notme"]
    assert "etc/init.d/rcK" not in names and "etc/hostname" in names
    assert all(member.uid < 65536 and member.gid < 65536 for member in members)
    copy = boot(service, made, file)
    assert service.client.get(f"/v1/images/{copy.get()['image_id']}")["format"] == "rootfs-tar"
    copy.wait_console("is up")
    assert copy.sh(SHOW) == expected
    assert copy.sh(LIST) == files
    copy.sh("rm -rf /data; echo second > /second")
    again = boot(service, made, snapshot(copy, glance))
    assert again.sh("cat /second; [ -e /data ] || echo gone") == "second\ngone"
    assert not left_behind(service)


def test_a_tarball_that_could_not_boot_is_refused(service, application, glance, made):
    made.append(service.spawn(application))
    with pytest.raises(Fault) as fault:
        snapshot(made[-1], glance, format="rootfs-tar")
    assert (fault.value.code, fault.value.field) == ("invalid-input", "format")
    assert not glance.begun.is_set()


def test_nothing_of_the_host_or_the_instance_is_in_it(service, spawn, glance, made):
    secret = {"path": "/config-drive/secret", "content": "aGk=", "mode": 0o400}
    changed = secret | {"path": "/config-drive/changed"}
    files = [secret, changed]
    instance = spawn(hostname="of-the-first", files=files, dns={"nameservers": ["192.0.2.53"]})
    instance.sh("echo -n ho > /config-drive/changed")
    instance.sh("echo mine > /etc/hosts; echo x > /x; rm -rf /srv; mkdir /srv; echo a > /srv/a")
    file = snapshot(instance, glance)
    lower, upper = layers(file)
    for member in [*lower, *upper]:
        assert member.uid < 65536 and member.gid < 65536
        assert not any("overlay" in key or "trusted" in key for key in member.pax_headers)
    names = [member.name for member in upper]
    assert {"x", "etc/hosts", "config-drive/changed"} <= set(names)
    for name in ("etc/hostname", "etc/machine-id", "etc/resolv.conf", "config-drive/secret"):
        assert name not in names
    copy = boot(service, made, file, hostname="of-the-second")
    assert copy.sh("hostname; cat /etc/machine-id") == f"of-the-second\n{copy.id.replace('-', '')}"
    assert "192.0.2.53" not in copy.sh("cat /etc/resolv.conf 2>/dev/null || true")


@pytest.mark.parametrize("form", ["docker-archive", "rootfs-tar"])
def test_another_host_boots_it_and_the_other_disks_are_not_in_it(
    service, spawn, glance, runtime, lxcfs, form
):
    instance = spawn(flavor={"ephemeral_gb": 1})
    instance.sh("chown 33:33 /srv 2>/dev/null || mkdir /srv; echo mine > /srv/mine; echo x > /mnt/scratch")
    owners = instance.sh("stat -c '%n %u %g %a' / /srv /srv/mine /tmp")
    file = snapshot(instance, glance, format=form)
    other = Service(runtime, lxcfs.mount_point)
    try:
        other.start()
        copy = other.spawn(other.import_image(file))
        assert copy.sh("cat /srv/mine; ls /mnt") == "mine"
        assert copy.sh("stat -c '%n %u %g %a' / /srv /srv/mine /tmp") == owners
    finally:
        left = other.close()
    assert not left, "\n".join(left)


#: mv(1) would copy what cannot be renamed.
RENAME = "perl -e 'rename($ARGV[0], $ARGV[1]) or die \"$!\\n\"' "
SHARE = "find /usr/old-share -type f -exec sha256sum {} + | sed s/old-// | sort"


@pytest.mark.parametrize("form", ["docker-archive", "rootfs-tar"])
def test_a_directory_of_the_image_that_was_renamed_is_whole(service, debian, glance, made, form):
    """Renamed as on a machine's disk, in a boot after it too, and in what boots from a snapshot of it."""
    made.append(service.spawn(debian, flavor={"memory_mb": 300, "root_gb": 2}))
    instance = made[-1]
    before = instance.sh(SHARE.replace("old-", "", 1))
    assert before.count("\n") > 100
    instance.sh(f"{RENAME} /usr/share /usr/old-share && {RENAME} /usr/old-share/doc /srv/doc")
    instance.sh("mkdir /usr/share && echo new > /usr/share/new && echo more > /usr/old-share/more")
    instance.sh(f"{RENAME} /srv/doc /usr/old-share/doc && rm /usr/old-share/more")
    instance.action("reboot", type="HARD")
    assert instance.sh(SHARE) == before
    assert instance.sh("ls /usr/share") == "new"
    file = snapshot(instance, glance, format=form)
    copy = boot(service, made, file, flavor={"memory_mb": 300, "root_gb": 2})
    assert copy.sh(SHARE) == before
    assert copy.sh("ls /usr/share") == "new"
    copy.sh(f"{RENAME} /usr/old-share /usr/share.again")


@pytest.mark.each_runtime
def test_an_application_starts_as_its_image_says(service, application, glance, made):
    instance = service.spawn(application)
    made.append(instance)
    instance.wait_console("hello from")
    file = snapshot(instance, glance)
    config = json.load(
        archive(file).extractfile(json.load(archive(file).extractfile("manifest.json"))[0]["Config"])
    )
    assert len(config["rootfs"]["diff_ids"]) == 3
    copy = boot(service, made, file)
    copy.wait_console("user www, in /srv/www")
    assert copy.run("cat", "/srv/www/draft.html").returncode != 0


def test_in_every_state(service, instance, glance, made):
    instance.sh("echo of it > /mark; sync")
    for verb, back, body in [
        ("pause", "unpause", {}),
        ("suspend", "resume", {}),
        ("quiesce", "unquiesce", {}),
        ("stop", "start", {"timeout": 0}),
    ]:
        instance.action(verb, **body)
        before = instance.get()
        file = snapshot(instance, glance)
        after = instance.get()
        for key in ("power_state", "quiesced", "task_state"):
            assert after[key] == before[key], (verb, key)
        with layers(file)[-1] as upper:
            assert upper.extractfile("mark").read() == b"of it\n", verb
        instance.action(back)
    instance.sh("echo on > /on")


def test_it_runs_and_may_go_while_its_image_is_sent(service, busybox_file, glance):
    image = service.import_image(busybox_file)
    instance = service.spawn(image)
    instance.sh("dd if=/dev/urandom of=/noise bs=1M count=20 2>/dev/null")
    glance.hold.clear()
    target = str(uuid.uuid4())
    answer = service.client.post(
        f"{instance.path}/snapshot", glance.to(target), headers={"Prefer": "respond-async"}
    )
    assert answer.status == 202
    assert glance.begun.wait(30)
    instance.sh("echo more > /more", timeout=20)
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    glance.hold.set()
    operation = f"/v1/operations/{answer.json()['id']}?wait=60"
    ended = service.client.get(operation, timeout=90)
    assert (ended["status"], ended["fault"]) == ("succeeded", None)
    lower, upper = layers(glance.file(target))
    assert upper.getmember("noise").size == 20 << 20
    assert "more" not in upper.getnames()
    assert "bin/busybox" in lower.getnames()


@pytest.mark.parametrize(
    "status,code",
    [
        (401, "glance-forbidden"),
        (404, "glance-forbidden"),
        (409, "glance-unavailable"),
        (413, "glance-unavailable"),
        (500, "glance-unavailable"),
    ],
)
def test_a_refusal_leaves_nothing(service, instance, glance, status, code):
    glance.status = status
    instance.sh("dd if=/dev/urandom of=/noise bs=1M count=5 2>/dev/null")
    with pytest.raises(Fault) as fault:
        snapshot(instance, glance)
    assert fault.value.code == code
    assert TOKEN not in str(fault.value)
    assert TOKEN not in service.log.read_text()
    instance.sh("echo on > /on", timeout=20)
    assert not left_behind(service)


def test_a_broken_connection_is_no_image(service, instance, glance):
    glance.break_after = 1 << 20
    instance.sh("dd if=/dev/urandom of=/noise bs=1M count=20 2>/dev/null")
    with pytest.raises(Fault) as fault:
        snapshot(instance, glance)
    assert fault.value.code == "glance-unavailable"
    assert not left_behind(service)


def test_bad_destinations_are_named(instance, glance):
    good = glance.to(str(uuid.uuid4()))["destination"]
    for change, field in [
        ({"endpoint": "ftp://x"}, "destination.endpoint"),
        ({"token": ""}, "destination.token"),
        ({"image_id": "x"}, None),
        ({"type": "file"}, None),
        ({"more": 1}, None),
    ]:
        with pytest.raises(Fault) as fault:
            instance.action("snapshot", destination=good | change)
        assert fault.value.code == "invalid-input", change
        assert field is None or fault.value.field == field
    assert not glance.begun.is_set()


def test_a_killed_service_leaves_nothing(service, instance, glance):
    glance.hold.clear()
    instance.sh("dd if=/dev/urandom of=/noise bs=1M count=20 2>/dev/null")
    service.client.post(
        f"{instance.path}/snapshot", glance.to(str(uuid.uuid4())), headers={"Prefer": "respond-async"}
    )
    assert glance.begun.wait(30)
    service.kill()
    glance.hold.set()
    (service.state_dir / "instances" / instance.id / "root.copy").write_bytes(b"rest")
    service.start()
    assert instance.state == "RUNNING"
    instance.sh("echo on > /on", timeout=20)
    assert not left_behind(service)


#: Each number is written after the one before was on the disk; a file's name is its content's hash.
LOAD = """
(i=0; while :; do i=$((i+1)); echo $i > /a; sync; echo $i > /b; sync; done) >/dev/null 2>&1 &
(while :; do
    dd if=/dev/urandom of=/new bs=1M count=4 2>/dev/null; sum=$(md5sum < /new | cut -c1-32)
    old=$(ls /sum-* 2>/dev/null); mv /new /sum-$sum; rm -f $old
done) >/dev/null 2>&1 &
"""


def test_consistent_under_load(service, instance, glance, made):
    instance.sh("dd if=/dev/urandom of=/much bs=1M count=100 2>/dev/null")
    instance.sh(LOAD)
    time.sleep(1)
    for _ in range(3):
        with layers(snapshot(instance, glance))[-1] as upper:
            first, second = (int(upper.extractfile(name).read() or 0) for name in ("a", "b"))
            summed = [name for name in upper.getnames() if name.startswith("sum-")]
            found = [hashlib.md5(upper.extractfile(name).read()).hexdigest() for name in summed]
        assert first - second in (0, 1)
        assert summed == [f"sum-{digest}" for digest in found] != []
    # While most of it was copied the instance went on writing; what it wrote came after.
    changed = re.findall(rf"instance={instance.id} frozen.* changed=(\d+)", service.log.read_text())
    assert len(changed) == 3
    assert shares_extents(service.state_dir) or any(int(count) for count in changed)


def shares_extents(directory: Path) -> bool:
    file = directory / "reflink"
    file.write_bytes(b"x" * 4096)
    try:
        command = ["cp", "--reflink=always", file, directory / "reflinked"]
        return subprocess.run(command, capture_output=True).returncode == 0
    finally:
        file.unlink()
        (directory / "reflinked").unlink(missing_ok=True)


def frozen(service) -> list[float]:
    """Milliseconds for which snapshots held the disk, oldest first."""
    return [int(us) / 1000 for us in re.findall(r"frozen_us=(\d+)", service.log.read_text())]


def test_where_the_host_shares_extents_the_copy_takes_no_time(runtime, lxcfs, busybox_file, glance, tmp_path):
    """1 GB in the instance, on xfs: the disk is held for the flush of the journal only."""
    disk, point = Path(f"/var/tmp/berth-xfs-{os.getpid()}"), Path(f"/var/tmp/berth-xfs-{os.getpid()}.d")
    with contextlib.ExitStack() as stack:
        subprocess.run(["truncate", "-s", "8G", disk], check=True)
        stack.callback(disk.unlink)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
        point.mkdir()
        stack.callback(point.rmdir)
        # Past the page cache: else the kernel charges the instance for the host's copy of what it writes.
        attach = ["losetup", "--direct-io=on", "--find", "--show", disk]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "-d", device], check=True)
        subprocess.run(["mount", device, point], check=True)
        stack.callback(subprocess.run, ["umount", "-l", point], check=True)
        point.chmod(0o755)
        service = Service(runtime, lxcfs.mount_point, base=point / "b")
        stack.callback(service.close)
        service.start()
        instance = service.spawn(service.import_image(busybox_file), flavor={"root_gb": 3})
        instance.sh("dd if=/dev/zero of=/zeros bs=1M count=1024 2>/dev/null", timeout=120)
        file = snapshot(instance, glance)
        with layers(file)[-1] as upper:
            assert upper.getmember("zeros").size == 1 << 30
        print("frozen, ms:", frozen(service))
        assert frozen(service)
        copies = wait_for("the copy to go", lambda: not left_behind(service))
        assert copies
