"""Ansible, as Debian has it, against a server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cloud.place import KEY
from helpers import SSH_OPTIONS, server, ssh

PLAYBOOKS = Path(__file__).with_name("ansible")
CONTROL = """\
Package: berth-hello
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: a service that waits
"""
UNIT = """\
[Unit]
Description=Waits
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one package, whose service waits."""
    tree, made = tmp_path / "tree", tmp_path / "repository"
    unit = tree / "lib/systemd/system/berth-hello.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(CONTROL)
    made.mkdir()
    package = made / "berth-hello_1.0_all.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    entry = f"Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (made / "Packages").write_text(CONTROL + entry)
    return made


def play(name: str, address: str, home: Path, **variables: Any) -> dict[str, int]:
    """Runs a playbook; how many tasks were ok, changed, failed."""
    options = " ".join(f"-o{option}" for option in SSH_OPTIONS)
    words = [
        *("ansible-playbook", PLAYBOOKS / name, "-i", f"{address},", "-u", "debian"),
        *("--private-key", KEY, "-e", json.dumps(variables), "--ssh-common-args", options),
    ]
    environment = {
        **os.environ,
        "HOME": str(home),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["stats"][address]


def test_a_playbook_done_again_changes_nothing(demo: Any, repository: Path, tmp_path: Path) -> None:
    private = demo.network.find_network("private")
    with server(demo, "administered", private, image="debian", flavor="small") as made:
        address = made.access_ipv4
        ssh("debian", address, "cloud-init status --wait")
        known = {"repository": str(repository), "key": str(KEY.with_suffix(".pub"))}
        assert play("person.yaml", address, tmp_path, **known)["changed"] > 10
        assert play("person.yaml", address, tmp_path, **known)["changed"] == 0
        fixed = next(port["addr"] for port in made.addresses["private"])
        play("reboot.yaml", address, tmp_path, vcpus=1, memory_mb=512, fixed_address=fixed)
        # The user logs in by the key that it was given, and the service runs again.
        assert ssh("operator", address, "id -u; systemctl is-active berth-hello").split() == [
            "1500",
            "active",
        ]
