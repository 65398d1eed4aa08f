#!/usr/bin/env python3
"""What a service has made on the host: taken before and after, it shows what was left.

Only what belongs to a *scope* is looked at, so that other work on the same
machine does not matter: mounts, loop devices and files below the scope's
directories; links by the prefixes of their names; cgroups by the name of their
parent; processes that live in those cgroups or were started with a path of the
scope; nftables tables by name.

As a program: hoststate.py [--path DIR]... [--link PREFIX]... [--cgroup NAME]...
prints the state as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scope:
    """What counts as one service's own."""

    paths: tuple[Path, ...] = ()
    links: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    #: Paths relative to `paths` (regular expressions) that may come and go: logs, caches, locks.
    ignored_files: tuple[str, ...] = ()
    #: Processes that may stay: the service itself, lxcfs, the caller.
    ignored_pids: frozenset[int] = frozenset()


State = dict[str, frozenset[str]]


def snapshot(scope: Scope) -> State:
    """Everything of the scope that is on the host now, by kind."""
    return {
        "mounts": frozenset(_mounts(scope)),
        "loop devices": frozenset(_loop_devices(scope)),
        "links": frozenset(_links(scope)),
        "nftables": frozenset(_tables(scope)),
        "cgroups": frozenset(_cgroups(scope)),
        "processes": frozenset(_processes(scope)),
        "files": frozenset(_files(scope)),
        "device nodes": frozenset(_device_nodes()),
    }


def _device_nodes() -> Iterator[str]:
    """Those that every instance gets: a runtime that gives its standard files away changes them."""
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx"):
        status = os.stat(f"/dev/{name}")
        yield f"/dev/{name} {status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:o}"


def difference(before: State, after: State) -> list[str]:
    """One line for everything that came or went, in words; empty: nothing did."""
    lines = []
    for kind in before.keys() | after.keys():
        old, new = before.get(kind, frozenset()), after.get(kind, frozenset())
        lines += [f"{kind}: left behind: {item}" for item in new - old]
        lines += [f"{kind}: gone: {item}" for item in old - new]
    return sorted(lines)


def mount_points() -> Iterator[tuple[Path, str, str]]:
    """Every mount of this mount namespace: mount point, type, source."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, source = right.split(" ")[:2]
        yield Path(_unescape(left.split(" ")[4])), kind, _unescape(source)


def cgroup_hierarchies() -> list[Path]:
    """Mount points of the cgroup hierarchies, v1 and v2."""
    return [point for point, kind, _ in mount_points() if kind in ("cgroup", "cgroup2")]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), text)


def _below(path: str | Path, scope: Scope) -> bool:
    return any(Path(path).is_relative_to(root) for root in scope.paths)


def _mounts(scope: Scope) -> Iterator[str]:
    for point, kind, _ in mount_points():
        # The root itself may be a mount that the caller made.
        if _below(point, scope) and point not in scope.paths:
            yield f"{point} ({kind})"


def _loop_devices(scope: Scope) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:  # detached while we looked
            continue
        if _below(file.removesuffix(" (deleted)"), scope):
            yield f"/dev/{backing.parts[3]} on {file}"


def _links(scope: Scope) -> Iterator[str]:
    if not scope.links:
        return
    for link in Path("/sys/class/net").iterdir():
        if link.name.startswith(scope.links):
            yield link.name


def _tables(scope: Scope) -> Iterator[str]:
    if not scope.links:
        return
    listing = _output("nft", "list", "tables")
    for line in listing.splitlines():
        if any(table_part(prefix) in line.split()[-1] for prefix in scope.links):
            yield line


def table_part(link: str) -> str:
    """How a bridge's nftables table bears its name: in hexadecimal, for nft knows fewer characters."""
    return link.encode().hex()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _cgroups(scope: Scope) -> Iterator[str]:
    for hierarchy in cgroup_hierarchies():
        for name in scope.cgroups:
            top = hierarchy / name
            # The parents themselves stay, as systemd's slices do; whoever is in them is told
            # by the processes.
            for directory, _, _ in os.walk(top):
                if Path(directory) not in (top, top / "monitors"):
                    yield directory


def processes_of(scope: Scope) -> list[int]:
    """Process ids of the scope, the ignored ones left out."""
    return [pid for pid, _ in _scan_processes(scope)]


def _processes(scope: Scope) -> Iterator[str]:
    for pid, command in _scan_processes(scope):
        yield f"{pid} {command[:120]}"


def _scan_processes(scope: Scope) -> Iterator[tuple[int, str]]:
    roots = [str(path) for path in scope.paths]
    parents = [f":/{name}/" for name in scope.cgroups]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in scope.ignored_pids | {os.getpid()}:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (entry / "cgroup").read_text()
            stat = (entry / "stat").read_text()
        except OSError:  # ended while we looked
            continue
        if _awaits_init(stat):
            continue
        ours = any(root in command for root in roots)
        if ours or any(parent in line + "/" for parent in parents for line in groups.splitlines()):
            yield int(entry.name), command.strip() or (entry / "comm").read_text().strip()


def _awaits_init(stat: str) -> bool:
    """Ended, and the host's init, whose child it became, has not yet taken note."""
    state, parent = stat.rpartition(")")[2].split()[:2]
    return state == "Z" and parent == "1"


def _files(scope: Scope) -> Iterator[str]:
    ignored = [re.compile(pattern) for pattern in scope.ignored_files]
    points = {point for point, _, _ in mount_points()}
    for root in scope.paths:
        for directory, children, files in os.walk(root):
            # What is mounted is told by the mounts; its inside is the instance's.
            children[:] = [c for c in children if Path(directory, c) not in points]
            for name in files + children:
                path = Path(directory, name)
                relative = str(path.relative_to(root))
                if not any(pattern.search(relative) for pattern in ignored):
                    yield str(path)


def describe(lines: Iterable[str]) -> str:
    """The difference as an indented list."""
    return "\n".join(f"  {line}" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", action="append", default=[], type=Path)
    parser.add_argument("--link", action="append", default=[])
    parser.add_argument("--cgroup", action="append", default=[])
    given = parser.parse_args()
    scope = Scope(tuple(given.path), tuple(given.link), tuple(given.cgroup))
    json.dump({kind: sorted(items) for kind, items in snapshot(scope).items()}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
