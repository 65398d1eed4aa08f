"""One file, booted twice: as a machine in QEMU (software emulation), and on berth.

The file has the shape of a cloud's image (`scripts/image-disk`), and both find
the same config drive. Slow: `make test-disk`.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import uuid
from pathlib import Path

import disklib
import pytest
from harness import ROOT, wait_for

FLAVOR = {"vcpus": 2, "memory_mb": 1024, "root_gb": 4}
#: Emulation takes a minute or two on an idle machine.
PATIENCE = 1800
#: The versions of a config drive by which cloud-init knows one.
VERSIONS = ("latest", "2018-08-27")


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def config_drive(key: Path, name: str, network: dict) -> dict[str, str]:
    """What Nova writes on a config drive, by path: a key, a name, one interface."""
    public = key.with_suffix(".pub").read_text()
    link = {"id": "port", "type": "phy", "ethernet_mac_address": network.pop("mac"), "mtu": 1500}
    networks = [{"id": "network", "link": "port"} | network]
    documents = {
        "meta_data.json": {"uuid": str(uuid.uuid4()), "hostname": name, "public_keys": {"key": public}},
        "network_data.json": {"links": [link], "networks": networks, "services": []},
    }
    return {
        f"openstack/{version}/{document}": json.dumps(content)
        for version in VERSIONS
        for document, content in documents.items()
    }


def log_in(key: Path, address: str, port: int, command: str) -> str:
    """What a command says to who logs in as the image's user; empty when nobody can."""
    ssh = [
        "ssh", "-i", key, "-p", str(port), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", f"debian@{address}", command,
    ]  # fmt: skip
    return subprocess.run(ssh, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_it_boots_as_a_machine(disk, key, tmp_path):
    mac = "52:54:00:12:34:56"
    for path, content in config_drive(key, "cloud-1", {"mac": mac, "type": "ipv4_dhcp"}).items():
        (tmp_path / "drive" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drive" / path).write_text(content)
    drive = disklib.ext(tmp_path / "drive.img", "2M", tmp_path / "drive", "-L", "config-2")
    console, port = tmp_path / "console", free_port()
    command = [
        ROOT / "scripts/qemu", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "2",
        "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{console}",
        "-netdev", f"user,id=port,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", f"virtio-net-pci,netdev=port,mac={mac}",
        "-drive", f"file={disk},format=qcow2,if=virtio,snapshot=on",
        "-drive", f"file={drive},format=raw,if=virtio,readonly=on",
    ]  # fmt: skip
    begun = time.monotonic()
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def said() -> str:
        assert machine.poll() is None, console.read_text(errors="replace")[-3000:]
        return log_in(
            key, "127.0.0.1", port, "hostname; findmnt -no FSTYPE /; systemd-detect-virt --container"
        )

    try:
        assert wait_for("a login", said, PATIENCE).split() == ["cloud-1", "ext4", "none"]
        print(f"machine: {time.monotonic() - begun:.1f} s to the first login")
        # SSH may be there first.
        wait_for("a prompt", lambda: "cloud-1 login:" in console.read_text(errors="replace"), PATIENCE)
    finally:
        machine.kill()
        machine.wait()


def test_it_boots_on_berth(service, disk, key):
    image = service.import_image(disk)
    shown = service.client.get(f"/v1/images/{image}")
    assert (shown["format"], shown["config"]["init"]) == ("qcow2", "systemd")
    vif = service.vif()
    address = vif["addresses"][0].split("/")[0]
    network = {"mac": vif["address"], "type": "ipv4", "ip_address": address, "netmask": "255.255.255.0"}
    files = [
        {"path": f"/config-drive/{path}", "content": base64.b64encode(content.encode()).decode()}
        for path, content in config_drive(key, "cloud-1", network).items()
    ]
    begun = time.monotonic()
    instance = service.spawn(
        image, flavor=FLAVOR, hostname="cloud-1", vifs=[vif], files=files,
        environment={"product_name": "OpenStack Nova"},
    )  # fmt: skip

    def said() -> str:
        return log_in(key, address, 22, "hostname; findmnt -no FSTYPE /; systemd-detect-virt --container")

    assert wait_for("a login", said, 300).split()[:2] == ["cloud-1", "overlay"]
    print(f"berth: {time.monotonic() - begun:.1f} s to the first login")

    def state() -> str:
        return instance.run("systemctl", "is-system-running", "--wait").stdout.strip()

    assert wait_for("systemd", state, 300) == "running", instance.sh("systemctl --failed --no-legend")
    assert instance.sh("cloud-init status").strip() == "status: done"
    masked = instance.sh("systemctl list-unit-files --state=masked-runtime --no-legend")
    assert "grub-common.service" in masked
    assert "systemd-remount-fs.service" in masked
    # The image has none of this: it is for as long as systemd runs.
    assert instance.sh("ls /etc/systemd/system | grep -c grub || true") == "0"
    assert instance.sh("stat -c '%a %u' /usr/bin/sudo") == "4755 0"
    assert "cloud-1 login:" in instance.wait_console("login:", 120)
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
