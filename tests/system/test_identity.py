"""Hostname, hosts, resolver, machine id, injected files, environment."""

import base64
import json

import pytest
from harness import Fault


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


def kept_beside_the_disk(service, instance) -> dict[str, bytes]:
    """All that the service keeps and says of an instance, but for its disk and what is mounted."""
    places = [service.state_dir / "instances" / instance.id, service.run_dir / "i" / instance.id]
    found = [path for place in places for path in place.rglob("*") if not {"rootfs", "disk"} & {*path.parts}]
    own = [path for path in found if path.is_file() and path.stat().st_dev == path.parent.stat().st_dev]
    kept = {str(path): path.read_bytes() for path in own if path.suffix != ".disk"}
    paths = (instance.path, "/v1/instances", "/v1/operations")
    kept |= {path: service.client.request("GET", path).body for path in paths}
    return kept | {"log": service.log.read_bytes()}


def test_what_is_in_injected_files_is_kept_nowhere_else(spawn, service):
    """Not with the instance, not in an answer, not in the log; nor after a restart of the service."""
    password = b"a-passw0rd-of-adm1n"
    content = base64.b64encode(password).decode()
    instance = spawn(files=[{"path": "/root/secret", "content": content}])
    assert instance.sh("cat /root/secret") == password.decode()

    def check():
        kept = kept_beside_the_disk(service, instance)
        assert any(path.endswith("record.json") for path in kept)
        assert "files" not in instance.get()
        told = [path for path, text in kept.items() if password in text or content.encode() in text]
        assert not told

    check()
    # The same body is the same instance still, and another's is another's.
    service.client.put(instance.path, instance.definition)
    other = base64.b64encode(b"another").decode()
    with pytest.raises(Fault) as fault:
        service.client.put(
            instance.path, instance.definition | {"files": [{"path": "/root/secret", "content": other}]}
        )
    assert fault.value.code == "instance-exists"
    service.stop()
    # As an earlier version left it.
    record = service.state_dir / "instances" / instance.id / "record.json"
    fields = json.loads(record.read_text())
    fields["definition"]["files"] = instance.definition["files"]
    del fields["seal_key"], fields["written_files"]
    record.write_text(json.dumps(fields))
    service.start()
    check()
    assert json.loads(record.read_text())["written_files"][0]["path"] == "/root/secret"
    assert instance.sh("cat /root/secret") == password.decode()


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
