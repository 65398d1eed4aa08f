"""Archives and layers as the programs write them that people make images with."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import imagelib
import pytest
from harness import Fault

INITTAB = "::sysinit:/bin/echo is up\n::respawn:-/bin/sh\n"


def run(*command, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], check=True, **kwargs)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A root file system on which a container runtime worked, with access lists and large ids."""
    base = imagelib.busybox_tree()
    base.symlink("sbin/init", "/bin/busybox")
    base.file("etc/inittab", INITTAB)
    base.file("etc/passwd", "root:x:0:0::/root:/bin/sh\ngames:x:5:60::/:/bin/sh\n")
    base.file("etc/group", "root:x:0:\nadm:x:4:\n")
    base.file("usr/bin/perl5", "#!/bin/sh\n", 0o755)
    base.file("var/lib/docker/diff/below", "below")
    base.file(".wh.data", "data")
    base.file("owned", "x", 0o4755, uid=70_000, gid=70_000)
    base.directory("var/log/journal")
    path = tmp_path_factory.mktemp("producers") / "tree"
    path.mkdir()
    run("tar", "-x", "-C", path, "--numeric-owner", input=base.tar())
    os.link(path / "usr/bin/perl5", path / "usr/bin/perl")
    diff = path / "var/lib/docker/diff"
    os.mknod(diff / "gone", 0o020000)
    os.setxattr(diff, "trusted.overlay.opaque", b"y")
    os.setxattr(diff, "user.overlay.opaque", b"y")
    run("setfacl", "-m", "g:adm:r-x,u:games:rwx", "-m", "d:g:adm:r-x", path / "var/log/journal")
    return path


def every_attribute(tree: Path, file: Path, *options: str) -> None:
    run("tar", "-c", "-f", file, "-C", tree, "--acls", "--xattrs", "--xattrs-include=*", *options, ".")


def absolute(tree: Path, file: Path) -> None:
    run("tar", "-cP", "-f", file, f"--transform=flags=rh;s,^{tree}/*,/,", tree)
    names = subprocess.run(["tar", "-tPf", file], capture_output=True, text=True).stdout.split()
    assert "/" in names and "/usr/bin/perl" in names


def pzstd(tree: Path, file: Path) -> None:
    every_attribute(tree, file)
    run("pzstd", "-q", "-p", "2", "--rm", file, "-o", f"{file}.zst")
    Path(f"{file}.zst").rename(file)
    assert file.read_bytes()[1:4] == b"\x2a\x4d\x18"


METADATA = """\
architecture: x86_64
creation_date: 1700000000
expiry_date: 1702592000
properties: {architecture: amd64, os: Debian, release: bookworm, serial: "20231114_2213", variant: default}
templates:
  /etc/hostname: {when: [create, copy], create_only: false, template: hostname.tpl, properties: {}}
"""


def unified(tree: Path, file: Path) -> None:
    """Incus' unified tarball, in the shape of distrobuilder's."""
    top = tree.parent
    (top / "metadata.yaml").write_text(METADATA)
    (top / "templates").mkdir(exist_ok=True)
    (top / "templates/hostname.tpl").write_text("{{ container.name }}\n")
    options = ["--acls", "--xattrs", "--xattrs-include=*", f"--transform=flags=rh;s,^{tree.name},rootfs,"]
    run("tar", "-c", "-J", "-f", file, "-C", top, *options, "metadata.yaml", "templates", tree.name)


def blocked(tree: Path, file: Path) -> None:
    """As GNU tar writes to a tape: whole records, the last one filled up with zeros."""
    every_attribute(tree, file, "-z", "-b", "20")
    size = file.stat().st_size
    with file.open("rb+") as end:
        end.truncate(-(-size // 10_240) * 10_240)
    assert file.stat().st_size > size


def in_members(tree: Path, file: Path) -> None:
    """gzip of parts that were compressed apart, as bgzip and parallel ones write it."""
    every_attribute(tree, file)
    data = file.read_bytes()
    parts = [data[at : at + 300_000] for at in range(0, len(data), 300_000)]
    file.write_bytes(b"".join(gzip.compress(part) for part in [*parts, b""]))


PRODUCERS = {
    "GNU tar": every_attribute,
    "GNU tar, gzip to a tape": blocked,
    "gzip in members": in_members,
    "GNU tar in pax with ids": lambda t, f: every_attribute(t, f, "--format=pax", "--numeric-owner"),
    "GNU tar with a label": lambda t, f: every_attribute(t, f, "-V", "backup"),
    "GNU tar -cP": absolute,
    "GNU tar, incremental": lambda t, f: run(
        "tar", "-c", "-f", f, "-C", t, "--format=gnu", f"--listed-incremental={f}.snar", "."
    ),
    "bsdtar": lambda t, f: run("bsdtar", "--format=pax", "-c", "-f", f, "-C", t, "."),
    "pzstd": pzstd,
    "Incus": unified,
}
#: Those that keep neither access lists nor attributes.
PLAIN = {"GNU tar -cP", "GNU tar, incremental"}


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_root_file_system_is_as_it_was(service, tree, tmp_path, name):
    file = tmp_path / "image"
    PRODUCERS[name](tree, file)
    image = service.import_image(file)
    shown = service.client.get(f"/v1/images/{image}")
    assert shown["format"] == "rootfs-tar"
    (layer,) = shown["layers"]
    root = service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
    if name not in PLAIN:
        lists = subprocess.run(
            ["getfacl", "-nc", root / "var/log/journal"], capture_output=True, text=True
        ).stdout
        for entry in ("user:5:rwx", "group:4:r-x", "default:group:4:r-x"):
            assert entry in lists.split("\n"), lists
        diff = root / "var/lib/docker/diff"
        assert os.getxattr(diff, "user.overlay.opaque") == b"y"
        if name != "bsdtar":  # which leaves out trusted.*
            assert os.getxattr(diff, "trusted.overlay.overlay.opaque") == b"y"
    instance = service.spawn(image)
    instance.wait_console("is up")
    assert instance.sh("cat /.wh.data /var/lib/docker/diff/below") == "databelow"
    assert instance.sh("ls -A /var/lib/docker/diff") == "below\ngone"
    assert instance.sh("stat -c '%n %h' /usr/bin/perl; stat -c '%u:%g %a' /owned") == (
        "/usr/bin/perl 2\n65534:65534 755"
    )
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


@pytest.fixture(scope="module")
def layout(tree, tmp_path_factory) -> Path:
    """An OCI layout by umoci, of two layers; the lower one has absolute names, as kaniko's."""
    work = tmp_path_factory.mktemp("layout")
    absolute(tree, work / "low.tar")
    # Of the lower layer's tree; nothing in a layer may be called so.
    run("tar", "--delete", "-P", "-f", work / "low.tar", "/.wh.data")
    upper = imagelib.Tree()
    upper.file("only/above", "x")
    upper.whiteout("only/never")
    upper.whiteout("etc/inittab")
    (work / "high.tar").write_bytes(upper.tar())
    path = work / "oci"
    run("umoci", "init", "--layout", path)
    run("umoci", "new", "--image", f"{path}:t")
    for name in ("low", "high"):
        run("umoci", "raw", "add-layer", "--image", f"{path}:t", work / f"{name}.tar")
    run(
        "umoci", "config", "--image", f"{path}:t", "--config.cmd", "/bin/sh",
        "--config.cmd", "-c", "--config.cmd", "echo is up; exec sleep 1000",
    )  # fmt: skip
    return path


def signed(layout: Path, file: Path) -> None:
    """The layout, with a signature as cosign keeps it before the image."""
    work = file.parent / "signed"
    run("cp", "-r", layout, work)

    def blob(data: bytes, kind: str) -> dict:
        digest = imagelib.sha256(data)
        (work / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = blob(b"{}", "application/vnd.oci.image.config.v1+json")
    payload = blob(b"payload", "application/vnd.dev.cosign.simplesigning.v1+json")
    manifest = {"schemaVersion": 2, "config": config, "layers": [payload]}
    kind = "application/vnd.oci.image.manifest.v1+json"
    index = json.loads((work / "index.json").read_text())
    index["manifests"].insert(0, blob(json.dumps(manifest).encode(), kind))
    (work / "index.json").write_text(json.dumps(index))
    run("tar", "-c", "-f", file, "-C", work, ".")


def by_skopeo(form: str):
    def make(layout: Path, file: Path) -> None:
        if form == "dir":
            to = file.parent / "dir"
            run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:t", f"dir:{to}")
            run("tar", "-c", "-f", file, "-C", to, ".")
        else:
            run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:t", f"{form}:{file}:t:1")

    return make


LAYOUTS = {
    "umoci": lambda layout, file: run("tar", "-c", "-f", file, "-C", layout, "."),
    "umoci, signed": signed,
    "skopeo's dir": by_skopeo("dir"),
    "skopeo's oci-archive": by_skopeo("oci-archive"),
    "skopeo's docker-archive": by_skopeo("docker-archive"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_image_of_layers_is_as_it_was(service, layout, tmp_path, name):
    file = tmp_path / "image"
    LAYOUTS[name](layout, file)
    image = service.import_image(file)
    instance = service.spawn(image)
    instance.wait_console("is up")
    assert instance.sh("ls -A /only") == "above", "a deletion of nothing is seen"
    assert instance.sh("[ -e /etc/inittab ] || echo deleted") == "deleted"
    assert instance.sh("stat -c %h /usr/bin/perl") == "2"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def test_the_disk_of_an_ova_is_taken(service, tree, tmp_path):
    disk, vmdk = tmp_path / "disk.raw", tmp_path / "vm-disk1.vmdk"
    disk.touch()
    os.truncate(disk, 64 << 20)
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, disk)
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, vmdk)
    (tmp_path / "vm.ovf").write_text("<Envelope/>")
    run("tar", "-c", "-f", tmp_path / "vm.ova", "--format=ustar", "-C", tmp_path, "vm.ovf", vmdk.name)
    image = service.import_image(tmp_path / "vm.ova")
    assert service.client.get(f"/v1/images/{image}")["format"] == "vmdk"
    instance = service.spawn(image)
    instance.wait_console("is up")
    assert instance.sh("cat /.wh.data; ls -A /var/lib/docker/diff; stat -c %u /owned") == (
        "databelow\ngone\n65534"
    )
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def tar_of(*members: tuple[str, bytes]) -> bytes:
    tree = imagelib.Tree()
    for name, content in members:
        tree.file(name, content, 0o755)
    return tree.tar()


FOREIGN = b"\x7fELF\x02\x02\x01".ljust(18, b"\0") + b"\0\x16" + bytes(44)
REFUSED = {
    "nothing": (lambda: b"", "empty, without a single byte"),
    "LVM": (lambda: bytes(512) + b"LABELONE" + bytes(4096), "a physical volume of LVM"),
    "another machine": (lambda: tar_of(("bin/sh", FOREIGN), ("etc/x", b"")), "a program for s390x"),
    "half of Incus": (lambda: tar_of(("metadata.yaml", b"x")), "root file system (rootfs.tar.xz"),
    "OVA without a disk": (lambda: tar_of(("vm.ovf", b"x")), "an OVA"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(service, tmp_path, name):
    make, words = REFUSED[name]
    (tmp_path / "image").write_bytes(make())
    with pytest.raises(Fault) as fault:
        service.import_image(tmp_path / "image")
    assert fault.value.code == "image-unacceptable"
    assert words in fault.value.detail
    assert not service.client.get("/v1/images")["images"]
    assert not list((service.state_dir / "images/tmp").iterdir())
