"""Bad input: a fault that names the field, and nothing changed."""

import json
import uuid

import hoststate
import pytest
from harness import Fault, Service

UNKNOWN = str(uuid.UUID(int=7))


def check_problem(fault: Fault, status: int, code: str) -> None:
    """The body is RFC 9457's, with a stable code and a request id."""
    assert (fault.status, fault.code) == (status, code), fault
    assert fault.content_type.startswith("application/problem+json")
    assert fault.problem["type"] == f"urn:berth:fault:{code}"
    assert fault.problem["status"] == status
    assert fault.problem["title"]
    assert fault.problem["request_id"]
    assert fault.detail


@pytest.fixture
def unchanged(service):
    """Instances and the host are the same afterwards."""
    scope = service.scope()
    before = service.instances(), hoststate.snapshot(scope)
    yield
    assert service.instances() == before[0]
    assert hoststate.difference(before[1], hoststate.snapshot(scope)) == []


def body(busybox, **fields):
    flavor = {"vcpus": 1, "memory_mb": 64, "root_gb": 1}
    return {"name": "i-1", "image_id": busybox, "flavor": flavor} | fields


BAD_BODIES = [
    ({"name": ""}, "name"),
    ({"name": "x" * 256}, "name"),
    ({"name": "new\nline"}, "name"),
    ({"hostname": "-bad"}, "hostname"),
    ({"hostname": "x" * 65}, "hostname"),
    ({"hostname": "a_b"}, "hostname"),
    ({"image_id": "no-uuid"}, "image_id"),
    ({"flavor": {"vcpus": 1}}, "flavor"),
    ({"flavor": {"vcpus": -1, "memory_mb": 64, "root_gb": 1}}, "flavor.vcpus"),
    ({"flavor": {"vcpus": 1, "memory_mb": "64", "root_gb": 1}}, "flavor.memory_mb"),
    ({"flavour": {}}, "flavour"),
    ({"environment": {"": "x"}}, "environment"),
    ({"environment": {"A=B": "x"}}, "environment"),
    ({"environment": {"A": "nul\0"}}, "environment"),
    ({"command": []}, "command"),
    ({"dns": {"nameservers": ["here"]}}, "dns.nameservers[0]"),
    ({"dns": {"nameservers": ["192.0.2.1"], "search": ["two words"]}}, "dns.search[0]"),
    ({"files": [{"path": "relative", "content": ""}]}, "files[0].path"),
    ({"files": [{"path": "/a/../../etc/x", "content": ""}]}, "files[0].path"),
    ({"files": [{"path": "/x", "content": "not base64!"}]}, "files[0].content"),
    ({"files": [{"path": "/x", "content": "", "mode": 65535}]}, "files[0].mode"),
    ({"files": [{"path": "/proc/sys/kernel/core_pattern", "content": ""}]}, "files[0].path"),
]


@pytest.mark.parametrize("fields,field", BAD_BODIES, ids=[str(f)[:50] for f, _ in BAD_BODIES])
def test_a_bad_definition(service, busybox, unchanged, fields, field):
    with pytest.raises(Fault) as fault:
        service.client.put(f"/v1/instances/{uuid.uuid4()}", body(busybox, **fields))
    check_problem(fault.value, 400, "invalid-input")
    assert fault.value.field is not None
    assert fault.value.field == field or fault.value.field.startswith((f"{field}.", f"{field}["))


def test_an_unknown_image(service, unchanged):
    with pytest.raises(Fault) as fault:
        service.client.put(f"/v1/instances/{uuid.uuid4()}", body(UNKNOWN))
    check_problem(fault.value, 404, "image-not-found")


UNKNOWN_THINGS = [
    ("GET", f"/v1/instances/{UNKNOWN}", "instance-not-found"),
    ("POST", f"/v1/instances/{UNKNOWN}/start", "instance-not-found"),
    ("GET", f"/v1/instances/{UNKNOWN}/console/output", "instance-not-found"),
    ("GET", f"/v1/instances/{UNKNOWN}/stats", "instance-not-found"),
    ("GET", f"/v1/images/{UNKNOWN}", "image-not-found"),
    ("GET", f"/v1/operations/{UNKNOWN}", "operation-not-found"),
    ("GET", "/v1/nothing", "not-found"),
    ("GET", "/", "not-found"),
]


@pytest.mark.parametrize("method,path,code", UNKNOWN_THINGS)
def test_what_is_not_there(service, unchanged, method, path, code):
    with pytest.raises(Fault) as fault:
        service.client.request(method, path, {} if method == "POST" else None)
    check_problem(fault.value, 404, code)


def test_ids_that_are_none(service, unchanged):
    for bad in ("x", "..%2f..%2fetc", "1" * 200, UNKNOWN + "0"):
        with pytest.raises(Fault) as fault:
            service.client.get(f"/v1/instances/{bad}")
        assert fault.value.status in (400, 404)


def test_a_wrong_method(service, unchanged):
    with pytest.raises(Fault) as fault:
        service.client.request("PATCH", f"/v1/instances/{UNKNOWN}", {})
    check_problem(fault.value, 405, "method-not-allowed")


@pytest.mark.parametrize(
    "content,kind,status",
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"name": "' + b"x" * (32 << 20) + b'"}', "application/json", 413),
        (b"[" * 100_000, "application/json", 400),
    ],
    ids=["empty", "half", "array", "bytes", "type", "large", "deep"],
)
def test_a_body_that_is_none(service, unchanged, content, kind, status):
    try:
        service.client.put(f"/v1/instances/{UNKNOWN}", content, headers={"Content-Type": kind})
    except Fault as fault:
        assert fault.status == status, fault
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413, "the connection broke"  # refused before it was read to its end
    else:
        raise AssertionError("accepted")
    assert service.client.get("/v1/host")


@pytest.mark.parametrize(
    "action,fields,field",
    [
        ("stop", {"timeout": -1}, "timeout"),
        ("stop", {"timeout": 3601}, "timeout"),
        ("stop", {"time": 3}, "time"),
        ("reboot", {}, "type"),
        ("reboot", {"type": "soft"}, "type"),
        ("reboot", {"type": "SOFT", "timeout": 1e9}, "timeout"),
        ("resize", {}, "flavor"),
    ],
)
def test_a_bad_action(instance, action, fields, field):
    pid = instance.get()["pid"]
    with pytest.raises(Fault) as fault:
        instance.action(action, **fields)
    check_problem(fault.value, 400, "invalid-input")
    assert field in (fault.value.field or fault.value.detail)
    assert instance.get()["pid"] == pid


@pytest.mark.parametrize(
    "source",
    [
        {"type": "file", "path": "relative"},
        {"type": "file", "path": "/does/not/exist"},
        {"type": "file", "path": "/dev/zero"},
        {"type": "file", "path": "/etc"},
        {"type": "glance", "endpoint": "ftp://x", "token": "t"},
        {"type": "glance", "endpoint": "http://127.0.0.1:1"},
        {"type": "http", "url": "http://127.0.0.1"},
    ],
    ids=lambda s: " ".join(map(str, s.values()))[:40],
)
def test_a_bad_image_source(service, unchanged, source):
    with pytest.raises(Fault) as fault:
        service.client.put(f"/v1/images/{uuid.uuid4()}", {"source": source})
    check_problem(fault.value, 400, "invalid-input")
    assert fault.value.field.startswith("source")


def test_a_file_outside_the_allowed_roots(runtime, lxcfs, tmp_path, busybox_file):
    service = Service(runtime, lxcfs.mount_point, settings={"images": {"file_roots": [str(tmp_path)]}})
    try:
        service.start()
        link = tmp_path / "link"
        link.symlink_to(busybox_file)
        for path in (busybox_file, link, tmp_path / ".." / busybox_file.name):
            with pytest.raises(Fault) as fault:
                service.import_image(path)
            assert fault.value.status in (400, 403), fault.value
        copy = tmp_path / "copy"
        copy.write_bytes(busybox_file.read_bytes())
        service.import_image(copy)
    finally:
        left = service.close()
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "section,key,value",
    [
        ("service", "sokcet", "/x"),
        ("instances", "id_map_first", 1000),
        ("runtime", "program", "/no/such/runtime"),
        ("storage", "filesystem", "fat"),
        ("bridge", "address", "10.0.0.1"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(runtime, section, key, value):
    service = Service(runtime)
    try:
        service.settings[section][key] = value
        with pytest.raises(AssertionError, match="ended at once") as error:
            service.start()
        assert key in str(error.value) or str(value) in str(error.value)
        assert "panicked" not in str(error.value)
    finally:
        service.sweep()


def test_the_service_never_panicked(service):
    log = service.log.read_text(errors="replace")
    assert "panicked" not in log
    json.dumps(service.client.get("/v1/host"))
