"""One file, booted twice: as a machine in QEMU (software emulation), and on berth.

The file has the shape of a cloud's image (`scripts/image-disk`). Slow: `make test-disk`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from harness import ROOT, wait_for

pytestmark = pytest.mark.one_runtime

FLAVOR = {"vcpus": 2, "memory_mb": 1024, "root_gb": 4}
#: Emulation takes a minute or two on an idle machine.
PATIENCE = 1800


@pytest.fixture(scope="module")
def disk() -> Path:
    made = subprocess.run([ROOT / "scripts/image-disk"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.splitlines()[-1])


def test_it_boots_as_a_machine(disk, tmp_path):
    console = tmp_path / "console"
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "2",
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
        assert "login:" in text, text[-3000:]
    finally:
        machine.kill()
        machine.wait()


def test_it_boots_on_berth(service, disk):
    image = service.import_image(disk)
    shown = service.client.get(f"/v1/images/{image}")
    assert (shown["format"], shown["config"]["init"]) == ("qcow2", "systemd")
    instance = service.spawn(image, flavor=FLAVOR, hostname="cloud-1")

    def state() -> str:
        return instance.run("systemctl", "is-system-running", "--wait").stdout.strip()

    assert wait_for("systemd", state, 300) == "running", instance.sh("systemctl --failed --no-legend")
    masked = instance.sh("systemctl list-unit-files --state=masked-runtime --no-legend")
    assert "grub-common.service" in masked
    assert "systemd-remount-fs.service" in masked
    # The image has none of this: it is for as long as systemd runs.
    assert instance.sh("ls /etc/systemd/system | grep -c grub || true") == "0"
    assert instance.sh("stat -c '%a %u' /usr/bin/sudo") == "4755 0"
    assert "login:" in instance.wait_console("login:", 120)
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
