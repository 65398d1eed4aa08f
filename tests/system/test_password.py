"""Passwords, set by the instance's own programs and seen by nobody else."""

import crypt
import subprocess
import threading
from pathlib import Path

import pytest
from harness import Fault

SECRET = 'correct horse:battery "staple" \N{SNOWMAN} $(id)'


def set_password(instance, user="root", password=SECRET):
    """Sets it; nothing comes back."""
    body = {"user": user, "password": password}
    answer = instance.service.client.post(f"{instance.path}/password", body)
    assert (answer.status, answer.body) == (204, b"")


def hash_of(instance, user="root"):
    """The user's password hash, wherever the instance keeps it."""
    for file in ("/etc/shadow", "/etc/passwd"):
        for line in instance.sh(f"cat {file} 2>/dev/null || true").splitlines():
            name, value = line.split(":")[:2]
            if name == user and value.startswith("$"):
                return value
    return None


@pytest.mark.each_runtime
def test_a_password_is_set_and_set_again(instance):
    set_password(instance)
    first = hash_of(instance)
    assert first.startswith(("$5$", "$6$"))
    assert crypt.crypt(SECRET, first) == first
    set_password(instance, password="another")
    assert crypt.crypt("another", hash_of(instance)) == hash_of(instance)
    set_password(instance, "www", "of www")
    assert crypt.crypt("of www", hash_of(instance, "www")) == hash_of(instance, "www")


def test_it_is_seen_nowhere(instance):
    marker = "p4ssw0rd-of-nobody"
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            for entry in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        if marker.encode() in (entry / name).read_bytes():
                            seen.append(entry)
                    except OSError:
                        pass

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(5):
            set_password(instance, password=marker)
        with pytest.raises(Fault) as fault:
            set_password(instance, "nobody-here", marker)
    finally:
        done.set()
        looking.join()
    assert not seen
    assert marker not in str(fault.value)
    base = instance.service.base
    records = [
        *base.glob("state/instances/*/*.json"),
        *base.glob("run/i/*/bundle/*"),
        *base.glob("run/i/*/*.log"),
    ]
    assert records
    for file in [instance.service.log, *records]:
        assert marker.encode() not in file.read_bytes(), file
    for path in ("/v1/operations", "/v1/instances"):
        assert marker.encode() not in instance.service.client.request("GET", path).body, path


def test_what_cannot_be_set_says_why(instance):
    for user, password, field in [
        ("", "x", "user"),
        ("a:b", "x", "user"),
        ("-root", "x", "user"),
        ("ro\not", "x", "user"),
        ("x" * 33, "x", "user"),
        ("root", "", "password"),
        ("root", "a\nb", "password"),
        ("root", "a\0", "password"),
        ("root", "x" * 512, "password"),
        ("nobody-here", "x", "user"),
    ]:
        with pytest.raises(Fault) as fault:
            set_password(instance, user, password)
        assert (fault.value.code, fault.value.field) == ("invalid-input", field), (user, password)
    assert hash_of(instance) is None


def test_an_instance_without_the_programs(spawn):
    instance = spawn()
    instance.sh("find /bin /sbin /usr -xdev -name '*passwd' -exec rm {} +")
    with pytest.raises(Fault) as fault:
        set_password(instance)
    assert (fault.value.status, fault.value.code) == (422, "instance-unsupported")
    instance.sh("echo '#!/bin/sh\nread line; echo no $line >&2; exit 3' > /bin/passwd; chmod 755 /bin/passwd")
    with pytest.raises(Fault) as fault:
        set_password(instance)
    assert fault.value.code == "instance-unsupported"
    assert "battery" not in fault.value.detail


def test_a_program_that_hangs_is_ended(spawn):
    instance = spawn()
    instance.sh(
        "rm -f $(which chpasswd); echo '#!/bin/sh\nexec sleep 7272' > /usr/sbin/chpasswd"
        " || { mkdir -p /usr/sbin; echo '#!/bin/sh\nexec sleep 7272' > /usr/sbin/chpasswd; };"
        " chmod 755 /usr/sbin/chpasswd"
    )
    with pytest.raises(Fault) as fault:
        set_password(instance)
    assert fault.value.code == "timeout"
    assert "7272" not in subprocess.run(["ps", "ax"], capture_output=True, text=True).stdout
    assert instance.state == "RUNNING"


def test_only_while_it_runs(instance):
    instance.action("pause")
    with pytest.raises(Fault) as fault:
        set_password(instance)
    assert fault.value.code == "instance-invalid-state"
    instance.action("unpause")
    instance.action("stop", timeout=0)
    with pytest.raises(Fault):
        set_password(instance)


def test_debian(service, debian):
    instance = service.spawn(debian)
    try:
        set_password(instance)
        assert crypt.crypt(SECRET, hash_of(instance)) == hash_of(instance)
    finally:
        instance.discard()
