"""The command line, as an operator uses it."""

import json
import os
import pty
import subprocess
import uuid

import pytest
from harness.service import BERTH


def test_help_names_every_verb():
    text = subprocess.run([BERTH, "--help"], capture_output=True, text=True, check=True).stdout
    for verb in ("serve", "check", "list", "show", "log", "exec", "console", "top", "image"):
        assert verb in text


def test_list_is_a_table_for_people_and_json_for_programs(instance):
    service = instance.service
    table = service.berth("list")
    assert instance.id in table
    assert "RUNNING" in table
    parsed = json.loads(service.berth("list", "--json"))
    assert instance.id in [i["id"] for i in parsed["instances"]]


def test_show(instance):
    text = instance.service.berth("show", instance.id)
    assert instance.id in text
    assert "RUNNING" in text
    shown = json.loads(instance.service.berth("show", instance.id, "--json"))
    assert shown["id"] == instance.id
    assert shown["power_state"] == "RUNNING"


def test_log(instance):
    assert "is up" in instance.service.berth("log", instance.id)


def at_a_terminal(service, verb: str, *arguments: str) -> bytes:
    """What a terminal is sent when an operator runs a command at it."""
    master, slave = pty.openpty()
    command = [BERTH, verb, "--socket", service.socket, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the last writer has closed it
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    process.wait(30)
    return seen


#: Retitles, clears, colours, returns, C1, no UTF-8, and turns the text round; as printf has it.
EVIL = r"begin\033]0;pwned\007\033[2J\033[31mred\033[0m over\rwritten \302\233A \377 \342\200\256txt end\n"
RAW = b"begin\x1b]0;pwned\x07\x1b[2J\x1b[31mred\x1b[0m over\rwritten \xc2\x9bA \xff \xe2\x80\xaetxt end\r"
TOLD = rb"begin\u{1b}]0;pwned\u{7}\u{1b}[2Jred over\rwritten \u{9b}A \xff \u{202e}txt end" + b"\r\n"


def test_a_log_tells_a_terminal_nothing_unless_raw(instance):
    service = instance.service
    instance.sh(f"printf '{EVIL}' > /dev/console")
    instance.wait_console("txt end")
    shown = at_a_terminal(service, "log", instance.id)
    assert TOLD in shown
    assert not set(shown) & ({*range(32), 127, *range(128, 160)} - {9, 10, 13}), shown
    assert RAW in at_a_terminal(service, "log", "--raw", instance.id)
    command = [BERTH, "log", "--socket", service.socket, instance.id]
    assert RAW in subprocess.run(command, capture_output=True, check=True).stdout


def test_a_followed_log_tells_a_terminal_nothing(spawn):
    instance = spawn()
    instance.wait_console("is up")
    later = f"sleep 1; printf '{EVIL}' > /dev/console; sleep 1; poweroff -f"
    instance.sh(f"({later}) >/dev/null 2>&1 </dev/null &")
    shown = at_a_terminal(instance.service, "log", "--follow", instance.id)
    assert TOLD in shown and b"\x1b" not in shown


def test_a_command_without_a_terminal_tells_the_operators_nothing(instance):
    """Neither by its output nor by its errors; given one, it has the operator's."""
    script = f"printf '{EVIL}'; printf '{EVIL}' >&2"
    shown = at_a_terminal(instance.service, "exec", instance.id, "--", "sh", "-c", script)
    assert shown.count(TOLD) == 2, shown
    assert b"\x1b" not in shown
    tty = at_a_terminal(instance.service, "exec", "--tty", instance.id, "--", "sh", "-c", script)
    assert tty.count(RAW) == 2, tty


def test_names_tell_a_terminal_nothing(spawn, service):
    instance = spawn(metadata={"a": "\x1b[2J\u009b\u202e"}, flavor={"name": "\x1b[2J\u009b\u202e"})
    for verb, *rest in [
        ("show", instance.id),
        ("show", "--json", instance.id),
        ("list", "--json"),
        ("list",),
    ]:
        shown = at_a_terminal(service, verb, *rest)
        assert instance.id[:8].encode() in shown
        assert not set(b"\x1b\x9b") & set(shown) and "\u202e".encode() not in shown, shown
    for answer in (
        service.berth("show", "--json", instance.id),
        at_a_terminal(service, "show", "--json", instance.id),
    ):
        assert json.loads(answer)["metadata"] == {"a": "\x1b[2J\u009b\u202e"}


@pytest.mark.each_runtime
def test_exec_gives_output_errors_and_the_exit_code(instance):
    result = instance.run("/bin/sh", "-c", "echo out; echo err >&2; exit 42")
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 42)
    assert instance.run("cat", stdin=None, input="through").stdout == "through"
    assert instance.run("/no/such/program").returncode in (126, 127, 1, 255)


@pytest.mark.each_runtime
def test_exec_is_inside_the_instances_walls(instance):
    assert instance.sh("hostname") == instance.sh("cat /etc/hostname")
    assert instance.sh("cat /proc/self/uid_map").split()[1] == str(instance.get()["id_map_first"])
    assert instance.sh("readlink /proc/self/ns/net") == instance.sh("readlink /proc/1/ns/net")
    result = instance.run("sh", "-c", "head -c 300m /dev/zero | tail -c 200m | wc -c")
    assert result.stdout.strip() != str(200 << 20), "exec escapes the memory limit"


@pytest.mark.each_runtime
def test_exec_with_a_terminal(instance):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [
            BERTH,
            "exec",
            "--socket",
            instance.service.socket,
            "--tty",
            instance.id,
            "--",
            "sh",
            "-c",
            "readlink /proc/self/fd/0",
        ],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    assert process.wait(30) == 0
    assert b"/dev/pts/" in os.read(master, 4096)
    os.close(master)


def test_top(instance):
    text = instance.service.berth("top", "--once")
    assert instance.id[:8] in text


@pytest.mark.each_runtime
def test_a_life_from_the_command_line(service, busybox_file, tmp_path):
    image = json.loads(service.berth("image import", str(busybox_file), "--json"))
    assert image["id"] in service.berth("image list")
    identity = str(uuid.uuid4())
    definition = {
        "name": "by-hand",
        "image_id": image["id"],
        "flavor": {"vcpus": 1, "memory_mb": 64, "root_gb": 1},
    }
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(definition))
    service.berth("create", str(path), "--id", identity)
    for verb, state in [
        ("start", "RUNNING"),
        ("pause", "PAUSED"),
        ("unpause", "RUNNING"),
        ("suspend", "SUSPENDED"),
        ("resume", "RUNNING"),
        ("reboot", "RUNNING"),
        ("stop", "SHUTDOWN"),
    ]:
        service.berth(verb, identity)
        shown = json.loads(service.berth("show", identity, "--json"))
        assert shown["power_state"] == state, verb
    service.berth("delete", identity)
    assert identity not in service.berth("list")
    service.berth("image delete", image["id"])


def test_a_fault_goes_to_stderr_with_a_nonzero_exit(service, instance):
    unknown = str(uuid.uuid4())
    result = service.run_berth("show", unknown)
    assert result.returncode != 0
    assert result.stdout == ""
    assert unknown in result.stderr
    instance.action("stop", timeout=0)
    result = service.run_berth("pause", instance.id)
    assert result.returncode != 0
    assert len(result.stderr) > 20
    assert "panicked" not in result.stderr


def test_an_instance_is_known_by_its_name_and_by_a_beginning_of_its_id(instance):
    service = instance.service
    for known_as in (instance.get()["name"], instance.id[:13]):
        assert json.loads(service.berth("show", known_as, "--json"))["id"] == instance.id


def test_no_service_is_said_plainly(tmp_path):
    result = subprocess.run([BERTH, "list", "--socket", tmp_path / "none"], capture_output=True, text=True)
    assert result.returncode != 0
    assert str(tmp_path / "none") in result.stderr
    assert "panicked" not in result.stderr


def test_check_prints_a_table_with_remedies(service):
    result = subprocess.run(
        [BERTH, "check", "--config", service.config], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ("overlay", "cgroup", service.settings["runtime"]["program"]):
        assert word in result.stdout


def test_check_names_what_is_missing(service, tmp_path):
    config = tmp_path / "berth.toml"
    text = service.config.read_text()
    program = service.settings["runtime"]["program"]
    config.write_text(text.replace(f'program = "{program}"', 'program = "/no/such/runtime"'))
    result = subprocess.run([BERTH, "check", "--config", config], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "/no/such/runtime" in result.stdout + result.stderr
