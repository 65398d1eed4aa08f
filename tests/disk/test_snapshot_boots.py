"""An instance of a cloud's disk image, snapshotted as a disk: that boots in QEMU, and on berth.

Slow: `make test-disk`.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path

import disklib
import pytest
from harness import ROOT, wait_for

pytestmark = pytest.mark.timeout(3600)

FLAVOR = {"vcpus": 2, "memory_mb": 1024, "root_gb": 4}
#: Emulation takes a minute or two on an idle machine.
PATIENCE = 1800
MARK = "of the instance"


def wait_until_up(instance) -> None:
    """All of systemd's jobs are done. Whether each ended well is of `test_cloud_image.py`."""

    def state() -> str:
        return instance.run("systemctl", "is-system-running", "--wait").stdout.strip()

    assert wait_for("systemd", state, 600) in ("running", "degraded")


def console_of_machine(disk: Path, console: Path) -> str:
    """What a machine of the disk shows until its login prompt."""
    command = [
        ROOT / "scripts/qemu", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "2",
        "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
        "-serial", f"file:{console}",
        "-drive", f"file={disk},format=qcow2,if=virtio,snapshot=on",
    ]  # fmt: skip
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        text = ""
        while "login:" not in text and machine.poll() is None and time.monotonic() < deadline:
            time.sleep(2)
            text = console.read_text(errors="replace") if console.exists() else ""
        return text
    finally:
        machine.kill()
        machine.wait()


def test_the_snapshot_boots_as_a_machine_and_on_berth(service, disk, glance, tmp_path):
    instance = service.spawn(service.import_image(disk), flavor=FLAVOR, hostname="first")
    wait_until_up(instance)
    kept = instance.sh("stat -c '%a %u %s' /usr/bin/sudo; sha256sum /boot/vmlinuz-*")
    instance.sh(f"echo '{MARK}' > /etc/issue; dd if=/dev/urandom of=/noise bs=1M count=64 2>/dev/null")
    noise = instance.sh("sha256sum < /noise")
    image = str(uuid.uuid4())
    begun = time.monotonic()
    instance.action("snapshot", **glance.to(image, format="qcow2"))
    made = glance.file(image)
    print(f"the snapshot took {time.monotonic() - begun:.0f} s and has {made.stat().st_size >> 20} MiB")
    disklib.qemu_img("check", "-f", "qcow2", made)
    instance.delete()

    text = console_of_machine(made, tmp_path / "console")
    assert "login:" in text, text[-3000:]
    assert MARK in text

    copy = service.spawn(service.import_image(made), flavor=FLAVOR, hostname="second")
    wait_until_up(copy)
    assert copy.sh("stat -c '%a %u %s' /usr/bin/sudo; sha256sum /boot/vmlinuz-*") == kept
    assert copy.sh("cat /etc/issue; sha256sum < /noise; hostname") == f"{MARK}\n{noise}\nsecond"
    copy.delete()
