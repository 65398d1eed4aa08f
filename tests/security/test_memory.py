"""The service's memory does not grow with what a tenant's files are."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from harness.program import compiled, injected

MIB = 1 << 20
FILES, NAMES = 30_000, 30_000
#: Above what as much plain data takes, most of it for the compression. Kept in memory,
#: the first paths alone would be more than 110 MiB.
GROWTH = 16 * MIB


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The program that makes the files, as a file of an instance."""
    program = compiled(Path(__file__).with_name("probe_links.c"), tmp_path_factory.mktemp("probe"))
    return injected(program, "/bin/probe")


def memory(service, field: str) -> int:
    """What the service holds, or has held at most since it was last forgotten."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


def taken(instance, glance, image: str, kind: str) -> int:
    """The most that the service holds while it makes a snapshot."""
    service = instance.service
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")
    instance.action("snapshot", **glance.to(image, format=kind))
    return memory(service, "VmHWM")


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["docker-archive", "rootfs-tar"])
def test_a_snapshot_takes_none_by_the_number_of_names(service, spawn, maker, glance, kind):
    instance = spawn(files=[maker], flavor={"root_gb": 2})
    instance.sh(f"/bin/probe {FILES} {NAMES}", timeout=120)
    # A plain one of much data shows what the compression takes on this host.
    plain = spawn(flavor={"root_gb": 2})
    plain.sh("dd if=/dev/urandom of=/noise bs=1M count=128 2>/dev/null", timeout=120)
    usual = taken(plain, glance, str(uuid.uuid4()), kind)
    image = str(uuid.uuid4())
    assert taken(instance, glance, image, kind) - usual < GROWTH
    # It is all in there, each file once.
    file = glance.file(image)
    copy = spawn(image=service.import_image(file), flavor={"root_gb": 2})
    deep = "/many/" + "d" * 200 + "/*" * 18
    assert copy.sh("ls /many | grep -c z; ls /full | wc -l").split() == [str(FILES), str(NAMES)]
    assert copy.sh(f"cd {deep} && ls | wc -l && [ a777 -ef /many/z777 ] && echo same").split() == [
        str(FILES),
        "same",
    ]
