"""An lxcfs that hangs holds no instance: it starts without what lxcfs shows."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from harness import Lxcfs

pytestmark = pytest.mark.each_runtime


@pytest.fixture(scope="module")
def lxcfs():
    """One of the module's own, which may be stopped."""
    file_system = Lxcfs()
    yield file_system
    os.kill(file_system.pid, signal.SIGCONT)
    file_system.close()


@pytest.fixture
def hanging(lxcfs):
    os.kill(lxcfs.pid, signal.SIGSTOP)
    yield
    os.kill(lxcfs.pid, signal.SIGCONT)


def covered(instance) -> bool:
    return " /proc/meminfo " in instance.sh("cat /proc/self/mounts")


@contextlib.contextmanager
def within(seconds: float):
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def test_starts_go_on_without_it(service, busybox, hanging, made):
    instances = [service.define(busybox) for _ in range(4)]
    made += instances
    with within(30):
        threads = [threading.Thread(target=i.action, args=("start",)) for i in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for instance in instances:
        assert instance.state == "RUNNING"
        assert not covered(instance)
    assert "lxcfs does not answer" in service.log_tail(1000)


def test_the_check_says_so(service, hanging):
    with within(30):
        said = service.run_berth("check", "--config", str(service.config)).stdout
    assert "does not answer: it hangs" in said


def test_the_next_start_has_it_again(service, busybox, made):
    instance = service.spawn(busybox)
    made.append(instance)
    assert covered(instance)
