"""Programs that ask for what a machine gives: it is given, or is absent as on an older kernel."""

from pathlib import Path

import pytest
from harness.program import compiled, injected

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def ordinary_file(tmp_path_factory):
    """The static program that asks."""
    return compiled(Path(__file__).parent / "ordinary.c", tmp_path_factory.mktemp("ordinary"))


@pytest.fixture(scope="module", params=["system", "application"])
def machine(request, service, busybox, application, ordinary_file):
    """A running instance of each role with the program in it."""
    image = {"system": busybox, "application": application}[request.param]
    instance = service.spawn(image, vifs=[service.vif()], files=[injected(ordinary_file, "/root/ordinary")])
    instance.role = request.param
    yield instance
    instance.discard()


def ask(machine, *words) -> str:
    """What the program says, run by root."""
    command = ("exec", "--user", "0", machine.id, "--", "/root/ordinary", *words)
    return machine.service.run_berth(*command).stdout.strip()


@pytest.mark.parametrize("what", ["no-randomization", "memory-policy", "read-clock"])
def test_what_the_kernel_keeps_within_a_process_works(machine, what):
    assert ask(machine, what) == "works"


def test_keyrings_are_absent_and_not_denied(machine):
    assert ask(machine, "keyring") == "ENOSYS"


# linux_immutable, ipc_lock, sys_pacct, sys_resource, sys_time, sys_tty_config, lease, audit_control, syslog,
# wake_alarm, perfmon, bpf
@pytest.mark.parametrize("capability", [9, 14, 20, 24, 25, 26, 28, 30, 34, 35, 38, 39])
def test_a_program_whose_file_asks_for_a_capability_runs(machine, capability):
    assert ask(machine, "with-capability", str(capability)) == "works"


@pytest.mark.parametrize("what", ["raise-limit", "immutable"])
def test_and_can_do_no_more_for_it(machine, what):
    assert ask(machine, what) == "EPERM"


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("net/core/somaxconn", "2048"),
        ("net/ipv4/ip_unprivileged_port_start", "80"),
        ("net/ipv4/ip_forward", "1"),
        ("kernel/shmmax", "1048576"),
        ("kernel/msgmax", "4096"),
        ("kernel/sem", "250 32000 100 200"),
        ("fs/mqueue/msg_max", "20"),
        ("user/max_pid_namespaces", "10"),
    ],
)
def test_the_sysctls_of_its_own_namespaces_are_its_own(machine, file, value):
    if file.startswith("net/") and machine.role == "application":
        # The kernel lets those of a network only to its administrator, which an application's root is not.
        assert ask(machine, "write", f"/proc/sys/{file}", value) == "EACCES"
        return
    assert ask(machine, "write", f"/proc/sys/{file}", value) == "works"
    read = machine.service.run_berth("exec", "--user", "0", machine.id, "--", "/bin/cat", f"/proc/sys/{file}")
    assert read.stdout.split() == value.split()


@pytest.mark.parametrize("file", ["kernel/core_pattern", "vm/drop_caches", "fs/file-max", "kernel/panic"])
def test_those_of_the_host_are_not(machine, file):
    before = Path("/proc/sys", file).read_text() if file != "vm/drop_caches" else "0"
    assert ask(machine, "write", f"/proc/sys/{file}", before.strip() or "core") in (
        "EACCES",
        "EPERM",
        "EROFS",
    )


def test_shared_memory_is_an_ordinary_tmpfs(machine):
    if machine.role == "system":
        machine.sh("cp /root/ordinary /dev/shm/; /dev/shm/ordinary nothing")
    else:
        exec_as_root = ("exec", "--user", "0", machine.id, "--")
        assert (
            machine.service.run_berth(*exec_as_root, "/bin/cp", "/root/ordinary", "/dev/shm/").returncode == 0
        )
        assert machine.service.run_berth(*exec_as_root, "/dev/shm/ordinary", "nothing").returncode == 0
