"""The Debian package: what is in it, and its life in a Debian of its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from harness import ROOT
from harness.service import BERTH

#: Shells' completions, programs, configuration, units, pages.
WANTED = {
    "etc/berth/berth.toml": "-rw-r--r--",
    "usr/bin/berth": "-rwxr-xr-x",
    "usr/bin/berth-monitor": "-rwxr-xr-x",
    "lib/systemd/system/berth.service": "-rw-r--r--",
    "lib/systemd/system/lxcfs.service.d/berth.conf": "-rw-r--r--",
    "usr/lib/sysctl.d/60-berth.conf": "-rw-r--r--",
    "usr/share/bash-completion/completions/berth": "-rw-r--r--",
    "usr/share/berth/alerts.yaml": "-rw-r--r--",
    "usr/share/berth/grafana.json": "-rw-r--r--",
    "usr/share/doc/berth/copyright": "-rw-r--r--",
    "usr/share/man/man1/berth.1.gz": "-rw-r--r--",
    "usr/share/man/man1/berth-create.1.gz": "-rw-r--r--",
    "usr/share/man/man1/berth-monitor.1.gz": "-rw-r--r--",
}
UNIT_LINK = "etc/systemd/system/multi-user.target.wants/berth.service"


def output(*command: str | Path, **options) -> str:
    """What a command writes; its failure shows all of it."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """The package of the programs under test."""
    return Path(output(ROOT / "scripts/deb").splitlines()[-1])


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of a version that is to come."""
    tree, path = tmp_path_factory.mktemp("newer") / "tree", tmp_path_factory.mktemp("newer") / "newer.deb"
    output("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 99.0", control.read_text()))
    output("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, path)
    return path


def field(package: Path, name: str) -> str:
    return output("dpkg-deb", "--field", package, name).strip()


def test_its_version_is_cargos(package: Path):
    assert field(package, "Package") == "berth"
    assert field(package, "Version") == output(BERTH, "--version").split()[1]


def test_it_depends_on_what_the_service_calls(package: Path):
    needs = field(package, "Depends")
    for name in ("e2fsprogs", "nftables", "libc6", "libssl3"):
        assert name in needs
    assert "lxcfs" in field(package, "Recommends")


def test_its_files(package: Path):
    found = {}
    for line in output("dpkg-deb", "--contents", package).splitlines():
        mode, owner, *_, name = line.split(" -> ")[0].split()
        assert owner == "root/root", line
        # debhelper knows where this Debian has its units.
        found[name.removeprefix("./").replace("usr/lib/systemd", "lib/systemd")] = mode
    assert {name: found.get(name) for name in WANTED} == WANTED
    assert not [name for name in found if name.startswith(("usr/local", "var", "run"))]


def test_the_programs_are_those_under_test(package: Path, tmp_path: Path):
    output("dpkg-deb", "--extract", package, tmp_path)
    assert output(tmp_path / "usr/bin/berth", "--version") == output(BERTH, "--version")
    [unit] = [path.read_text() for path in tmp_path.rglob("berth.service")]
    assert "ExecStart=/usr/bin/berth serve --config /etc/berth/berth.toml" in unit
    assert "/usr/local" not in unit
    assert "KillMode=process" in unit


def test_its_scripts_touch_no_instance(package: Path, tmp_path: Path):
    output("dpkg-deb", "--control", package, tmp_path)
    assert (tmp_path / "conffiles").read_text() == "/etc/berth/berth.toml\n"
    forbidden = ["kill", "berth delete", "berth stop", "lxcfs"]
    # A purge without an instance, and nothing else, takes the parents of what instances had.
    for name, also in {"postinst": ["umount", "cgroup"], "prerm": ["umount", "cgroup"], "postrm": []}.items():
        script = (tmp_path / name).read_text()
        assert "set -e" in script
        for word in forbidden + also:
            assert word not in script, f"{word} in {name}"
    # Stopped by a removal only; an upgrade starts it anew, at its end.
    assert "deb-systemd-invoke stop" in (tmp_path / "prerm").read_text()
    assert "deb-systemd-invoke $_dh_action" in (tmp_path / "postinst").read_text()


def test_lintian_finds_nothing(package: Path):
    output("lintian", "--no-cfg", "--fail-on", "error,warning", "--allow-root",
           "--suppress-tags", "initial-upload-closes-no-bugs", package)  # fmt: skip


class Debian:
    """A Debian in a directory, with its own dpkg."""

    def __init__(self, root: Path, image: Path):
        self.root = root
        output("tar", "--zstd", "-xf", image, "-C", root)

    def dpkg(self, *arguments: str | Path) -> str:
        """Runs its dpkg; what the image lacks of the dependencies is not at issue."""
        return output("chroot", self.root, "dpkg", "--force-depends", "--force-unsafe-io", *arguments,
                      env=os.environ | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"})  # fmt: skip

    def install(self, package: Path) -> str:
        brought = self.root / package.name
        brought.write_bytes(package.read_bytes())
        try:
            return self.dpkg("--install", f"/{package.name}")
        finally:
            brought.unlink()

    def files(self) -> set[str]:
        """All that is there, dpkg's own notes and logs left out."""
        ours = ("var/lib/dpkg", "var/log", "var/cache")
        found = (str(path.relative_to(self.root)) for path in self.root.rglob("*"))
        return {name for name in found if not name.startswith(ours)}


@pytest.fixture
def debian(tmp_path: Path, debian_file: Path) -> Debian:
    return Debian(tmp_path, debian_file)


def test_its_life(debian: Debian, package: Path, newer: Path):
    before = debian.files()
    debian.install(package)
    assert debian.root.joinpath(UNIT_LINK).is_symlink()
    assert "/etc/berth/berth.toml" in debian.dpkg("--listfiles", "berth")

    # What an operator wrote, and what instances left, outlives upgrade and removal.
    config = debian.root / "etc/berth/berth.toml"
    config.write_text("[service]\nworkers = 3\n")
    disk = debian.root / "var/lib/berth/instances/one/disk"
    disk.parent.mkdir(parents=True)
    disk.write_text("precious")
    debian.install(newer)
    assert "workers = 3" in config.read_text()
    debian.dpkg("--remove", "berth")
    assert not (debian.root / "usr/bin/berth").exists()
    assert "workers = 3" in config.read_text()
    said = debian.dpkg("--purge", "berth")
    assert "/var/lib/berth holds instances and is kept" in said
    assert disk.read_text() == "precious"

    # Without instances a purge leaves nothing.
    debian.install(package)
    disk.unlink()
    disk.parent.rmdir()
    (disk.parent.parent.parent / "images").mkdir()
    debian.dpkg("--purge", "berth")
    assert debian.files() == before


def test_a_removal_says_what_runs_on(debian: Debian, package: Path):
    debian.install(package)
    running = debian.root / "run/berth/i/one/monitor.pid"
    running.parent.mkdir(parents=True)
    running.write_text("1")
    assert "1 instances run on without the service" in debian.dpkg("--remove", "berth")
    assert running.exists()
