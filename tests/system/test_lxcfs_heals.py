"""An lxcfs that ends and is started again: instances have their /proc files again by themselves."""

from __future__ import annotations

import pytest
from harness import Lxcfs, Service, wait_for

pytestmark = pytest.mark.each_runtime

FILES = [f"/proc/{name}" for name in ("cpuinfo", "loadavg", "meminfo", "stat", "swaps", "uptime")]
FILES.append("/sys/devices/system/cpu/online")
#: A small one that is to see its own memory.
FLAVOR = {"vcpus": 1, "memory_mb": 96}


@pytest.fixture(scope="module")
def lxcfs():
    """One of the module's own, which may be killed."""
    file_system = Lxcfs()
    yield file_system
    file_system.close()


@pytest.fixture(autouse=True)
def runs(lxcfs):
    yield
    lxcfs.be_there()


def has_its_own(instance) -> bool:
    total = instance.run("awk", "/^MemTotal/ {print $2}", "/proc/meminfo").stdout.strip()
    return total == str(96 * 1024) and instance.run("cat", *FILES).returncode == 0


def wait_until_its_own(instance) -> None:
    wait_for("its own /proc files", lambda: has_its_own(instance))


def test_a_running_instance_is_mended_and_it_is_told(service, spawn, lxcfs):
    instance = spawn(flavor=FLAVOR)
    assert has_its_own(instance)
    for _ in range(2):
        with service.client.events() as events:
            lxcfs.kill()
            assert instance.run("cat", "/proc/meminfo").returncode != 0
            told = (event["kind"] for event in events if event["instance_id"] == instance.id)
            assert next(told) == "lxcfs_lost"
            assert "ALERT: lxcfs does not answer" in service.log_tail()
            lxcfs.be_there()
            assert next(told) == "lxcfs_restored"
        assert has_its_own(instance)
    # What is new can be written as little as what was.
    assert instance.run("/bin/sh", "-c", "echo 1 > /sys/devices/system/cpu/online").returncode != 0


def test_a_restart_between_two_looks_is_seen(spawn, lxcfs):
    instance = spawn(flavor=FLAVOR)
    lxcfs.kill()
    lxcfs.be_there()
    wait_until_its_own(instance)


def test_programs_with_mounts_of_their_own_are_mended_too(spawn, debian, lxcfs):
    """As systemd's services have them: nothing comes to them of what is mounted elsewhere."""
    instance = spawn(image=debian, flavor={"vcpus": 1, "memory_mb": 300, "root_gb": 2})
    wait_for("systemd", lambda: instance.run("systemctl", "is-system-running", "--wait").returncode == 0)
    instance.sh("systemd-run --unit own -p PrivateTmp=yes sleep infinity")
    lxcfs.kill()
    lxcfs.be_there()
    inside = 'nsenter -m -t "$(systemctl show -P MainPID own)" grep MemTotal /proc/meminfo'
    wait_for("its /proc", lambda: str(300 * 1024) in instance.run("/bin/sh", "-c", inside).stdout)


def test_one_started_without_it_has_it_later(service, spawn, lxcfs):
    lxcfs.kill()
    instance = spawn(flavor=FLAVOR)
    assert "it starts without what lxcfs shows" in service.log_tail()
    assert not has_its_own(instance)
    lxcfs.be_there()
    wait_until_its_own(instance)


def test_a_reboot_from_inside_without_it(spawn, lxcfs):
    instance = spawn(flavor=FLAVOR)
    lxcfs.kill()
    instance.go_down("reboot")
    wait_for("the boot", lambda: instance.get()["guest_reboots"] == 1)
    lxcfs.be_there()
    wait_until_its_own(instance)
    instance.go_down("reboot")
    wait_for("the boot", lambda: instance.get()["guest_reboots"] == 2)
    assert has_its_own(instance)


def test_a_service_that_was_away_meanwhile(service, spawn, lxcfs):
    instance = spawn(flavor=FLAVOR)
    service.stop()
    lxcfs.kill()
    lxcfs.be_there()
    service.start()
    wait_until_its_own(instance)


def test_what_the_instance_put_there_stays_and_no_link_is_followed(service, spawn, lxcfs):
    instance, other = spawn(flavor=FLAVOR), spawn(flavor=FLAVOR)
    instance.sh("echo mine > /tmp/mine; mount --bind /tmp/mine /proc/meminfo")
    # A tree of links in place of /proc, to a file that must not be covered.
    instance.sh(
        """
        mkdir /tmp/proc; ln -s /etc/passwd /tmp/proc/uptime; ln -s /etc /tmp/proc/stat
        {
            mount --bind /tmp/proc /proc; touch /tmp/there
            while [ -e /tmp/there ]; do sleep 0.1; done
            cat /etc/passwd > /tmp/passwd; umount /proc; cat /proc/meminfo > /tmp/meminfo; touch /tmp/done
        } > /dev/null 2>&1 &
        until [ -e /tmp/there ]; do sleep 0.1; done
        """
    )
    lxcfs.kill()
    lxcfs.be_there()
    wait_until_its_own(other)
    # Nobody can be sent inside without a /proc there.
    temporary = service.run_dir / "i" / instance.id / "rootfs/tmp"
    (temporary / "there").unlink()
    wait_for("what it sees", (temporary / "done").exists)
    assert "root:" in (temporary / "passwd").read_text()
    assert (temporary / "meminfo").read_text() == "mine\n"
    assert " /etc" not in instance.sh("cat /proc/self/mounts")


def test_a_start_without_it_is_refused_where_the_operator_says_so(runtime, lxcfs, busybox_file):
    service = Service(runtime, lxcfs.mount_point, settings={"instances": {"lxcfs_required": True}})
    try:
        service.start()
        image = service.import_image(busybox_file)
        instance = service.define(image, flavor=FLAVOR)
        lxcfs.kill()
        said = service.run_berth("start", instance.id)
        assert said.returncode != 0
        assert "instances.lxcfs_required" in said.stderr, said
        assert instance.state == "SHUTDOWN"
        lxcfs.be_there()
        instance.action("start")
        assert has_its_own(instance)
        # From inside, it is the instance's reboot and not a start.
        lxcfs.kill()
        instance.go_down("reboot")
        wait_for("the boot", lambda: instance.get()["guest_reboots"] == 1)
        service.delete_everything()
    finally:
        left = service.close()
    assert not left, left
