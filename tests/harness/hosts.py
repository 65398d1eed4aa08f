"""What a test needs of the host, taken for a while and given back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hoststate import mount_points


def unmount(path: Path) -> None:
    """Unmounts lazily; that nothing is mounted is fine."""
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)


def cgroup_dir(controller: str) -> Path:
    """The mount point of the hierarchy that has the controller."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        if kind == "cgroup" and controller in options.split(","):
            return Path(left.split(" ")[4])
    return unified_dir()


def unified_dir() -> Path:
    """The mount point of the v2 hierarchy."""
    for point, kind, _ in mount_points():
        if kind == "cgroup2":
            return point
    raise RuntimeError("no cgroup2 hierarchy is mounted")


class Lxcfs:
    """lxcfs on a mount point of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="berth-lxcfs-", dir="/var/tmp"))
        self.mount_point = self.directory / "fs"
        self.mount_point.mkdir()
        self.directory.chmod(0o755)
        self._log = (self.directory / "log").open("wb")
        self.start()

    def start(self) -> None:
        """Starts it and waits until it shows something."""
        self._process = subprocess.Popen(
            ["lxcfs", "-f", "-l", "--enable-cfs", "-p", self.directory / "pid", self.mount_point],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while not (self.mount_point / "proc/meminfo").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / "log").read_text(errors="replace")
                self.close()
                raise RuntimeError(f"lxcfs does not start:\n{text}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Ends it as a crash does, its mount left dead."""
        self._process.kill()
        self._process.wait()

    def be_there(self) -> None:
        """Starts it again if it was killed, the dead mount taken away before as its unit does."""
        if self._process.poll() is not None:
            unmount(self.mount_point)
            self.start()

    def close(self) -> None:
        """Ends it by its process id and takes its directory away."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        unmount(self.mount_point)
        shutil.rmtree(self.directory, ignore_errors=True)


def return_hugetlb(point: Path) -> None:
    """Unmounts a v1 hugetlb hierarchy and sees the controller back on the unified one.

    The kernel takes a moment for that. A hierarchy whose last group was removed an instant
    before even stays alive without a mount, and only its next unmount ends it: until then
    crun seems to work, and then does not.
    """
    unified = unified_dir()
    for attempt in range(10):
        if attempt:
            subprocess.run(["mount", "-t", "cgroup", "-o", "hugetlb", "hugetlb", point], check=True)
        subprocess.run(["umount", point], check=True)
        for _ in range(30):
            if cgroup_dir("hugetlb") != unified:
                return  # somebody else has it mounted, too
            if "hugetlb" in (unified / "cgroup.controllers").read_text().split():
                return
            time.sleep(0.1)
    print(f"hugetlb stays away from {unified}: is it mounted in another mount namespace?", file=sys.stderr)


class Hugetlb:
    """A v1 hugetlb hierarchy, where the unified one of a hybrid host still holds that controller.

    crun refuses a hybrid host on which any controller is left on the unified hierarchy.
    """

    def __init__(self) -> None:
        self.directory: Path | None = None
        unified = unified_dir()
        if unified == Path("/sys/fs/cgroup") or Path("/sys/fs/cgroup/hugetlb").is_mount():
            return  # crun is at home: pure v2, or nothing is left on the unified hierarchy
        if cgroup_dir("hugetlb") != unified:
            return  # somebody has mounted one
        # Runtimes take the mount point's name for the controller's.
        self.directory = Path(tempfile.mkdtemp(prefix="berth-", dir="/var/tmp")) / "hugetlb"
        self.directory.mkdir()
        mount = ["mount", "-t", "cgroup", "-o", "hugetlb", "hugetlb", self.directory]
        # The controller moves only while no group of the unified hierarchy has it;
        # groups that were just removed hold it for a moment.
        deadline = time.monotonic() + 30
        while subprocess.run(mount, capture_output=True).returncode:
            if time.monotonic() > deadline:
                self._remove()
                groups = [str(p) for p in unified.iterdir() if p.is_dir()]
                raise RuntimeError(f"hugetlb cannot leave the unified hierarchy; its groups: {groups}")
            time.sleep(0.2)

    def close(self) -> None:
        """Unmounts it; the controller returns to the unified hierarchy."""
        if self.directory:
            # Groups that a killed runtime left in it would keep the hierarchy alive.
            for group in self.directory.glob("berth*"):
                for path, _, _ in os.walk(group, topdown=False):
                    Path(path).rmdir()
            return_hugetlb(self.directory)
            self._remove()

    def _remove(self) -> None:
        if self.directory:
            self.directory.rmdir()
            self.directory.parent.rmdir()


@contextlib.contextmanager
def small_file_system(disk: Path, mib: int) -> Iterator[Path]:
    """An ext4 of so many MiB in the new file `disk`, mounted where a state directory may be."""
    base = Path(tempfile.mkdtemp(prefix="berth-small-", dir="/var/tmp"))
    with disk.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, base], check=True)
    try:
        yield base
    finally:
        # A mount namespace that another worker's test just makes holds all mounts for a moment.
        for _ in range(50):
            if subprocess.run(["umount", base], check=False).returncode == 0:
                break
            time.sleep(0.2)
        base.rmdir()
