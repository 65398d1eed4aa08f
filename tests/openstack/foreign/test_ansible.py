"""Ansible, as Debian has it: against a server, and its openstack.cloud collection against the cloud."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud.place import CLOUDS, KEY, ROOT
from helpers import SSH_OPTIONS, eventually, server, ssh

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
    """Runs a playbook on a server; how many tasks were ok, changed, failed."""
    options = " ".join(f"-o{option}" for option in SSH_OPTIONS)
    words = ["-u", "debian", "--private-key", KEY, "--ssh-common-args", options]
    return _play(name, address, words, home, "/usr/bin/python3", variables)


def play_cloud(name: str, home: Path, **variables: Any) -> dict[str, int]:
    """Runs a playbook of the cloud's modules, as the demo user."""
    interpreter = str(ROOT / "target/venv-ansible/bin/python")
    return _play(name, "cloud", ["--connection", "local"], home, interpreter, variables)


def _play(
    name: str, host: str, words: list[Any], home: Path, interpreter: str, variables: dict[str, Any]
) -> dict[str, int]:
    command = ["ansible-playbook", PLAYBOOKS / name, "-i", f"{host},", "-e", json.dumps(variables), *words]
    environment = {
        **os.environ,
        "HOME": str(home),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PYTHON_INTERPRETER": interpreter,
        "LC_ALL": "C.UTF-8",
        "OS_CLIENT_CONFIG_FILE": str(CLOUDS),
        "OS_CLOUD": "devstack",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["stats"][host]


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


@pytest.fixture
def tidy(tmp_path: Path) -> Iterator[None]:
    """Nothing of the tenant's is there, before and afterwards."""
    play_cloud("gone.yaml", tmp_path)
    yield
    play_cloud("gone.yaml", tmp_path)


@pytest.mark.usefixtures("tidy")
def test_the_collection_makes_changes_and_rebuilds_and_then_finds_nothing_to_do(
    demo: Any, tmp_path: Path
) -> None:
    first = {"key": f"{KEY}.pub", "description": "first", "ports": [22], "meta": {"a": "1"}}
    other = {**first, "description": "other", "ports": [22, 80], "meta": {"a": "2", "b": "3"}}
    assert play_cloud("cloud.yaml", tmp_path, **first)["changed"] == 11
    assert play_cloud("cloud.yaml", tmp_path, **first)["changed"] == 0
    made = demo.compute.find_server("by-ansible")
    outside = next(demo.network.ips(fixed_ip_address="10.83.0.20")).floating_ip_address
    assert ssh("root", outside, "hostname").strip() == "by-ansible"
    assert play_cloud("cloud.yaml", tmp_path, **other)["changed"] == 3
    assert play_cloud("cloud.yaml", tmp_path, **other)["changed"] == 0

    play_cloud("actions.yaml", tmp_path)
    now = demo.compute.get_server(made.id)
    assert now.image.id == demo.image.find_image("tempest-alt").id
    assert now.metadata == {"a": "2", "b": "3", "told": "later"}
    assert ssh("root", outside, "hostname").strip() == "by-ansible"

    assert play_cloud("gone.yaml", tmp_path)["changed"] == 8
    assert play_cloud("gone.yaml", tmp_path)["changed"] == 0
    assert demo.compute.find_server(made.id) is None
    eventually("its address to be gone", lambda: not list(demo.network.ips(floating_ip_address=outside)))
