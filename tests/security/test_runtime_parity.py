"""What the runtimes make of one bundle, compared: the native one beside the programs that it stands for.

Each difference must be in `DIFFERENT`, with its reason; each entry there must be met."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import Instance, Lxcfs, Service
from harness.program import compiled
from harness.service import wait_for

NATIVE = "native"
PROGRAMS = ("crun", "runc")
ROLES = ("system", "application")

#: What an instance is not to see.
HIDDEN = r"/(proc/(acpi|kcore|interrupts|keys|timer_list)|sys/(firmware|fs/pstore|kernel/debug))"
#: Which runtime's, which fact's name (a pattern), and why it is so.
DIFFERENT = [
    ("crun", r"mount /sys/fs/cgroup/.* source", "crun binds the host's mounts, the native one makes its own"),
    ("runc", r"mount /sys/fs/cgroup source", "a name for show"),
    ("runc", r"mount /sys/fs/cgroup/systemd source", "a name for show"),
    ("crun", r"mount /sys/fs/cgroup super", "crun gives no mode; it is the same"),
    (
        "crun",
        r"mount /sys/fs/cgroup options",
        "native: the directory that holds the hierarchies is read-only, too",
    ),
    (
        "runc",
        r"mount /sys/fs/cgroup (options|super)",
        "native: the directory that holds the hierarchies is read-only and has a size",
    ),
    (
        "runc",
        r"mount /sys(/class/(net|tty)|/devices/(system/node|virtual/(net|tty|block/.*)))? super",
        "native: the mounts are read-only, the file system is not",
    ),
    ("crun", r"mount /dev/console options", "native: as runc, no set-id, no programs"),
    ("crun", r"mount /proc/(bus|fs|irq|sys|sys/.*) options", "native: as runc, it keeps what /proc has"),
    (
        "crun",
        rf"mount {HIDDEN} options",
        "native: no set-id, no programs on what hides",
    ),
    (
        "crun",
        r"mount /proc/(interrupts|keys|timer_list) (type|source|super)",
        "crun hides files with the host's null device, the others with the instance's",
    ),
    (
        "runc",
        rf"mount {HIDDEN} (options|super)",
        "native: no set-id, no programs, and read-only also what hides a file",
    ),
    ("runc", r"file /dev/mqueue", "runc makes the IPC namespace before it is root inside"),
    ("runc", r"device c 10:200 rwm", "runc allows tun, which berth does not ask for"),
    ("crun", r"keyrings", "a name for show"),
    ("crun", r"exec'd (session|group)", "crun leaves it in the session of nobody that can be seen"),
    ("runc", r"(first|exec'd) SigIgn", "a signal that glibc keeps for itself"),
]

#: The same, of what not every host has.
ON_SOME_HOSTS = [
    ("crun", r"mount /sys/fs/cgroup source", "a name for show"),
    ("crun", r"mount /proc/sysrq-trigger options", "native: as runc, it keeps what /proc has"),
    (
        "runc",
        r"mount .* propagation",
        "native: no mount of the host's reaches inside, where those are shared",
    ),
    (
        "runc",
        r"(first|exec'd) limits",
        "Go raises its own limit of files as far as it may, and runc leaves it so",
    ),
]


@dataclass
class Made:
    """One instance, and what is known of it."""

    facts: dict[str, str] = field(default_factory=dict)
    first: int = 0


def normal(text: str, made: Instance, block: int) -> str:
    """Without what is another in each instance."""
    text = re.sub(r"\b(uid|gid)=(\d+)", lambda m: f"{m[1]}=+{int(m[2]) - block}", text)
    # Its disk: the device that the host has for it, and its serial number.
    text = re.sub(r"\bloop\d+\b|\b7:[0-9a-f]+\b", "LOOP", text)
    text = re.sub(r"virtio-root-[0-9a-f]{15}", "SERIAL", text)
    return text.replace(made.id, "ID").replace(made.id[:8], "ID").replace(made.service.cgroup, "CGROUP")


def mounts(pid: int, made: Instance, block: int) -> dict[str, str]:
    """Of a process's mount namespace."""
    facts = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        mount, file_system = (part.split() for part in line.split(" - "))
        place = f"mount {mount[4]}"
        assert f"{place} options" not in facts, f"two mounts at {mount[4]}"
        facts[f"{place} root"] = mount[3]
        facts[f"{place} options"] = mount[5]
        facts[f"{place} propagation"] = " ".join(mount[6:])
        facts[f"{place} type"], facts[f"{place} source"] = file_system[:2]
        facts[f"{place} super"] = ",".join(sorted(file_system[2].split(",")))
    return {name: normal(value, made, block) for name, value in facts.items()}


STATUS = [
    *("Umask", "Uid", "Gid", "Groups", "NStgid", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "CapInh", "CapPrm"),
    *("CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Threads", "TracerPid"),
]


def process(pid: int, name: str, made: Instance, block: int) -> dict[str, str]:
    """Of a process, seen from the host."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    facts = {key: status[key].strip() for key in STATUS if key != "Groups"}
    facts["Uid"], facts["Gid"] = (
        " ".join(str(int(number) - block) for number in facts[key].split()) for key in ("Uid", "Gid")
    )
    facts["groups"] = " ".join(str(int(number) - block) for number in status["Groups"].split())
    # The process's own number inside is an accident; that it has one in just one namespace more is not.
    facts["NStgid"] = str(len(facts["NStgid"].split()))
    stat = (proc / "stat").read_text().rsplit(") ", 1)[1].split()
    inside = lambda number: str(status[number].split()[-1] == status["NStgid"].split()[-1])  # noqa: E731
    facts["session"], facts["group"] = inside("NSsid"), inside("NSpgid")
    facts["terminal"] = str(stat[4] != "0")
    facts["nice"] = stat[16]
    facts["directory"], facts["root"] = os.readlink(proc / "cwd"), os.readlink(proc / "root")
    facts["environment"] = str(sorted((proc / "environ").read_text().rstrip("\0").split("\0")))
    facts["command"] = (proc / "cmdline").read_text().replace("\0", " ")
    facts["limits"] = (proc / "limits").read_text()
    facts["cgroups"] = (proc / "cgroup").read_text()
    for file in ("oom_score_adj", "personality", "coredump_filter", "timerslack_ns", "setgroups"):
        facts[file] = (proc / file).read_text()
    for fd in sorted((proc / "fd").iterdir(), key=lambda path: int(path.name)):
        target = re.sub(r"\[\d+\]", "[N]", os.readlink(fd))
        facts[f"descriptor {fd.name}"] = target
    for link in (proc / "ns").iterdir():
        kind = link.name
        own, host = os.readlink(link), os.readlink(f"/proc/self/ns/{kind}")
        first = os.readlink(f"/proc/{first_process(made)}/ns/{kind}") if name != "first" else own
        facts[f"namespace {kind}"] = "the host's" if own == host else "own" if own == first else "another"
    return {f"{name} {key}": normal(value, made, block) for key, value in facts.items()}


LOOK = r"""
find /dev -exec stat -c 'file %n %F %a %u:%g %t:%T %N' {} + 2>/dev/null | sort
find /dev/mqueue -maxdepth 0 -exec stat -c 'file %n %F %a %u:%g' {} +
"""


def look(made: Instance, block: int) -> Made:
    """All facts of a running instance."""
    result = Made(first=first_process(made))
    facts = result.facts
    facts |= mounts(result.first, made, block)
    facts |= process(result.first, "first", made, block)
    for line in made.sh(LOOK).splitlines():
        line = normal(line, made, block)
        path = line.split()[1]
        if not path.startswith("/dev/pts/"):
            # Directories' sizes and times are not asked for, links' own modes are all the same.
            facts[f"file {path}"] = line
    rules = (made.cgroup("devices") / "devices.list") if made.cgroup("devices").is_dir() else None
    for rule in rules.read_text().splitlines() if rules and rules.exists() else []:
        facts[f"device {normal(rule, made, block)}"] = "allowed"
    facts["keyrings"] = keyrings(made, block)
    running = subprocess.Popen(
        [made.service.program, "exec", "--socket", made.service.socket, made.id, "--", "sleep", "4711"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        pid = wait_for("the exec'd process", lambda: sleeping(made))
        facts |= process(pid, "exec'd", made, block)
        facts["exec'd mounts"] = str(mounts(pid, made, block) == mounts(result.first, made, block))
    finally:
        running.kill()
        running.communicate()
    return result


def first_process(made: Instance) -> int:
    """The host's number of the one that is the first inside."""
    for pid in made.pids():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if status["NStgid"].split()[1:] == ["1"]:
            return pid
    raise AssertionError("there is no first process")


def sleeping(made: Instance) -> int | None:
    """Once it has executed its program."""
    for pid in made.pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x004711\x00":
                return pid
        except OSError:
            continue
    return None


def keyrings(made: Instance, block: int) -> str:
    """Names of those that the instance's root has, as the host's root in its ids sees them."""
    ids = ["setpriv", f"--reuid={block}", f"--regid={block}", "--clear-groups"]
    listed = subprocess.run([*ids, "cat", "/proc/keys"], capture_output=True, text=True, check=True).stdout
    names = {normal(line.split(None, 8)[8].split(":")[0], made, block) for line in listed.splitlines()}
    return str(sorted(name for name in names if "ID" in name))


@pytest.fixture(scope="module")
def made(
    lxcfs: Lxcfs, busybox_file: Path, application_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Made]]:
    """What each runtime makes of each role."""
    services: list[Service] = []
    found = {}
    try:
        for runtime in (NATIVE, *PROGRAMS):
            services.append(Service(runtime, lxcfs.mount_point))
            service = services[-1]
            service.start()
            images = {
                "system": service.import_image(busybox_file),
                "application": service.import_image(application_file),
            }
            for role in ROLES:
                instance = service.spawn(images[role], vifs=[service.vif()])
                time.sleep(1)  # what its programs do to themselves is done
                found[runtime, role] = look(instance, block_of(instance))
        yield found
    finally:
        left = [line for service in services for line in service.close()]
    assert not left, "left on the host:\n" + "\n".join(left)


def block_of(instance: Instance) -> int:
    text = Path(f"/proc/{first_process(instance)}/uid_map").read_text()
    return int(text.split()[1])


def differences(made: dict[tuple[str, str], Made], program: str) -> Iterator[tuple[str, str]]:
    for role in ROLES:
        own, its = made[NATIVE, role].facts, made[program, role].facts
        for name in sorted(own.keys() | its.keys()):
            if own.get(name) != its.get(name):
                yield name, f"{role}: {name}: native {own.get(name)!r}, {program} {its.get(name)!r}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_instance_is_the_same_by_every_runtime(made: dict[tuple[str, str], Made], program: str):
    known = [re.compile(pattern) for of, pattern, _ in DIFFERENT + ON_SOME_HOSTS if of == program]
    unknown = [
        text
        for name, text in differences(made, program)
        if not any(pattern.fullmatch(name) for pattern in known)
    ]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_known_difference_is_still_one(made: dict[tuple[str, str], Made], program: str):
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("the list is of a host with version 1: others lack some of what differs")
    names = {name for name, _ in differences(made, program)}
    stale = [
        pattern
        for of, pattern, _ in DIFFERENT
        if of == program and not any(re.fullmatch(pattern, name) for name in names)
    ]
    assert not stale


@pytest.mark.parametrize("role", ROLES)
def test_the_native_instance_has_what_it_should(made: dict[tuple[str, str], Made], role: str):
    """The comparison would be content with three runtimes that all forgot the same."""
    facts = made[NATIVE, role].facts
    bounding = {"application": "000000fcff1467fb", "system": "000000fcfffcf7ff"}[role]
    for name in ("first", "exec'd"):
        assert facts[f"{name} Seccomp"] == "2" and facts[f"{name} Seccomp_filters"] == "1"
        assert facts[f"{name} CapBnd"] == bounding
        kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
        assert {facts[f"{name} namespace {kind}"] for kind in kinds} == {"own"}
        assert {fact for fact in facts if fact.startswith(f"{name} descriptor")} >= {
            f"{name} descriptor {number}" for number in range(3)
        }
        assert "CGROUP/ID" in facts[f"{name} cgroups"]
    assert facts["exec'd mounts"] == "True"
    assert not [fact for fact in facts if re.match(r"exec'd descriptor [3-9]", fact)]
    assert facts["mount /proc/keys options"].startswith("ro,")
    assert "_ses.ID" in facts["keyrings"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("role", ROLES)
def test_no_system_call_is_answered_otherwise(
    made: dict[tuple[str, str], Made], program: str, role: str, tmp_path: Path
):
    source = Path(__file__).parent / "seccomp_verdicts.c"
    pids = [str(made[runtime, role].first) for runtime in (NATIVE, program)]
    compared = subprocess.run([compiled(source, tmp_path), *pids], capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "0 differences" in compared.stdout
    # Roles differ, so the comparison can.
    other = str(made[program, "application" if role == "system" else "system"].first)
    compared = subprocess.run([tmp_path / source.stem, pids[0], other], capture_output=True, text=True)
    assert compared.returncode == 1, compared.stdout + compared.stderr


@pytest.mark.parametrize(("before", "after"), [("crun", NATIVE), (NATIVE, "crun")])
def test_an_instance_keeps_what_it_was_started_with(
    lxcfs: Lxcfs, busybox_file: Path, before: str, after: str
):
    service = Service(before, lxcfs.mount_point)
    try:
        service.start()
        image = service.import_image(busybox_file)
        kept, anew = service.spawn(image), service.spawn(image)
        service.stop()
        service.settings["runtime"]["program"] = after
        service.start()
        assert service.client.get("/v1/host")["capabilities"]["runtime"]["name"] == after
        assert kept.sh("echo inside") == "inside"
        anew.action("stop", timeout=0)
        anew.action("start")
        assert anew.sh("echo inside") == "inside"
    finally:
        left = service.close()
    assert not left, "left on the host:\n" + "\n".join(left)


def test_the_native_one_is_what_a_service_takes_by_itself():
    service = Service("auto")
    try:
        service.start()
        assert service.client.get("/v1/host")["capabilities"]["runtime"]["name"] == NATIVE
        service.stop()
        # Arguments are a program's.
        service.settings["runtime"]["args"] = ["--log-format=json"]
        service.start()
        assert service.client.get("/v1/host")["capabilities"]["runtime"]["name"] in PROGRAMS
    finally:
        left = service.close()
    assert not left, "left on the host:\n" + "\n".join(left)
