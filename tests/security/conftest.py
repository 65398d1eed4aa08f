"""What tests of walls share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def ctrl_alt_del():
    """What the attempt at restarting changes on the host."""
    file = Path("/proc/sys/kernel/ctrl-alt-del")
    before = file.read_text()
    yield
    file.write_text(before)


@pytest.fixture(scope="module")
def neighbour(service, busybox):
    """Another instance, of which nothing may be told or changed."""
    instance = service.spawn(busybox)
    instance.wait_console("is up")
    yield instance
    instance.discard()
