"""An instance has as many CPUs as vCPUs, and whoever shares them is spread over all."""

import os
from collections import Counter
from pathlib import Path

import pytest
from harness import wait_for
from harness.program import compiled, injected

CPUS = sorted(os.sched_getaffinity(0))[:2]

#: nproc, three numbers of cpus.c, /proc/cpuinfo, /proc/stat, sysfs.
WAYS = 7

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU, and nothing to choose")


@pytest.fixture(scope="module")
def settings():
    return {"host": {"cpu_shared_set": ",".join(map(str, CPUS))}}


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """A program that counts the CPUs as others do, as a file for an instance."""
    program = compiled(Path(__file__).with_name("cpus.c"), tmp_path_factory.mktemp("cpus"))
    return injected(program, "/bin/cpus")


def cpus_of(instance, pid="self"):
    """The CPUs that a process may run on."""
    text = instance.sh(f"awk '/^Cpus_allowed_list/ {{print $2}}' /proc/{pid}/status")
    ends = [part.split("-") for part in text.split(",")]
    return {cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)}


def only_cpu(instance):
    (cpu,) = cpus_of(instance)
    return cpu


def resize(instance, vcpus):
    instance.action("resize", flavor=instance.get()["flavor"] | {"vcpus": vcpus})


def counts(instance):
    """How many CPUs the instance has, by every way to count them."""
    files = "grep -c ^processor /proc/cpuinfo; grep -c '^cpu[0-9]' /proc/stat"
    online = "tr , '\\n' < /sys/devices/system/cpu/online | awk -F- '{n += $NF - $1 + 1} END {print n}'"
    return instance.sh(f"nproc; cpus; {files}; {online}").split()


def by_cpu(instances):
    """The instances of each CPU."""
    placed = {cpu: [] for cpu in CPUS}
    for instance in instances:
        placed[only_cpu(instance)].append(instance)
    return placed


def test_every_way_to_count_says_the_flavors_number(spawn, counter):
    instance = spawn(flavor={"vcpus": 1}, files=[counter])
    assert counts(instance) == ["1"] * WAYS
    resize(instance, 2)
    assert counts(instance) == ["2"] * WAYS
    resize(instance, 1)
    assert counts(instance) == ["1"] * WAYS


def test_a_flavor_with_more_than_there_are_has_all(spawn):
    assert cpus_of(spawn(flavor={"vcpus": 5})) == set(CPUS)


def test_two_busy_ones_are_apart(spawn):
    instances = [spawn(), spawn()]
    hogs = [i.sh("(while :; do :; done) >/dev/null 2>&1 & echo $!") for i in instances]
    first, second = (cpus_of(*hog) for hog in zip(instances, hogs, strict=True))
    assert first | second == set(CPUS)
    assert len(first) == len(second) == 1


def test_when_some_end_the_others_spread_while_they_run(spawn, counter):
    instances = [spawn(files=[counter]) for _ in range(4)]
    placed = by_cpu(instances)
    assert Counter(map(len, placed.values())) == {2: 2}
    stay, go = placed.values()
    before = [instance.get()["pid"] for instance in stay]
    hogs = [i.sh("(while :; do :; done) >/dev/null 2>&1 & echo $!") for i in stay]
    go[0].action("stop", timeout=0)
    go[1].delete()
    assert {cpu: len(there) for cpu, there in by_cpu(stay).items()} == dict.fromkeys(CPUS, 1)
    assert set().union(*(cpus_of(*hog) for hog in zip(stay, hogs, strict=True))) == set(CPUS)
    for instance in stay:
        assert counts(instance) == ["1"] * WAYS
    assert [instance.get()["pid"] for instance in stay] == before


def test_one_that_was_moved_stays_there_when_it_reboots_itself(spawn):
    instances = [spawn() for _ in range(4)]
    stay, go = by_cpu(instances).values()
    for instance in go:
        instance.delete()
    for instance in stay:
        instance.go_down("reboot")
        wait_for("the reboot to be counted", lambda: instance.get()["guest_reboots"] == 1)  # noqa: B023
    assert len({only_cpu(instance) for instance in stay}) == 2


def test_the_next_service_leaves_everybody_where_it_is(service, spawn):
    instances = [spawn() for _ in range(3)] + [spawn(flavor={"vcpus": 2})]
    before = [cpus_of(instance) for instance in instances]
    service.kill()
    service.start()
    assert [cpus_of(instance) for instance in instances] == before
    # It knows them: the next one goes where there is room.
    loads = Counter(cpu for cpus in [*before, cpus_of(spawn())] for cpu in cpus)
    assert set(loads.values()) == {3}


def test_an_operator_can_let_them_float(service, spawn):
    instance = spawn()
    assert len(cpus_of(instance)) == 1
    service.stop()
    service.settings["host"]["cpu_balance"] = False
    try:
        service.start()
        assert cpus_of(instance) == cpus_of(spawn()) == set(CPUS)
    finally:
        service.stop()
        del service.settings["host"]["cpu_balance"]
        service.start()
    assert len(cpus_of(instance)) == 1
