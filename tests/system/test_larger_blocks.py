"""Instances with more ids than 65,536, where the operator gives them."""

from __future__ import annotations

import io
import itertools
import tarfile
import uuid

import pytest
from harness import Service

IDS = 1 << 20
pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def settings():
    return {"instances": {"id_map_size": IDS, "id_map_blocks": 8}}


@pytest.fixture(scope="module")
def owned_file(busybox_file, tmp_path_factory):
    """The small system image with files of users whom 16 bits do not hold."""
    path = tmp_path_factory.mktemp("image") / "image.tar"
    with tarfile.open(busybox_file) as whole, tarfile.open(path, "w") as made:
        for member in whole:
            made.addfile(member, whole.extractfile(member) if member.isreg() else None)
        for name, owner in (("srv/high", 70_000), ("srv/last", IDS - 1), ("srv/beyond", IDS)):
            member = tarfile.TarInfo(name)
            member.uid, member.gid, member.mode, member.size = owner, owner, 0o4750, 3
            made.addfile(member, io.BytesIO(b"of\n"))
    return path


SHOW = "stat -c '%n %u %g %a' /srv/high /srv/last /srv/beyond"
OWNED = "/srv/high 70000 70000 4750\n/srv/last 1048575 1048575 4750\n/srv/beyond 65534 65534 750"


def test_owners_are_the_images_and_a_snapshots(service, owned_file, made, glance):
    instance = service.spawn(service.import_image(owned_file))
    made.append(instance)
    assert instance.get()["id_map_size"] == IDS
    assert instance.sh("cat /proc/self/uid_map").split()[2] == str(IDS)
    assert instance.sh(SHOW) == OWNED
    instance.sh("touch /srv/mine && chown 900000:900001 /srv/mine")
    assert service.run_berth("exec", "--user", "70000", instance.id, "--", "id", "-u").stdout == "70000\n"
    beyond = service.run_berth("exec", "--user", str(IDS), instance.id, "--", "id")
    assert beyond.returncode != 0 and "instances.id_map_size" in beyond.stderr
    for form in ("docker-archive", "rootfs-tar"):
        image = str(uuid.uuid4())
        instance.action("snapshot", **glance.to(image, format=form))
        copy = service.spawn(service.import_image(glance.file(image)))
        made.append(copy)
        assert copy.sh(SHOW) == OWNED
        assert copy.sh("stat -c '%u %g' /srv/mine") == "900000 900001"


def test_users_above_65535(service, debian, made):
    instance = service.spawn(debian, flavor={"memory_mb": 300, "root_gb": 2})
    made.append(instance)
    instance.sh("groupadd -g 70001 high && useradd -m -u 70000 -g high high && passwd -d high")
    assert instance.sh("su high -c 'id -u && touch ~/mine && stat -c %u:%g ~/mine'") == "70000\n70000:70001"
    instance.action("reboot", type="HARD")
    assert instance.sh("stat -c %u /home/high/mine") == "70000"


def test_a_rescued_one_has_its_ids(service, busybox, owned_file, made):
    instance = service.spawn(service.import_image(owned_file))
    made.append(instance)
    instance.action("stop", timeout=0)
    instance.action("rescue", image_id=busybox)
    assert instance.sh("cd /mnt/instance && stat -c %u srv/high srv/last") == "70000\n1048575"
    instance.sh("chown 80000 /mnt/instance/srv/high")
    instance.action("unrescue")
    assert instance.sh("stat -c %u /srv/high") == "80000"


def test_blocks_of_before_and_after_a_change_do_not_meet(runtime, lxcfs, busybox_file, owned_file):
    service = Service(runtime, lxcfs.mount_point)
    try:
        service.start()
        image = service.import_image(busybox_file)
        before = service.spawn(image)
        # As ever where nobody gives more.
        plain = service.spawn(service.import_image(owned_file))
        assert plain.sh("stat -c '%u %a' /srv/high") == "65534 750"
        service.stop()
        service.settings["instances"] |= {"id_map_size": IDS, "id_map_blocks": 8}
        service.start()
        assert before.sh("echo here") == "here"
        before.action("reboot", type="HARD")
        assert before.get()["id_map_size"] == 65536
        after = service.spawn(image)
        blocks = sorted((i["id_map_first"], i["id_map_size"]) for i in service.instances())
        assert [size for _, size in blocks] == [65536, 65536, IDS]
        assert all(first + size <= other for (first, size), (other, _) in itertools.pairwise(blocks))
        assert after.sh("touch /high; chown 70000 /high; stat -c %u /high") == "70000"
        service.delete_everything()
    finally:
        left = service.close()
    assert not left, "\n".join(left)
