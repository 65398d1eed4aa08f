"""What a flavor opens or closes of the ways into the kernel, tried by a compiled program (probe_walls.c)."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from harness import Fault
from harness.program import compiled, injected

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that tries."""
    return compiled(Path(__file__).with_name("probe_walls.c"), tmp_path_factory.mktemp("walls"))


@pytest.fixture
def attempt(spawn, probe, request):
    """Makes an attempt in an instance of an image and a flavor."""
    file = injected(probe, "/bin/probe")

    def make(image: str, specs: dict[str, str], *names: str) -> list[str]:
        flavor = {"memory_mb": 64, "extra_specs": specs}
        instance = spawn(image=request.getfixturevalue(image), flavor=flavor, files=[file])
        said = []
        for name in names:
            result = instance.service.run_berth("exec", "--user", "0", instance.id, "--", "/bin/probe", name)
            said.append(result.stdout.split(":")[0].strip())
        return said

    return make


IMAGES = pytest.mark.parametrize("image", ["busybox", "application"])


@IMAGES
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attempt is x86's")
def test_calls_of_32_bits_are_switched_off(attempt, image):
    assert attempt(image, {}, "compat") == ["POSSIBLE"]
    assert attempt(image, {"berth:compat_syscalls": "false"}, "compat") == ["refused"]


def test_without_nesting_there_are_no_user_namespaces(attempt):
    names = ["user-namespace", "other-namespaces"]
    assert attempt("busybox", {}, *names) == ["POSSIBLE", "POSSIBLE"]
    assert attempt("busybox", {"berth:nesting": "false"}, *names) == ["refused", "POSSIBLE"]
    assert attempt("application", {}, *names) == ["refused", "refused"]


@IMAGES
def test_rings_of_packets_are_refused(attempt, image):
    assert attempt(image, {}, "ring", "options") == ["refused", "POSSIBLE"]
    # Why: a flavor of 64 MiB has these of the host's memory.
    allowed = attempt(image, {"berth:packet_rings": "true"}, "ring", "options", "rings")
    assert allowed == ["POSSIBLE", "POSSIBLE", "256"]


@pytest.mark.parametrize("name", ["compat_syscalls", "nesting", "packet_rings"])
def test_a_flavor_that_says_neither_is_refused(service, busybox, name):
    with pytest.raises(Fault) as refusal:
        service.define(busybox, flavor={"extra_specs": {f"berth:{name}": "perhaps"}})
    assert refusal.value.problem["field"] == f"flavor.extra_specs.berth:{name}"
