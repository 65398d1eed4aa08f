"""A plug-in of pytest: what python-openstackclient's tests call is a fork of a process that has it loaded.

They call it more than a thousand times, and each time it would take seconds to load its own plug-ins.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shlex
import sys
import tempfile

from openstackclient.shell import OpenStackShell
from openstackclient.tests.functional import base
from openstackclient.tests.functional.compute.v2 import common
from tempest.lib import exceptions


def execute(cmd: str, *, fail_ok: bool = False) -> str:
    """What the client writes; like the tests' own, which start it anew."""
    program, *words = shlex.split(cmd)
    assert program == "openstack"
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _become_client(words, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        said, complained = out.read().decode(), err.read()
    if code and not fail_ok:
        raise exceptions.CommandFailed(code, cmd, said, complained)
    return said


def _become_client(words: list[str], out: int, err: int) -> None:
    """As a new process would be: with its own output, without what pytest caught, without OS_*."""
    code = 1
    try:
        for new, old in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(new, old)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate("rww"))
        for name in [name for name in os.environ if name.startswith("OS_")]:
            del os.environ[name]
        sys.argv = ["openstack", *words]
        code = OpenStackShell().run(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _load() -> None:
    """All commands of all plug-ins, which the client loads at each start."""
    groups = [g for g in importlib.metadata.entry_points().groups if g.startswith("openstack.")]
    for point in (point for group in groups for point in importlib.metadata.entry_points(group=group)):
        with contextlib.suppress(ImportError):  # the client does without, too
            point.load()


_load()
base.execute = execute
# By themselves they look at a server's state every ten seconds.
common.ComputeTestCase.wait_for_status = functools.partialmethod(
    common.ComputeTestCase.wait_for_status, interval=1
)
