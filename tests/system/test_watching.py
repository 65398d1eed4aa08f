"""Events, operations, metrics, logs, host: what a watcher sees."""

import itertools
import re
import time
from pathlib import Path

import pytest
from harness import Fault, wait_for


def read(events, count):
    return list(itertools.islice(events, count))


def test_events_tell_a_life(service, busybox):
    with service.client.events() as events:
        instance = service.spawn(busybox)
        instance.action("pause")
        instance.action("unpause")
        instance.action("suspend")
        instance.action("resume")
        instance.action("stop", timeout=5)
        instance.delete()
        seen = []
        for event in events:
            if event["instance_id"] == instance.id:
                seen.append(event)
                if event["kind"] == "deleted":
                    break
    kinds = [e["kind"] for e in seen]
    assert kinds == [
        "created", "started", "paused", "resumed", "suspended", "resumed", "stopped", "deleted",
    ]  # fmt: skip
    sequence = [e["sequence"] for e in seen]
    assert sequence == sorted(set(sequence))


def test_the_stream_resumes_where_it_broke(service, busybox):
    with service.client.events() as events:
        instance = service.spawn(busybox)
        first = read(events, 1)[0]
    instance.action("stop", timeout=0)
    instance.delete()
    with service.client.events(after=first["sequence"]) as events:
        rest = read(events, 3)
    assert [e["sequence"] for e in rest] == [first["sequence"] + n for n in (1, 2, 3)]
    assert [e["kind"] for e in rest][-2:] == ["stopped", "deleted"]


def test_events_from_the_future_or_long_gone_are_told_apart(service):
    with pytest.raises(Fault) as fault, service.client.events(after=10**15) as events:
        read(events, 1)
    assert (fault.value.status, fault.value.code) == (410, "events-gone")


def test_operations_keep_the_request_id(service, busybox):
    instance = service.define(busybox)
    request = f"req-{time.monotonic_ns()}"
    service.client.post(f"{instance.path}/start", headers={"X-Openstack-Request-Id": request})
    operations = service.client.get("/v1/operations")["operations"]
    (operation,) = [o for o in operations if o["request_id"] == request]
    assert operation["target"] == instance.id
    assert operation["status"] == "succeeded"
    assert operation["finished_at"]
    assert service.client.get(f"/v1/operations/{operation['id']}")["id"] == operation["id"]
    wait_for("the log line", lambda: request in service.log.read_text())
    instance.delete()


@pytest.mark.each_runtime
@pytest.mark.parametrize("command", ["/no/such/program", "nosuch", "/etc/passwd"])
def test_a_failed_start_is_told_and_leaves_nothing_running(service, busybox, command):
    failing = service.define(busybox, command=[command])
    with pytest.raises(Fault) as fault:
        failing.action("start")
    # Of the command, not of this host: no other would start it.
    assert fault.value.code == "instance-unsupported"
    assert failing.get()["fault"]["code"] == "instance-unsupported"
    assert failing.get()["power_state"] != "RUNNING"
    assert failing.pids() == []
    operations = service.client.get("/v1/operations")["operations"]
    starts = [o for o in operations if o["target"] == failing.id and o["kind"] == "instance.start"]
    assert [o["status"] for o in starts] == ["failed"]
    failing.delete()


def test_metrics_are_prometheus(instance):
    answer = instance.service.client.request("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    sample = re.compile(r"^[a-zA-Z_:][\w:]*(\{.*\})? [-+0-9.eEInfNa]+$")
    samples = [line for line in lines if line and not line.startswith("#")]
    assert all(sample.match(line) for line in samples)
    names = {re.split(r"[{ ]", line)[0] for line in samples}
    assert all(name.startswith(("berth_", "process_")) for name in names), names
    assert len(names) > 5


def test_the_host_tells_what_it_has(instance):
    host = instance.service.client.get("/v1/host")
    assert host["hypervisor_type"] == "berth"
    inventory = host["inventory"]
    assert inventory["instances"] >= 1
    assert inventory["running_instances"] >= 1
    assert inventory["memory_mb_used"] >= 64
    capabilities = host["capabilities"]
    assert capabilities["runtime"]["name"] == instance.service.settings["runtime"]["program"]
    assert capabilities["lxcfs"] is True
    assert all(check["status"] != "failed" for check in capabilities["checks"])
    assert instance.service.client.get("/v1/host/stats")["memory_total"] > 0


def test_statistics_are_plausible(instance):
    stats = instance.stats()
    assert stats["memory"]["limit"] == 64 << 20
    assert 0 < stats["memory"]["usage"] <= stats["memory"]["peak"] <= stats["memory"]["limit"]
    assert stats["cpu"]["usage_ns"] > 0
    assert 1 <= stats["pids"]["current"] <= stats["pids"]["limit"]
    root = stats["block"][0]
    assert root["name"] == "root"
    assert 0 < root["used"] < root["size"]
    before = root["write_bytes"]
    instance.sh("dd if=/dev/zero of=/f bs=1M count=4 oflag=direct")
    assert instance.stats()["block"][0]["write_bytes"] - before >= 4 << 20


def test_statistics_of_a_stopped_instance(instance):
    instance.action("stop", timeout=0)
    try:
        assert instance.stats()["uptime"] == 0
    except Fault as fault:
        assert fault.code == "instance-invalid-state"


def test_instances_do_not_disturb_the_services_descriptors(service, busybox):
    """After many lives the service holds no more descriptors than before."""

    def descriptors():
        return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))

    def life():
        service.spawn(busybox, vifs=[service.vif()]).delete()

    for _ in range(5):
        life()
    before = descriptors()
    for _ in range(30):
        life()
    wait_for("descriptors to be closed", lambda: descriptors() <= before + 3)
