"""Images by the programs that people make them with: what each makes of one tree boots, and is that tree.

buildah, podman, mkosi, diskimage-builder and systemd-repart make them here, of a tree that is there
already: what installs packages into one is not asked. Of the network nothing is taken.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imagelib
import pytest
from harness import ROOT

INITTAB = "::sysinit:/bin/echo is up\n::respawn:-/bin/sh\n"


def run(*command: object, **kwargs) -> None:
    """Runs a program, whose words are shown only when it fails."""
    made = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=180, **kwargs,
    )  # fmt: skip
    assert made.returncode == 0, f"{command[0]} failed:\n{made.stdout[-3000:]}"


@dataclass
class Source:
    """The tree, as a tar and unpacked."""

    tar: Path
    tree: Path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", INITTAB)
    tree.file("usr/bin/perl5", "#!/bin/sh\n", 0o755)
    tree.hardlink("usr/bin/perl5.36", "usr/bin/perl5")
    tree.file("usr/bin/owned", "x", 0o4755, uid=33, gid=29)
    tree.file("var/lib/app/data", "data")
    directory = tmp_path_factory.mktemp("builders")
    tar, unpacked = directory / "tree.tar", directory / "tree"
    tar.write_bytes(tree.tar())
    unpacked.mkdir()
    run("tar", "-x", "-C", unpacked, "--numeric-owner", "-f", tar)
    return Source(tar, unpacked)


# -- buildah and podman -----------------------------------------------------------

#: Two layers, the upper one with a deletion; then what the words make of them.
BUILD = """\
set -eu
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
store="--root $WORK/store --runroot /run/store --storage-driver vfs"
buildah="buildah $store" podman="podman $store"
first=$($buildah from scratch)
$buildah add --quiet $first "$TREE" / >/dev/null
$buildah config --cmd '["/sbin/init"]' --env A=1 $first
$buildah commit --quiet $first first >/dev/null
second=$($buildah from --pull-never localhost/first)
$buildah run --isolation chroot $second -- rm /etc/nsswitch.conf
"""
MOST = {
    "buildah's docker-archive": '$buildah commit --quiet $second "docker-archive:$FILE:image:1"',
    "buildah's OCI layout": (
        '$buildah commit --quiet $second "oci:$WORK/layout:t"; tar -c -f "$FILE" -C "$WORK/layout" .'
    ),
    "podman save": (
        '$buildah commit --quiet $second second >/dev/null; $podman save --quiet --output "$FILE" second'
    ),
    "podman save in OCI's form": (
        "$buildah commit --quiet $second second >/dev/null;"
        ' $podman save --quiet --format oci-archive --output "$FILE" second'
    ),
    "podman export": (
        "$buildah commit --quiet $second second >/dev/null;"
        ' $podman export --output "$FILE" $($podman create second)'
    ),
}


def by_buildah(words: str):
    def make(source: Source, file: Path) -> None:
        work = file.parent
        environment = {"TREE": str(source.tar), "FILE": str(file), "WORK": str(work)}
        own = ["unshare", "--mount", "--propagation", "private"]
        run(*own, "sh", "-c", BUILD + words, env=os.environ | environment)

    return make


# -- mkosi ------------------------------------------------------------------------

#: mkosi, with the installation of packages left out: it would come by network.
MKOSI = f"""\
import sys
sys.path.insert(0, {str(ROOT / "target/mkosi/usr/lib/python3/dist-packages")!r})
import mkosi, mkosi.__main__
mkosi.install_distribution = lambda *_: None
mkosi.__main__.main()
"""


def by_mkosi(form: str, *options: str):
    def make(source: Source, file: Path) -> None:
        work = file.parent / "mkosi"
        work.mkdir()
        made = work / "made"
        run(
            "/usr/bin/python3", "-c", MKOSI, "--distribution", "debian", "--release", "bookworm",
            "--extra-tree", source.tar, "--format", form, "--output", made, "--workspace-dir", work,
            "--no-chown", *options, "build", cwd=work,
        )  # fmt: skip
        if form == "directory":
            run("tar", "-c", "-f", file, "-C", made, ".")
        else:
            made.rename(file)

    return make


# -- diskimage-builder ------------------------------------------------------------

#: An element that lays the tree down.
ELEMENT = """\
#!/bin/bash
set -eu
tar -x --numeric-owner -C "$TARGET_ROOT" -f "$BERTH_TREE"
"""


def by_diskimage_builder(source: Source, file: Path) -> None:
    work, venv = file.parent, ROOT / "target/venv-dib/bin"
    element = work / "elements/berth"
    (element / "root.d").mkdir(parents=True)
    (element / "element-provides").write_text("operating-system\n")
    script = element / "root.d/10-tree"
    script.write_text(ELEMENT)
    script.chmod(0o755)
    (work / "tmp").mkdir()
    environment = {
        "ELEMENTS_PATH": str(element.parent),
        "BERTH_TREE": str(source.tar),
        "TMP_DIR": str(work / "tmp"),
        "PATH": f"{venv}:{os.environ['PATH']}",
    }
    run(
        venv / "disk-image-create", "-n", "--no-tmpfs", "-t", "qcow2", "--image-size", "1",
        "--mkfs-options", "-J size=4", "-o", work / "made", "berth", env=os.environ | environment,
    )  # fmt: skip
    (work / "made.qcow2").rename(file)


# -- systemd-repart ---------------------------------------------------------------

#: Partitions by their types alone: no fstab, no labels that mean anything.
PARTITIONS = {
    "10-root": "Type=root\nFormat=ext4\nSizeMinBytes=32M\nSizeMaxBytes=32M\nMakeDirectories=/usr /var\n"
    + "".join(f"CopyFiles=/{name}:/{name}\n" for name in ("bin", "sbin", "etc", "root")),
    "20-usr": "Type=usr\nFormat=ext4\nSizeMinBytes=16M\nSizeMaxBytes=16M\nCopyFiles=/usr:/\n",
    "30-var": "Type=var\nFormat=ext4\nSizeMinBytes=16M\nSizeMaxBytes=16M\nCopyFiles=/var:/\n",
    "40-swap": "Type=swap\nSizeMinBytes=4M\nSizeMaxBytes=4M\n",
}


def by_repart(source: Source, file: Path) -> None:
    definitions = file.parent / "repart.d"
    definitions.mkdir()
    for name, text in PARTITIONS.items():
        (definitions / f"{name}.conf").write_text(f"[Partition]\n{text}")
    run(
        "systemd-repart", "--empty=create", "--size=80M", f"--definitions={definitions}",
        f"--root={source.tree}", "--dry-run=no", file,
    )  # fmt: skip


BUILDERS = {
    **{name: (by_buildah(words), "") for name, words in MOST.items()},
    "mkosi's tar": (by_mkosi("tar"), "rootfs-tar"),
    "mkosi's directory": (by_mkosi("directory"), "rootfs-tar"),
    "mkosi's disk": (by_mkosi("gpt_ext4", "--root-size=48M"), "raw"),
    "diskimage-builder": (by_diskimage_builder, "qcow2"),
    "systemd-repart": (by_repart, "raw"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_tree_is_as_it_was(service, source, tmp_path, name):
    make, form = BUILDERS[name]
    file = tmp_path / "image"
    make(source, file)
    image = service.import_image(file)
    shown = service.client.get(f"/v1/images/{image}")
    assert shown["config"]["init"] == "busybox"
    if form:
        assert shown["format"] == form
    instance = service.spawn(image)
    instance.wait_console("is up")
    assert instance.sh("cat /var/lib/app/data; stat -c '%u:%g %a' /usr/bin/owned") == "data33:29 4755"
    assert instance.sh("stat -c %h /usr/bin/perl5") == "2"
    if name in MOST:
        assert instance.sh("[ -e /etc/nsswitch.conf ] || echo deleted") == "deleted"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
