"""An image or a guest that lies in wait for whoever makes its processes: at the start, and at `exec`.

What the runtime holds open then, its own program and the host's directories, is what the known
escapes took."""

from __future__ import annotations

import uuid
from pathlib import Path

import imagelib
import pytest
from harness import Fault
from harness.program import injected

pytestmark = pytest.mark.each_runtime

#: Descriptors that a runtime may have open: the standard three and what follows.
DESCRIPTORS = range(3, 16)


@pytest.fixture
def marker(service):
    """A file of the host that anybody there may read."""
    path = Path("/var/tmp") / f"{service.token}-marker"
    path.write_text("THE HOST'S")
    path.chmod(0o644)
    yield path
    path.unlink()


def image_at(service, directory: Path, working_directory: str, command: list[str]) -> str:
    """An application image that runs there."""
    config = {"Cmd": command, "WorkingDir": working_directory}
    path = directory / f"{uuid.uuid4()}.tar"
    path.write_bytes(imagelib.docker_archive([imagelib.busybox_tree().tar()], config, "hostile:1"))
    return service.import_image(path)


@pytest.mark.parametrize("below", ["", "/../../../../.."])
def test_a_working_directory_is_no_descriptor_of_the_host(service, made, marker, tmp_path, below):
    """CVE-2024-21626: `WorkingDir` is a descriptor that the runtime left open."""
    if service.settings["runtime"]["program"] == "runc":
        pytest.skip("Debian's runc 1.1.5 carries the fix only in its latest revision")
    climbs = " ".join(f"{'../' * depth}var/tmp/{marker.name}" for depth in range(10))
    script = f"cat {climbs} 2>/dev/null; readlink /proc/self/cwd; echo; echo looked; sleep 1000"
    for number in DESCRIPTORS:
        image = image_at(service, tmp_path, f"/proc/self/fd/{number}{below}", ["/bin/sh", "-c", script])
        instance = service.define(image)
        made.append(instance)
        try:
            instance.action("start")
        except Fault as fault:
            assert fault.code in ("runtime-failed", "image-unacceptable"), fault
            continue
        finally:
            if instance.state == "SHUTDOWN":
                instance.discard()
        seen = instance.wait_console("looked")
        assert "THE HOST'S" not in seen, number
        instance.discard()


def programs(service) -> dict[Path, bytes]:
    """The programs that make this service's processes."""
    runtime = Path(service.client.get("/v1/host")["capabilities"]["runtime"]["path"])
    monitor = Path(service.program).with_name("berth-monitor")
    return {path: path.read_bytes() for path in {runtime, monitor}}


def test_the_first_program_is_not_the_runtimes(service, busybox, made):
    """CVE-2019-5736 at the start: the image's program is a script for /proc/self/exe."""
    before = programs(service)
    trap = "#!/proc/self/exe\n"
    overwrite = (
        "#!/bin/sh\nexec 2>&1\nfor n in 1 2 3 4 5 6; do\n"
        "  for p in /proc/[0-9]*; do\n"
        "    (: >> $p/exe) && echo OPENED $(readlink $p/exe) && echo >> $p/exe\n"
        "  done\n"
        "  sleep 0.2\ndone\n"
        "echo tried; sleep 1000\n"
    )
    for command in (["/trap"], ["/bin/overwrite"]):
        files = [
            injected_text("/trap", trap),
            injected_text("/bin/overwrite", overwrite),
        ]
        instance = service.define(busybox, command=command, files=files)
        made.append(instance)
        try:
            instance.action("start")
        except Fault as fault:
            # The native runtime knows that it is the image's.
            assert fault.code in ("runtime-failed", "instance-unsupported"), fault
        if command == ["/bin/overwrite"]:
            assert not opened(instance.wait_console("tried"))
        instance.discard()
    assert programs(service) == before


def injected_text(path: str, text: str) -> dict:
    """A program of a few lines."""
    import tempfile

    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        return injected(Path(file.name), path)


def opened(console: str) -> list[str]:
    """Programs of the host's that could be opened for writing: what is below its own root is its own."""
    lines = [line for line in console.splitlines() if line.startswith("OPENED")]
    # A program that runs from a mount of its own has no name but that of the mount's root.
    names = ("berth", "runc", "crun")
    return [line for line in lines if line == "OPENED /" or any(name in line for name in names)]


@pytest.fixture
def guest(service, busybox, made):
    """A running system instance."""
    instance = service.spawn(busybox)
    made.append(instance)
    instance.wait_console("is up")
    return instance


FAKES = {
    # What the guest's root does to its own mounts, and the file of the host's that it hopes for.
    "a link for the multiplexer": (
        "mount -t tmpfs none /dev/pts && ln -s /proc/1/root/etc/victim /dev/pts/ptmx && "
        "rm -f /dev/ptmx && ln -s /etc/victim /dev/ptmx"
    ),
    "a file for the multiplexer": "mount -t tmpfs none /dev/pts && cp /etc/victim /dev/pts/ptmx",
    "a link for /dev/pts": "umount -l /dev/pts; rmdir /dev/pts && ln -s /proc/1/fd /dev/pts",
    "a link for /dev": "mkdir /x; mount --move /dev /x; mount -t tmpfs none /dev; ln -s / /dev/pts",
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_terminal_is_made_of_no_fake(guest, fake):
    """CVE-2025-52565 and its like: what stands for a terminal is something else."""
    guest.sh("echo untouched > /etc/victim; chmod 666 /etc/victim")
    made = guest.run("/bin/sh", "-c", FAKES[fake])
    assert made.returncode == 0, made.stderr
    result = guest.service.run_berth(
        "exec", "-t", guest.id, "--", "/bin/sh", "-c", "echo written", timeout=60
    )
    assert "Traceback" not in result.stderr
    # From outside: some runtimes execute nothing any more where /dev is a fake.
    assert Path(f"/proc/{guest.pids()[0]}/root/etc/victim").read_text() == "untouched\n"


def test_what_stands_for_proc_is_not_written_to(guest):
    """CVE-2025-52881: what the runtime writes to /proc goes elsewhere."""
    guest.sh(
        "mkdir -p /fake/self/attr/apparmor /fake/thread-self/attr /fake/self/fd && "
        "for f in self/attr/exec self/attr/apparmor/exec thread-self/attr/exec self/oom_score_adj; do "
        "echo untouched > /fake/$f; done; mount --bind /fake /proc"
    )
    result = guest.run(
        "/bin/sh", "-c", "cat /fake/self/attr/exec /fake/self/attr/apparmor/exec /fake/self/oom_score_adj"
    )
    if guest.service.settings["runtime"]["program"] == "native":
        assert result.returncode == 0, "the native runtime reads nothing of the instance's /proc"
    # A runtime that refuses has written nothing either.
    assert set(result.stdout.split()) <= {"untouched"}, result.stdout


def test_a_directory_of_the_first_process_is_no_way_out(service, made, marker, tmp_path):
    """The working directory of the first process is a link by the time of `exec`: to a descriptor
    that the runtime left open."""
    if service.settings["runtime"]["program"] == "runc":
        pytest.skip("Debian's runc 1.1.5 carries the fix only in its latest revision")
    image = image_at(service, tmp_path, "/w", ["/bin/sh", "-c", "echo looked; sleep 1000"])
    climbs = " ".join(f"{'../' * depth}var/tmp/{marker.name}" for depth in range(10))
    for number in DESCRIPTORS:
        instance = service.spawn(image)
        made.append(instance)
        instance.wait_console("looked")
        assert instance.sh("readlink /proc/self/cwd") == "/w", "no exec would meet the link"
        instance.sh(f"cd / && rm -rf /w && ln -s /proc/self/fd/{number} /w")
        result = instance.run("/bin/sh", "-c", f"cat {climbs} 2>/dev/null; true")
        assert "THE HOST'S" not in result.stdout, number
        instance.discard()


def test_nothing_inside_traces_what_makes_a_process(guest):
    """Between joining and executing, the runtime's process is seen inside: it is closed to all there."""
    watcher = (
        "while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do e=$(readlink $p/exe 2>/dev/null); "
        "case $e in *berth*|*runc*|*crun*|*memfd*|/) echo SEEN $p $e;; esac; done; echo ROUND; done"
    )
    guest.sh(f"({watcher}) > /tmp/seen 2>/dev/null & echo")
    rounds = lambda: int(guest.sh("grep -c ROUND /tmp/seen || true"))  # noqa: E731
    before = rounds()
    for _ in range(15):
        guest.run("true")
    assert rounds() > before, "nobody watched"
    guest.sh("touch /tmp/stop")
    seen = guest.sh("grep SEEN /tmp/seen || true")
    if guest.service.settings["runtime"]["program"] == "native":
        assert "SEEN" not in seen
    # A program that can be seen is at least a copy: test_escapes.py tries to write to it.
    assert not [line for line in seen.splitlines() if "memfd" not in line and "/deleted" not in line]
