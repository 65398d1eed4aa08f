"""Other people's functional tests, from the packages as published, against the cloud."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import identity, resources
from .place import CLOUDS, LOG, ROOT, STATE, environment
from .processes import Failure

HERE = ROOT / "tests/openstack/foreign"
# The packages' own functional tests of what berth has a part in.
SUITES = {
    # Before all others, and alone: its servers want the project's only network, unasked.
    "openstacksdk-cloud": ("openstack.tests.functional.cloud.test_compute",),
    "openstacksdk": ("openstack.tests.functional.compute", "openstack.tests.functional.network"),
    "python-openstackclient-servers": ("openstackclient.tests.functional.compute.v2.test_server",),
    "python-openstackclient": (
        "openstackclient.tests.functional.compute",
        "openstackclient.tests.functional.image",
        "openstackclient.tests.functional.network",
    ),
}
# Of pytest.
OPTIONS = {
    "openstacksdk-cloud": ("--numprocesses=2", "--dist=loadfile"),
    "openstacksdk": ("--numprocesses=2", "--dist=loadfile"),
    "python-openstackclient": (
        *("--numprocesses=2", "--dist=loadfile", "-pforeign.client"),
        "--ignore-glob=/*/functional/compute/v2/test_server.py",
    ),
    # They mostly wait for servers.
    "python-openstackclient-servers": ("--numprocesses=4", "--dist=load", "-pforeign.client"),
}
# Heat's own, a plug-in of Tempest; what of them cannot be run is in tempest-excluded.txt.
HEAT = (r"^heat_tempest_plugin\.tests\.",)
# The name that python-openstackclient's tests look for.
CIRROS = "cirros-berth-disk"


def execute() -> None:
    """Runs all of them; those of `excluded.txt` are left out."""
    failed = []
    with _cirros():
        for suite, modules in SUITES.items():
            start = time.monotonic()
            passed = _run(suite, modules)
            print(f"   {suite}: {time.monotonic() - start:.0f} s", flush=True)
            failed += [] if passed else [suite]
    if failed:
        raise Failure(f"{' and '.join(failed)}: functional tests failed; see {LOG}/foreign-*.xml")


def _run(suite: str, modules: tuple[str, ...]) -> bool:
    command: list[str | Path] = [
        *(sys.executable, "-m", "pytest", "-c", HERE / "published.ini", "--rootdir", HERE),
        *("-pforeign.excluded", *OPTIONS[suite]),
        *(f"--junitxml={LOG}/foreign-{suite}.xml", "--pyargs", *modules),
    ]
    more = {
        "HOME": str(STATE),  # nobody's own clouds.yaml
        "OS_CLIENT_CONFIG_FILE": str(CLOUDS),
        # Seconds for a test: without it 3, as for the package's unit tests.
        "OS_TEST_TIMEOUT": "300",
        "OPENSTACKSDK_FLAVOR": "m1.nano",
        "OPENSTACKSDK_IMAGE": CIRROS,
        "PYTHONPATH": str(HERE.parent),
    }
    return subprocess.run(command, env=environment(**more), cwd=STATE, check=False).returncode == 0


@contextlib.contextmanager
def _cirros() -> Iterator[None]:
    """An image of CirrOS's name, and shape: BusyBox, an SSH server, no cloud-init."""
    admin = identity.connect("admin")
    image = resources.copy_of_tempest(admin, CIRROS)
    try:
        yield
    finally:
        admin.image.delete_image(image)
