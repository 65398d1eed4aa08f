"""Hostname, hosts, resolver, machine id, injected files, environment."""

import base64

import pytest


@pytest.mark.each_runtime
def test_the_hostname_is_the_requests(spawn):
    instance = spawn(hostname="harbour-1")
    assert instance.sh("hostname") == "harbour-1"
    assert instance.sh("cat /etc/hostname") == "harbour-1"


def test_the_hostname_is_made_of_the_name_when_absent(spawn):
    instance = spawn(name="My server_7")
    name = instance.sh("hostname")
    assert name and all(c.isalnum() or c in "-." for c in name), name


def test_hosts_name_the_instance_and_localhost(spawn, service):
    vif = service.vif()
    instance = spawn(hostname="harbour-2", vifs=[vif])
    hosts = [line.split() for line in instance.sh("cat /etc/hosts").splitlines()]
    assert ["127.0.0.1", "localhost"] in [line[:2] for line in hosts]
    assert any("harbour-2" in line[1:] for line in hosts)
    assert instance.sh("ping -c 1 -w 5 localhost >/dev/null && echo yes") == "yes"


def test_the_resolver_is_the_requests(spawn):
    dns = {"nameservers": ["192.0.2.53", "2001:db8::53"], "search": ["example.org"]}
    lines = spawn(dns=dns).sh("cat /etc/resolv.conf").splitlines()
    assert "nameserver 192.0.2.53" in lines
    assert "nameserver 2001:db8::53" in lines
    assert "search example.org" in lines


def test_the_machine_id_is_the_instances_own_and_stays(spawn):
    first, second = spawn(), spawn()
    identity = first.sh("cat /etc/machine-id")
    assert identity == first.id.replace("-", "")
    assert identity != second.sh("cat /etc/machine-id")
    first.action("reboot", type="HARD")
    assert first.sh("cat /etc/machine-id") == identity


def test_injected_files_have_content_mode_and_owner(spawn):
    def file(path, content, **fields):
        return {"path": path, "content": base64.b64encode(content).decode()} | fields

    instance = spawn(
        files=[
            file("/etc/motd", b"ahoy\n"),
            file("/opt/deep/in/tool", b"#!/bin/sh\necho tool\n", mode=0o755),
            file("/root/bytes", bytes(range(256)), mode=0o600),
        ]
    )
    assert instance.sh("cat /etc/motd") == "ahoy"
    assert instance.sh("/opt/deep/in/tool") == "tool"
    assert instance.sh("stat -c '%a %u %g' /root/bytes /etc/motd") == "600 0 0\n644 0 0"
    assert instance.sh("sha256sum < /root/bytes").split()[0] == (
        "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
    )


def test_injected_files_are_written_once(spawn):
    content = base64.b64encode(b"first\n").decode()
    instance = spawn(files=[{"path": "/etc/motd", "content": content}])
    instance.sh("echo changed > /etc/motd")
    instance.action("reboot", type="HARD")
    assert instance.sh("cat /etc/motd") == "changed"


@pytest.mark.each_runtime
@pytest.mark.parametrize("variable", ["container"])
def test_pid_1_knows_its_environment(spawn, variable):
    instance = spawn(environment={"COLOUR": "blue"})
    environment = instance.sh("tr '\\0' '\\n' < /proc/1/environ").splitlines()
    assert "COLOUR=blue" in environment
    assert any(line.startswith(f"{variable}=") for line in environment)
