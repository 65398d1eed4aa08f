"""Fixtures of the root tests: images, lxcfs, a service for each module and runtime program."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import ROOT, Hugetlb, Instance, Lxcfs, Service
from harness.glance import Glance
from harness.program import compiled
from harness.service import BERTH


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runtimes", default="native,crun,runc", help="OCI runtime programs to test with, comma-separated"
    )
    parser.addoption(
        "--each",
        action="store_true",
        help="every test with each of them, not only those in which the program has a part",
    )
    parser.addoption("--kills", type=int, default=15, help="kills in the durability test, with each runtime")


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("these tests make namespaces and mounts: run them as root")
    # Whoever ends the run wants the host back as it was: fixtures are torn down on an interrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runtime" in metafunc.fixturenames:
        names = metafunc.config.getoption("--runtimes").split(",")
        has_a_part = metafunc.definition.get_closest_marker("each_runtime")
        if not (has_a_part or metafunc.config.getoption("--each")):
            names = names[:1]
        metafunc.parametrize("runtime", names, scope="module")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """A failed test shows the end of its service's log."""
    outcome = yield
    report = outcome.get_result()
    service = getattr(item, "funcargs", {}).get("service")
    if report.failed and isinstance(service, Service):
        report.sections.append(("service log", service.log_tail()))


@pytest.fixture(scope="session", autouse=True)
def program() -> Path:
    """The program under test."""
    if not BERTH.exists():
        pytest.exit(f"{BERTH} is not built: run `make build`, or set BERTH_BIN", 3)
    return BERTH


HUGETLB = pytest.StashKey[Hugetlb]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Lets crun run on a hybrid host. Of several workers none does this: it is the host's."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[HUGETLB] = Hugetlb()


def pytest_unconfigure(config: pytest.Config) -> None:
    if HUGETLB in config.stash:
        config.stash[HUGETLB].close()


@pytest.fixture(scope="session")
def lxcfs() -> Iterator[Lxcfs]:
    """lxcfs for all services of the session."""
    file_system = Lxcfs()
    yield file_system
    file_system.close()


def _make_image(script: str) -> Path:
    directory = ROOT / "target/images"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may want it, too
        made = subprocess.run([ROOT / "scripts" / script], stdout=subprocess.PIPE, text=True)
    assert made.returncode == 0, f"scripts/{script} failed"
    return Path(made.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def busybox_file() -> Path:
    """The small system image."""
    return _make_image("image-busybox")


@pytest.fixture(scope="session")
def application_file() -> Path:
    """The application image, as `docker save` writes it."""
    return _make_image("image-application")


@pytest.fixture(scope="session")
def debian_file() -> Path:
    """The Debian system image."""
    return _make_image("image-debian")


@pytest.fixture(scope="session")
def probe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static program that tries from inside what a shell cannot."""
    return compiled(Path(__file__).parent / "security/probe.c", tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def settings() -> dict[str, dict[str, Any]]:
    """The configuration of the module's service besides the usual; modules have their own."""
    return {}


@pytest.fixture(scope="module")
def service(runtime: str, lxcfs: Lxcfs, settings: dict[str, dict[str, Any]]) -> Iterator[Service]:
    """A service for the module; afterwards nothing of it may be left on the host."""
    service = Service(runtime, lxcfs.mount_point, settings=settings)
    try:
        service.start()
        yield service
    except BaseException:
        service.sweep()
        raise
    left = service.close()
    assert not left, "left on the host:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def busybox(service: Service, busybox_file: Path) -> str:
    """Id of the small system image in the module's service."""
    return service.import_image(busybox_file)


@pytest.fixture(scope="module")
def application(service: Service, application_file: Path) -> str:
    """Id of the application image in the module's service."""
    return service.import_image(application_file)


@pytest.fixture(scope="module")
def debian(service: Service, debian_file: Path) -> str:
    """Id of the Debian image in the module's service."""
    return service.import_image(debian_file)


@pytest.fixture
def instance(service: Service, busybox: str) -> Iterator[Instance]:
    """A running instance with one interface."""
    instance = service.spawn(busybox, vifs=[service.vif()])
    instance.wait_console("is up")
    yield instance
    instance.discard()


@pytest.fixture
def spawn(service: Service, busybox: str):
    """Makes running instances of the small system image and deletes them after the test."""
    made: list[Instance] = []

    def make(**fields) -> Instance:
        fields.setdefault("image", busybox)
        made.append(service.define(fields.pop("image"), **fields))
        made[-1].action("start")
        return made[-1]

    yield make
    for instance in made:
        instance.discard()


@pytest.fixture
def glance(tmp_path: Path) -> Iterator[Glance]:
    """An image service that takes everything."""
    server = Glance(tmp_path)
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def made() -> Iterator[list[Instance]]:
    """Instances to delete."""
    instances: list[Instance] = []
    yield instances
    for instance in instances:
        instance.discard()
