"""What an instance does, on its console: Nova's trigger_crash_dump."""

from __future__ import annotations

import re

import pytest
from harness import Fault, wait_for

pytestmark = pytest.mark.each_runtime


def dumped(instance) -> str:
    """The last dump."""
    instance.action("dump")
    text = instance.console().replace("\r\n", "\n")
    return text[text.rindex("[dump at ") : text.rindex("[end of the dump]")]


def test_what_it_does_is_on_its_console(service, spawn):
    instance = spawn()
    instance.wait_console("is up")
    instance.sh("exec 3> /root/open-one; sleep 54321 > /dev/null 2>&1 &")
    instance.sh("printf '#!/bin/sh\nsleep 99999\n' > '/bin/\033]0;evil' && chmod +x /bin/*evil")
    start = ("exec", "--user", "1234", instance.id, "--", "/bin/sh", "-c", "/bin/*evil > /dev/null 2>&1 &")
    assert service.run_berth(*start).returncode == 0
    wait_for("it", lambda: "99999" in instance.sh("ps"))
    inside = instance.sh("ps -o pid,args | awk '/sleep 5432[1]/ {print $1}'")
    text = dumped(instance)
    line = next(line for line in text.splitlines() if line.endswith("sleep 54321"))
    pid, _, uid, state, threads, memory, *_ = line.split()
    assert (pid, uid, state, threads) == (inside, "0", "S", "1")
    assert int(memory) > 0
    assert "nanosleep" in line
    assert re.search(rf"open in {inside} \(sleep\): .*/root/open-one", text)
    assert next(line for line in text.splitlines() if "sleep 99999" in line).split()[2] == "1234"
    # Of what the instance can name, nothing steers the terminal.
    assert "evil" in text and "\033" not in text
    assert service.run_berth("dump", instance.id).returncode == 0
    assert instance.console().count("[dump at ") == 2
    assert instance.state == "RUNNING"


def test_who_hangs_is_told_with_where(spawn):
    """A program that waits for a disk that is held still; nobody inside can be asked about it."""
    instance = spawn()
    instance.action("quiesce")
    write = "dd if=/dev/zero of=/root/held bs=1M count=1 > /dev/null 2>&1 &"
    instance.run("/bin/sh", "-c", write, timeout=20)

    def told() -> str | None:
        text = dumped(instance)
        return text if "kernel stack of" in text else None

    text = wait_for("it to hang", told)
    assert re.search(r" D +\d+ +\d+ .*\[dd\]", text), text
    instance.action("unquiesce")
    wait_for("it to go on", lambda: "kernel stack of" not in dumped(instance))


def test_frozen_or_not_but_not_off(spawn):
    instance = spawn()
    instance.wait_console("is up")
    instance.action("pause")
    assert "PID" in dumped(instance)
    instance.action("unpause")
    instance.action("stop", timeout=0)
    with pytest.raises(Fault) as fault:
        instance.action("dump")
    assert fault.value.code == "instance-invalid-state"
