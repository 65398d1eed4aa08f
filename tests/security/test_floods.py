"""What an instance says without end costs the host little: no more than a serial line would."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness import Terminal
from harness.program import compiled, injected

pytestmark = pytest.mark.alone

#: What the monitor takes of a console in a second, bytes, and at once before that.
RATE, BURST = 256 << 10, 1 << 20


def used(pid: int) -> dict[str, float]:
    """What a process has used: seconds of CPU, bytes written, calls that read and wrote."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    counters = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return {"cpu": seconds, "bytes": counters["wchar"], "calls": counters["syscr"] + counters["syscw"]}


@pytest.fixture(scope="session")
def flood(tmp_path_factory):
    """The program that floods, as a file of an instance."""
    source = Path(__file__).with_name("flood.c")
    return injected(compiled(source, tmp_path_factory.mktemp("flood")), "/bin/flood")


@pytest.mark.parametrize("how", ["lines", "bytes", "drops"])
def test_a_flooded_console_costs_the_host_little(spawn, flood, how):
    """Whatever the size of what it writes at once."""
    instance = spawn(files=[flood])
    instance.wait_console("is up")
    pid = instance.monitor_pid()
    flooding = f"/bin/flood {how} </dev/null 2>/dev/null & sleep 0.1"
    assert "begun" in instance.sh(flooding)
    begun, before = time.monotonic(), used(pid)
    time.sleep(8)
    seconds, after = time.monotonic() - begun, used(pid)
    cost = {name: after[name] - before[name] for name in after}
    print(how, seconds, cost)
    assert instance.run("pidof", "flood").stdout.strip(), "nothing floods"
    assert cost["bytes"] <= BURST + RATE * seconds * 1.1, cost
    assert cost["cpu"] <= 0.05 * seconds, cost


@pytest.mark.each_runtime
def test_what_is_held_back_is_not_lost_and_typing_does_not_wait(spawn, flood):
    """Who is attached sees every line, and is heard while the console is full."""
    last = 300_000  # twice the burst
    instance = spawn(files=[flood])
    instance.wait_console("is up")
    with Terminal(instance) as terminal:
        terminal.wait_raw()
        instance.sh(f"seq 1 {last} > /dev/console 2>&1 </dev/null &")
        seen = terminal.read_until(b"\n%d\r\n" % last, timeout=60)
        numbers = [int(line) for line in seen.split(b"\r\n") if line.isdigit()]
        assert numbers == list(range(1, last + 1))
        # The console is full now, and its user stops what fills it.
        terminal.type(b"\r/bin/flood lines\r")
        terminal.read_until(b"begun")
        time.sleep(1)
        terminal.type(b"\x03")
        terminal.type(b"echo $((6*7))-answers\r")
        terminal.read_until(b"\n42-answers", timeout=5)
