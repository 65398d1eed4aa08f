"""What the kernel has once for everybody: an instance takes all it can get, and nobody else lacks any.

The attempts are compiled (probe_kernel.c) and run inside as root. Those that measure a table run
in one instance, in another one and on the host.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from harness import ROOT, wait_for
from harness.hosts import cgroup_dir
from harness.program import compiled, injected

pytestmark = pytest.mark.alone

MIB = 1 << 20
PAGE = 4096
MEMORY = 64 * MIB


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that takes."""
    return compiled(Path(__file__).with_name("probe_kernel.c"), tmp_path_factory.mktemp("probe"))


@pytest.fixture
def pair(service, busybox, probe):
    """Two small instances with the program in them."""
    file = injected(probe, "/bin/probe")
    made = []
    try:
        for _ in range(2):
            made.append(service.spawn(busybox, vifs=[service.vif()], files=[file]))
            made[-1].wait_console("is up")
        yield made
    finally:
        for instance in made:
            instance.discard()


def take(instance, kind: str, most: int | None = None) -> tuple[int, str]:
    """How much of a kind an instance got, and why not more; it keeps it."""
    command = ["/bin/probe", "take", kind] + ([str(most)] if most else [])
    said = instance.sh("ulimit -n 65536 2>/dev/null; exec " + " ".join(command)).strip()
    count, _, reason = said.removeprefix("took ").partition(": ")
    return int(count.replace("?", "-1")), reason


@pytest.fixture
def few_watches():
    """A limit that an instance meets before its disk's."""
    file = Path("/proc/sys/fs/inotify/max_user_watches")
    before = file.read_text()
    file.write_text("5000")
    yield
    file.write_text(before)


@pytest.mark.parametrize("kind", ["inotify", "watch", "timer", "queue"])
def test_what_is_counted_for_each_user_is_counted_to_each_instance(pair, probe, few_watches, kind):
    taker, neighbour = pair
    taken, reason = take(taker, kind, 1_000_000)
    assert reason != "enough", f"no limit was met after {taken}"
    assert neighbour.run("/bin/probe", "one", kind).stdout == "one\n", f"after {taken}"
    for_host = subprocess.run([probe, "one", kind], stdout=subprocess.PIPE, text=True)
    assert for_host.stdout == "one\n", f"the host's root has none left after {taken}"
    # Another user inside is the same instance.
    again = taker.run(
        "/bin/sh", "-c", f"echo u:x:77:77::/:/bin/sh >> /etc/passwd; su u -c '/bin/probe one {kind}'"
    )
    assert again.stdout.startswith("none"), again.stdout + again.stderr


def sockets_of(protocol: str) -> int:
    """Bytes that the kernel holds for a protocol, all instances and the host together."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith(f"{protocol}:"):
            words = line.split()
            return int(words[words.index("mem") + 1]) * PAGE
    raise AssertionError(protocol)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_buffers_of_sockets_are_within_its_memory(pair, protocol):
    instance, neighbour = pair
    before = sockets_of(protocol.upper())
    take(instance, protocol, 400 << 10)
    taken = sockets_of(protocol.upper()) - before
    # Version 1 has a limit of its own for them; the kernel counts per CPU, and a little late.
    assert MIB < taken < MEMORY / 4 + 8 * MIB, f"{taken >> 20} MiB"
    assert neighbour.run("/bin/probe", "one", protocol).stdout == "one\n"


@pytest.fixture
def huge_pages():
    """Huge pages that are the host's."""
    file = Path("/proc/sys/vm/nr_hugepages")
    before = file.read_text()
    file.write_text("32")
    wait_for("huge pages", lambda: int(file.read_text()) >= 16)
    yield
    file.write_text(before)


@pytest.mark.parametrize("kind", ["huge-map", "huge-file"])
def test_huge_pages_are_the_hosts(pair, probe, huge_pages, kind):
    if cgroup_dir("hugetlb") == Path("/sys/fs/cgroup/unified"):
        pytest.skip("on this hybrid host the controller is on no hierarchy that berth uses")
    taken, reason = take(pair[0], kind, 16)
    assert taken == 0, f"{taken} pages: {reason}"
    on_host = subprocess.run([probe, "one", kind], stdout=subprocess.PIPE, text=True)
    assert on_host.stdout == "one\n", "the host itself has none"


@pytest.fixture
def package_settings():
    """The host as the package's file has it."""
    before = {}
    for line in (ROOT / "etc/sysctl.d/60-berth.conf").read_text().splitlines():
        name, _, value = line.partition(" = ")
        file = Path("/proc/sys") / name.replace(".", "/")
        if name.startswith(("#", "fs.inotify")) or not value:
            continue
        before[file] = file.read_text()
        file.write_text(value)
    yield
    for file, value in reversed(before.items()):
        file.write_text(value)


@pytest.mark.parametrize("kind", ["terminal", "aio"])
def test_a_common_table_has_room_for_others(pair, probe, package_settings, kind):
    taker, neighbour = pair
    most = {"terminal": 256, "aio": 8 * 65_536}[kind]
    taken, reason = take(taker, kind, most + 1)
    assert taken <= most or reason == "enough", (taken, reason)
    if kind == "terminal":
        assert (taken, reason) == (255, "No space left on device"), "the console has one"
    assert neighbour.run("/bin/probe", "one", kind).stdout == "one\n", f"after {taken}"
    assert subprocess.run([probe, "one", kind], stdout=subprocess.PIPE, text=True).stdout == "one\n"
    # Its own memory ends it, and nobody else's; all of it may be killed for that.
    taker.run("/bin/probe", "take", kind, str(1 << 28))
    assert neighbour.run("/bin/probe", "one", kind).stdout == "one\n"


def test_open_files_are_within_its_memory(pair, probe, package_settings):
    def opened() -> int:
        return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])

    taker, neighbour = pair
    before = opened()
    # A file takes a quarter of a KiB: these are twice its memory.
    for _ in range(8):
        taker.run("/bin/sh", "-c", "ulimit -n 65536; exec /bin/probe take file 65000")
    assert 1000 < opened() - before < MEMORY // 200
    assert neighbour.run("/bin/probe", "one", "file").stdout == "one\n"
    assert subprocess.run([probe, "one", "file"], stdout=subprocess.PIPE, text=True).stdout == "one\n"


@pytest.fixture
def few_terminals():
    """A host where one instance can take all that are not reserved."""
    files = [Path("/proc/sys/kernel/pty") / name for name in ("max", "reserve")]
    before = [file.read_text() for file in files]
    for file, value in zip(files, (2048, 1024), strict=True):
        file.write_text(str(value))
    yield
    for file, value in zip(files, before, strict=True):
        file.write_text(value)


def test_terminals_of_its_own_mounts_are_not_the_others(pair, probe, spawn, busybox, few_terminals):
    taker, neighbour = pair
    # What is mounted for it, it cannot change.
    assert taker.run("/bin/probe", "one", "lifted").stdout.startswith("none: ")
    taken, reason = take(taker, "own-terminal", 4000)
    assert 800 < taken < 1024 and reason == "No space left on device", (taken, reason)
    assert taker.run("/bin/probe", "one", "own-terminal").stdout.startswith("none: ")
    # Its neighbours, itself and the host have theirs, and there are consoles for more instances.
    for other in (neighbour, taker):
        assert other.run("/bin/probe", "one", "terminal").stdout == "one\n", f"after {taken}"
    assert subprocess.run([probe, "one", "terminal"], stdout=subprocess.PIPE, text=True).stdout == "one\n"
    spawn().wait_console("is up")
    assert take(neighbour, "terminal", 1000) == (255, "No space left on device")


def test_the_neighbour_table_has_room_for_others(pair, service, spawn, package_settings):
    taker, _ = pair
    # Nobody has asked for these yet: known ones are in the table.
    addresses = [f"{service.subnet}.{last}" for last in range(201, 205)]
    spawn(vifs=[service.vif(addresses=[f"{address}/24" for address in addresses])])
    taker.sh("ip address add 99.0.0.1/8 dev eth0")
    taker.sh("(while :; do NETWORK=99.0.1.0 /bin/probe take neighbour 3000; done) >/dev/null 2>&1 &")
    time.sleep(2)
    for address in addresses:
        assert subprocess.run(["ping", "-c1", "-W2", address], stdout=subprocess.DEVNULL).returncode == 0
