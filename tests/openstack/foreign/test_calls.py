"""`openstack server …` in the states of a server, compared with the table in `calls.txt`.

`BERTH_WRITE_CALLS=1` writes the table anew: for a change that was meant.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreign import states
from foreign.calls import Cloud

TABLE = Path(__file__).with_name("calls.txt")
ALL = ["none", *states.STATES]
HEADER = (
    "# state | call | requests and HTTP status | what the client says | state afterwards | Nova's reason\n"
)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    made = Cloud()
    made.clear()
    yield made
    made.clear()


def expected(state: str) -> list[str]:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return [line for line in lines if line.startswith(f"{state} |")]


def write(state: str, rows: list[str]) -> None:
    """Puts a state's rows in the place of those that the table has of it."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes write other states
        lines = [line for other in ALL if other != state for line in expected(other)]
        lines = sorted([*lines, *rows], key=lambda line: ALL.index(line.split(" | ")[0]))
        TABLE.write_text(HEADER + "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("state", ALL)
def test_every_call_has_the_answer_that_it_had(cloud: Cloud, state: str) -> None:
    rows = states.creations(cloud) if state == "none" else states.rows(cloud, state)
    if os.environ.get("BERTH_WRITE_CALLS"):
        write(state, rows)
    assert rows == expected(state)


def test_there_are_two_hundred() -> None:
    rows = TABLE.read_text().splitlines()[1:]
    assert len(rows) >= 200
    assert not [row for row in rows if "hangs" in row]
