"""The service's memory does not grow with what a tenant's files are."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

import pytest

MIB = 1 << 20
FILES, NAMES = 30_000, 30_000
#: Kept in memory, the first paths alone would be more than 110 MiB.
GROWTH = 48 * MIB


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The program that makes the files, as a file of an instance."""
    path = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).parent / "probe_links.c"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", path, source], check=True)
    content = base64.b64encode(path.read_bytes()).decode()
    return {"path": "/bin/probe", "content": content, "mode": 0o755}


def memory(service, field: str) -> int:
    """What the service holds, or has held at most since it was last forgotten."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["docker-archive", "rootfs-tar"])
def test_a_snapshot_takes_none_by_the_number_of_names(service, spawn, maker, glance, kind):
    instance = spawn(files=[maker], flavor={"root_gb": 2})
    instance.sh(f"/bin/probe {FILES} {NAMES}", timeout=120)
    # A first one, so that what is taken once and for all counts no more.
    other = spawn()
    other.action("snapshot", **glance.to(str(uuid.uuid4()), format=kind))
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")
    before = memory(service, "VmRSS")
    image = str(uuid.uuid4())
    instance.action("snapshot", **glance.to(image, format=kind))
    assert memory(service, "VmHWM") - before < GROWTH
    # It is all in there, each file once.
    file = glance.file(image)
    copy = spawn(image=service.import_image(file), flavor={"root_gb": 2})
    deep = "/many/" + "d" * 200 + "/*" * 18
    assert copy.sh("ls /many | grep -c z; ls /full | wc -l").split() == [str(FILES), str(NAMES)]
    assert copy.sh(f"cd {deep} && ls | wc -l && [ a777 -ef /many/z777 ] && echo same").split() == [
        str(FILES),
        "same",
    ]
