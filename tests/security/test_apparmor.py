"""Instances run under berth's AppArmor profiles, where the host has AppArmor.

A compiled program (probe_reach.c) tries from inside what the profile alone refuses: the same
attempt gets through where the configuration has the profiles off. That they let instances do all
that they do is shown by the other tests, which run under them on such a host.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.program import compiled, injected

APPARMOR = Path("/sys/kernel/security/apparmor")

# Profiles are the host's: what is done to them reaches the instances of other tests.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.each_runtime,
    pytest.mark.skipif(not APPARMOR.exists(), reason="this host has no AppArmor"),
]


@pytest.fixture(scope="module")
def reach_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that tries."""
    return compiled(Path(__file__).with_name("probe_reach.c"), tmp_path_factory.mktemp("reach"))


@pytest.fixture
def running(spawn, busybox, application, reach_file):
    """Starts an instance of a role, with the program in it."""
    images = {"system": busybox, "application": application}
    return lambda role, fresh="false": spawn(
        image=images[role],
        flavor={"extra_specs": {"berth:fresh_proc": fresh}},
        files=[injected(reach_file, "/bin/reach")],
    )


def tried(instance, *words: str) -> str:
    """What the program says, as root and through the runtime program's exec."""
    result = instance.service.run_berth("exec", "--user", "0", instance.id, "--", "/bin/reach", *words)
    return result.stdout.strip()


def profile_of(instance) -> str:
    """The profile of its first process."""
    return Path(f"/proc/{instance.get()['pid']}/attr/current").read_text().strip("\0\n")


ROLES = pytest.mark.parametrize("role", ["system", "application"])


@ROLES
def test_the_first_process_and_every_command_are_in_it(running, role):
    instance, wanted = running(role), f"berth-{role} (enforce)"
    assert profile_of(instance) == wanted
    assert tried(instance, "profile") == wanted
    assert tried(instance, "leave", "unconfined").startswith("refused")
    other = {"system": "application", "application": "system"}[role]
    assert tried(instance, "leave", f"berth-{other}").startswith("refused")


# There for everybody to read, but for a mount above it, which root of a system instance takes away where
# the flavor has `berth:fresh_proc`.
HIDDEN = "/proc/interrupts"


def test_what_is_hidden_stays_so(running):
    said = tried(running("system", "true"), "uncovered", "r", HIDDEN)
    assert said.startswith("refused") and said.endswith("Permission denied"), said


def test_without_it_the_attempts_get_through(service, running):
    """So that the refusals above are the profile's."""
    service.stop()
    before = service.settings["runtime"]
    service.settings["runtime"] = before | {"apparmor": "off"}
    try:
        service.start()
        for role in ("system", "application"):
            instance = running(role)
            assert profile_of(instance) == "unconfined"
            assert tried(instance, "leave", "berth-application").startswith("POSSIBLE")
            instance.discard()
        assert tried(running("system", "true"), "uncovered", "r", HIDDEN).startswith("POSSIBLE")
    finally:
        service.stop()
        service.settings["runtime"] = before
        service.start()


def test_one_that_was_unloaded_is_loaded_for_the_next_start(running):
    instance = running("system")
    (APPARMOR / ".remove").write_text("berth-system")
    assert profile_of(instance) == "unconfined"
    instance.action("reboot", type="HARD")
    assert profile_of(instance) == "berth-system (enforce)"


def test_check_says_so(service):
    said = service.run_berth("check", "--json", "--config", str(service.config)).stdout
    (check,) = (one for one in json.loads(said)["checks"] if one["name"] == "AppArmor")
    assert check["found"] == "profiles are loaded and enforced", check
