"""Archives made to harm: each is refused for its own reason, or read and does nothing.

One service reads them all. After each, nothing outside its store has changed,
nothing of the import is left, and at the end it still imports a good image.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import imagelib
import pytest
from harness import Fault, Service

BLOCK = 512
CONFIG = {"Cmd": ["/bin/sh"]}
LIMITS = {"max_entries": 10_000, "max_unpacked_bytes": 1 << 30}


# -- how archives are made ----------------------------------------------------


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    """A header, whatever it says, and its data."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + padded(data)


def directory(name: str) -> bytes:
    return member(name, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> bytes:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> bytes:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def pax(kind: bytes = tarfile.XHDTYPE, **records: bytes | str | int) -> bytes:
    """An extension header for the member that follows. `__` in a key stands for a dot."""
    data = b""
    for key, value in records.items():
        value = value if isinstance(value, bytes) else str(value).encode()
        rest = key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + 2
        while length != len(rest) + 1 + len(str(length)):
            length = len(rest) + 1 + len(str(length))
        data += f"{length} ".encode() + rest
    return member("pax", data, kind)


def resized(header: bytes, size: bytes) -> bytes:
    """A header whose size field holds these bytes, with a right check sum."""
    block = bytearray(header[:BLOCK])
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + header[BLOCK:]


END = bytes(2 * BLOCK)
TOP = directory("etc") + directory("bin")


def rootfs(*members: bytes) -> bytes:
    """A root file system with these members in it."""
    return TOP + b"".join(members) + END


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-1", "-c"], input=data, capture_output=True, check=True).stdout


def archive(members: dict[str, bytes], *more: bytes) -> bytes:
    """An image archive, of whatever members."""
    return b"".join(member(name, data) for name, data in members.items()) + b"".join(more) + END


def docker(
    *layers: bytes,
    manifest: bytes | None = None,
    names: list[str] | None = None,
    config: bytes | None = None,
    config_name: str = "config.json",
    more: bytes = b"",
) -> bytes:
    """What `docker save` writes, with parts of it replaced."""
    layers = layers or (rootfs(),)
    names = names or [f"{number}.tar" for number in range(len(layers))]
    config = imagelib.image_config(list(layers), CONFIG) if config is None else config
    whole = json.dumps([{"Config": config_name, "RepoTags": None, "Layers": names}]).encode()
    blobs = {f"{number}.tar": layer for number, layer in enumerate(layers)}
    documents = {config_name.lstrip("/"): config, "manifest.json": whole if manifest is None else manifest}
    return archive(blobs | documents, more)


def oci(index: dict, *blobs: bytes) -> bytes:
    """An OCI layout with this index."""
    members = {f"blobs/sha256/{imagelib.sha256(blob)}": blob for blob in blobs}
    members |= {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    return archive(members)


def descriptor(data: bytes, kind: str = "application/vnd.oci.image.manifest.v1+json") -> dict:
    return {"mediaType": kind, "digest": f"sha256:{imagelib.sha256(data)}", "size": len(data)}


def oci_with_layer(layer: dict) -> bytes:
    """An OCI image whose one layer is described so."""
    config = imagelib.image_config([rootfs()], CONFIG)
    kind = "application/vnd.oci.image.config.v1+json"
    manifest = json.dumps(
        {"schemaVersion": 2, "config": descriptor(config, kind), "layers": [layer]}
    ).encode()
    return oci({"schemaVersion": 2, "manifests": [descriptor(manifest)]}, config, manifest)


def endless_indexes() -> bytes:
    """Indexes that lead to indexes."""
    kind = "application/vnd.oci.image.index.v1+json"
    blobs, last = [], b'{"schemaVersion": 2, "manifests": []}'
    for _ in range(8):
        blobs.append(last)
        last = json.dumps({"schemaVersion": 2, "manifests": [descriptor(last, kind)]}).encode()
    return oci(json.loads(last), *blobs)


def other_architecture() -> bytes:
    config = json.loads(imagelib.image_config([rootfs()], CONFIG))
    return docker(config=json.dumps(config | {"architecture": "s390x"}).encode())


def ten_million_entries() -> bytes:
    """One frame of a hundred thousand directories, a hundred times: a few kB each."""
    frame = zstd(directory("etc/one/of/many") * 100_000)
    return zstd(TOP) + frame * 100 + zstd(END)


def zeros(gigabytes: int) -> bytes:
    """Zeros, in a few kB each gigabyte: frames of blocks that are one byte, many times over."""
    block = struct.pack("<I", 1 << 1 | (1 << 17) << 3)[:3] + b"\0"
    last = struct.pack("<I", 1 | 1 << 1 | (1 << 17) << 3)[:3] + b"\0"
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([7 << 3]) + block * 8191 + last
    return frame * gigabytes


def huge(name: str, size: int) -> bytes:
    """The header of a file of that size, of which nothing follows."""
    return resized(member(name), b"\x80" + size.to_bytes(11, "big"))


def huge_window() -> bytes:
    """A zstd frame that asks for 2 GiB of memory."""
    data = rootfs()[:1024]
    return (
        b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + struct.pack("<I", len(data) << 3 | 1)[:3] + data
    )


def huge_dictionary() -> bytes:
    """An xz stream that asks for 4 GiB of memory."""
    data = bytearray(lzma.compress(rootfs(), preset=0))
    size = (data[12] + 1) * 4
    data[16] = 40
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    return bytes(data)


def gnu_sparse(name: str, pieces: list[tuple[int, int]], size: int, data: bytes) -> bytes:
    """A sparse file in the old GNU format."""
    header = bytearray(member(name, data, tarfile.GNUTYPE_SPARSE))
    for number, (offset, length) in enumerate(pieces):
        at = 386 + 24 * number
        header[at : at + 24] = b"%011o\0%011o\0" % (offset, length)
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    return bytes(header)


# -- the corpus ---------------------------------------------------------------


@dataclass
class Case:
    """What it tries, how it is made, and what becomes of it."""

    tries: str
    make: Callable[[], bytes]
    #: A word of the refusal; empty: it is read.
    word: str = ""
    code: str = "image-unacceptable"
    #: What the unpacked layers hold afterwards, when it is read; None: not there.
    holds: dict[str, bytes | None] = field(default_factory=dict)
    #: What has a mark of overlayfs's as data, which must not act.
    obeys_not: str = ""


OUTSIDE = "berth-was-here"

CASES = [
    # Names.
    Case("climbs out by its name", lambda: rootfs(member(f"etc/../../{OUTSIDE}", b"x")), "'..'"),
    Case("climbs out by its whole name", lambda: rootfs(directory("..")), "'..'"),
    Case("is absolute", lambda: rootfs(member(f"/{OUTSIDE}", b"x")), holds={OUTSIDE: b"x"}),
    Case(
        "is absolute and climbs",
        lambda: rootfs(member(f"/../../{OUTSIDE}", b"x")),
        holds={OUTSIDE: b"x"},
    ),
    Case("hides its end behind a zero", lambda: rootfs(pax(path=b"etc/a\0/../../b"), member("x")), "zero"),
    Case("takes its name away", lambda: rootfs(pax(path=""), member("x", b"x")), holds={"x": b"x"}),
    Case("has a name of 4 KB", lambda: rootfs(pax(path="etc/" + "n" * 4000), member("x")), "255"),
    Case("has a path of 5 KB", lambda: rootfs(pax(path="etc/" + "n/" * 2500), member("x")), "4095"),
    Case("lies a thousand deep", lambda: rootfs(pax(path="e/" * 1000 + "x"), member("x")), "256 directories"),
    Case("goes through a file", lambda: rootfs(member("etc/f"), member("etc/f/x")), "no directory"),
    Case(
        "puts a file in the place of a full directory",
        lambda: rootfs(member("etc/d/x"), member("etc/d")),
        "something in it",
    ),
    Case("puts a file in the place of the root", lambda: rootfs(member(".")), "root"),
    Case(
        "writes to the operator's terminal",
        lambda: rootfs(member("etc/\x1b[2J\nok", b"x")),
        holds={"etc/\x1b[2J\nok": b"x"},
    ),
    Case("writes so in a refusal", lambda: rootfs(member("../\x1b[2J/x", b"x")), r"\x1b"),
    Case(
        "climbs by the name that only a snapshot has",
        lambda: docker(rootfs(pax(BERTH__path=f"../../{OUTSIDE}"), member("etc/x", b"x"))),
        "'..'",
    ),
    # Links.
    Case(
        "writes through a link that leads out",
        lambda: rootfs(symlink("etc/out", "../../../.."), member(f"etc/out/{OUTSIDE}", b"x")),
        "leads out",
    ),
    Case(
        "writes through a link to /",
        lambda: rootfs(symlink("etc/out", "/"), member(f"etc/out/{OUTSIDE}", b"x")),
        holds={OUTSIDE: b"x"},
    ),
    Case(
        "writes through /proc/self/root",
        lambda: rootfs(symlink("etc/out", "/proc/self/root"), member(f"etc/out/{OUTSIDE}", b"x")),
        holds={f"proc/self/root/{OUTSIDE}": b"x"},
    ),
    Case(
        "writes to what a link of the same name points at",
        lambda: rootfs(symlink("etc/x", "/etc/hostname"), member("etc/x", b"mine")),
        holds={"etc/x": b"mine"},
    ),
    Case(
        "writes to a link by another name of it",
        lambda: rootfs(
            symlink("etc/x", "/etc/hostname"), hardlink("etc/y", "etc/x"), member("etc/y", b"mine")
        ),
        holds={"etc/y": b"mine"},
    ),
    Case(
        "makes a directory of the link that it then goes through",
        lambda: rootfs(symlink("etc/d", "/"), directory("etc/d"), member(f"etc/d/{OUTSIDE}", b"x")),
        holds={f"etc/d/{OUTSIDE}": b"x", OUTSIDE: None},
    ),
    Case(
        "writes in an upper layer through a link of a lower one",
        lambda: docker(rootfs(symlink("out", "/")), rootfs(member(f"out/{OUTSIDE}", b"x"))),
        holds={f"out/{OUTSIDE}": b"x"},
    ),
    Case(
        "goes round in a loop of links",
        lambda: rootfs(symlink("etc/a", "b"), symlink("etc/b", "a"), member("etc/a/x")),
        "too many links",
    ),
    Case(
        "grows its path with each link",
        lambda: rootfs(symlink("etc/a", "a/" + "b/" * 40), member("etc/a/x")),
        "links",
    ),
    Case("links to no name", lambda: rootfs(symlink("etc/x", "")), "empty"),
    Case(
        "links to a name of 5 KB",
        lambda: rootfs(pax(linkpath="t" * 5000), symlink("etc/x", "t")),
        "longer than Linux",
    ),
    Case("takes the host's password file", lambda: rootfs(hardlink("etc/x", "../../etc/shadow")), "'..'"),
    Case("takes it by its full name", lambda: rootfs(hardlink("etc/x", "/etc/shadow")), "not in this layer"),
    Case(
        "takes it through a link",
        lambda: rootfs(symlink("etc/d", "../../../etc"), hardlink("etc/x", "etc/d/shadow")),
        "leads out",
    ),
    Case("is a second name of itself", lambda: rootfs(member("etc/x"), hardlink("etc/x", "etc/x")), "itself"),
    Case("is a second name of a directory", lambda: rootfs(hardlink("bin/x", "etc")), "a directory"),
    Case(
        "is a second name of what comes later",
        lambda: rootfs(hardlink("etc/x", "etc/y"), member("etc/y")),
        "not in this layer",
    ),
    # What is no file.
    Case("brings the host's disk", lambda: rootfs(member("etc/sda", kind=tarfile.BLKTYPE, devmajor=8))),
    Case(
        "brings overlayfs's mark",
        lambda: docker(rootfs(member("etc/x", b"x")), rootfs(member("etc/x", kind=tarfile.CHRTYPE))),
        obeys_not="etc/x",
    ),
    Case(
        "has a device number that wraps",
        lambda: rootfs(member("etc/x", kind=tarfile.CHRTYPE, devmajor=1 << 16, devminor=1)),
        "device",
    ),
    Case(
        "has a pipe that whoever looks for init would wait at",
        lambda: rootfs(directory("sbin"), member("sbin/init", kind=tarfile.FIFOTYPE)),
    ),
    Case("is of a kind that nobody knows", lambda: rootfs(member("etc/x", kind=b"Z")), "type"),
    # Sizes.
    Case(
        "says in pax that it is longer",
        lambda: rootfs(pax(size=1 << 20), member("etc/x", b"x")),
        "cut off",
        code="image-corrupt",
    ),
    Case(
        "says in pax that it is beyond all bounds", lambda: rootfs(pax(size=2**64 - 1), member("x")), "size"
    ),
    Case("says in pax that it is more than a number", lambda: rootfs(pax(size=2**64), member("x")), "size"),
    Case(
        "says in pax that it is empty, and is an archive",
        lambda: rootfs(pax(size=0), member("etc/x", member(f"../../{OUTSIDE}", b"x"))),
        "'..'",
    ),
    Case("is shorter than nothing", lambda: rootfs(resized(member("etc/x"), b"\xff" * 12)), "size"),
    Case("has a size that is no number", lambda: rootfs(resized(member("etc/x"), b"many")), "size"),
    Case(
        "is a directory with content",
        lambda: rootfs(member("etc/d", b"x" * 512, kind=tarfile.DIRTYPE)),
        "check sum",
    ),
    Case(
        "is 1 TB of nothing in 1 kB",
        lambda: rootfs(pax(GNU__sparse__size=1 << 40, GNU__sparse__map=f"{1 << 40},0"), member("etc/x")),
        "max_unpacked_bytes",
    ),
    Case("is 1 TB of zeros", lambda: zstd(TOP + huge("etc/x", 1 << 40)) + zeros(1), "max_unpacked_bytes"),
    Case(
        "is 2 GB of zeros in two files that may be",
        lambda: zstd(TOP + huge("etc/x", 1 << 30)) + zeros(1) + zstd(huge("etc/y", 1 << 30)) + zeros(1),
        "max_unpacked_bytes",
    ),
    Case(
        "is a layer of 1 TB of zeros",
        lambda: docker(zstd(TOP + huge("etc/x", 1 << 40)) + zeros(1)),
        "max_unpacked_bytes",
    ),
    Case("goes on for 1 TB after its end", lambda: zstd(rootfs()) + zeros(1) * 1000, "after its end"),
    Case("is ten million files", ten_million_entries, "max_entries"),
    Case(
        "has a map of pieces that overlap",
        lambda: rootfs(gnu_sparse("etc/x", [(0, 512), (256, 512)], 4096, b"x" * 1024)),
        "sparse",
    ),
    Case(
        "has a map beyond its end",
        lambda: rootfs(gnu_sparse("etc/x", [(8192, 512)], 4096, b"x" * 512)),
        "sparse",
    ),
    Case(
        "has a map with more in it than there is",
        lambda: rootfs(pax(GNU__sparse__size=4096, GNU__sparse__map="0,4096"), member("etc/x", b"x")),
        "sparse",
    ),
    Case(
        "names itself in 1 GB",
        lambda: rootfs(resized(member("x", kind=tarfile.GNUTYPE_LONGNAME), b"%011o" % (1 << 30))),
        "1 MiB",
    ),
    # What extends a member.
    Case("renames all members", lambda: rootfs(pax(tarfile.XGLTYPE, path="../x"), member("etc/x")), "global"),
    Case(
        "has two names of one kind",
        lambda: rootfs(pax(path="etc/a"), pax(path="../b"), member("etc/x")),
        "two",
    ),
    Case("has a record that lies about its length", lambda: rootfs(member("p", b"99 path=a\n", b"x")), "pax"),
    Case("extends nothing", lambda: rootfs(pax(path="etc/x")), "after an extension"),
    Case(
        "brings overlayfs's attributes",
        lambda: rootfs(pax(SCHILY__xattr__trusted__overlay__redirect="/../../etc"), directory("etc/d")),
        obeys_not="etc/d",
    ),
    Case(
        "brings a capability that is none",
        lambda: rootfs(pax(SCHILY__xattr__security__capability=b"\xff" * 40), member("etc/x", b"x")),
        "capability",
    ),
    Case("is the host's user's", lambda: rootfs(member("etc/x", b"x", uid=100_000)), holds={"etc/x": b"x"}),
    Case(
        "has an access list of a million",
        lambda: rootfs(pax(SCHILY__acl__access="u:1:rwx," * 100_000), member("etc/x")),
        "no access list",
    ),
    Case("is nobody's at all", lambda: rootfs(pax(uid="-1"), member("etc/x")), "no number"),
    Case(
        "says two things of one name",
        lambda: rootfs(member("etc/x", b"first"), directory("etc/x"), member("etc/x", b"second")),
        holds={"etc/x": b"second"},
    ),
    # Deletions.
    Case("deletes what is above", lambda: docker(rootfs(member("etc/.wh..."))), "deletes nothing"),
    Case("deletes its own directory", lambda: docker(rootfs(member("etc/.wh.."))), "deletes nothing"),
    Case("deletes nothing", lambda: docker(rootfs(member("etc/.wh."))), "deletes nothing"),
    Case("lies in a deletion", lambda: docker(rootfs(member("etc/.wh.d/x"))), "name of a deletion"),
    Case("deletes by a directory", lambda: docker(rootfs(directory("etc/.wh.d"))), "must be a file"),
    Case(
        "deletes through a link that leads out",
        lambda: docker(rootfs(symlink("etc/out", "../../.."), member("etc/out/.wh.etc"))),
        "leads out",
    ),
    Case(
        "hides all through a link that leads out",
        lambda: docker(rootfs(symlink("etc/out", "../../.."), member("etc/out/.wh..wh..opq"))),
        "leads out",
    ),
    Case(
        "deletes what never was",
        lambda: docker(rootfs(member("etc/.wh.never"))),
        holds={"etc/.wh.never": None},
    ),
    Case(
        "deletes where nothing is below",
        lambda: rootfs(member("etc/.wh.passwd", b"x")),
        holds={"etc/.wh.passwd": b"x"},
    ),
    # What holds layers.
    Case("has a layer outside", lambda: docker(names=["../../../../etc/passwd"]), "lacks the member"),
    Case("has a layer by a full name", lambda: docker(names=["/etc/passwd"]), "lacks the member"),
    Case(
        "has its config outside",
        lambda: docker(manifest=b'[{"Config": "../../etc/passwd", "Layers": ["0.tar"]}]'),
        "lacks the member",
    ),
    Case(
        "has a layer that is a link out",
        lambda: docker(names=["l.tar"], more=symlink("l.tar", "../../etc/passwd")),
        "links to something outside",
    ),
    Case(
        "has a layer that is a second name of a host's file",
        lambda: docker(names=["l.tar"], more=hardlink("l.tar", "/etc/shadow")),
        "lacks the member",
    ),
    Case(
        "has a layer in a loop of links",
        lambda: docker(names=["a"], more=symlink("a", "b") + symlink("b", "a")),
        "lacks the member",
    ),
    Case("has two manifests", lambda: docker(more=member("./manifest.json", b"[]")), "twice"),
    Case("is two images", lambda: docker(manifest=b'[{"Config": "a"}, {"Config": "b"}]'), "2 images"),
    Case("has a manifest of 5 MB", lambda: docker(manifest=b" " * (5 << 20) + b"[]"), "4194304"),
    Case("has a manifest without a floor", lambda: docker(manifest=b"[" * 100_000), "manifest.json"),
    Case(
        "has a thousand layers",
        lambda: docker(
            names=["0.tar"] * 1000,
            config=imagelib.image_config([b""] * 1000, CONFIG),
        ),
        "1 to 127",
    ),
    Case(
        "has a layer that is another than its digest says",
        lambda: docker(rootfs(), config=imagelib.image_config([b"another"], CONFIG)),
        "its config says",
        code="image-corrupt",
    ),
    Case(
        "has a config that is another than its name says",
        lambda: docker(config_name="0" * 64 + ".json"),
        "hash",
        code="image-corrupt",
    ),
    Case("is for another machine", other_architecture, "s390x"),
    Case("has a disk for a layer", lambda: docker(b"QFI\xfb\0\0\0\3" + b"\0" * 100_000), "check sum"),
    Case("leads from index to index", endless_indexes, "without end"),
    Case(
        "has a digest that is a path",
        lambda: oci({"manifests": [descriptor(b"") | {"digest": "sha256:../../../../etc/passwd"}]}),
        "digest",
    ),
    Case(
        "has a layer that is to be fetched from elsewhere",
        lambda: oci_with_layer(
            descriptor(b"elsewhere", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
            | {"urls": ["http://127.0.0.1:1/layer"]}
        ),
        "lacks the member",
    ),
    Case(
        "has a layer that is encrypted",
        lambda: oci_with_layer(descriptor(b"x", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")),
        "encrypted",
    ),
    # What it is packed in.
    Case("is packed twice", lambda: gzip.compress(gzip.compress(rootfs())), "gzip"),
    Case(
        "is cut off in the middle",
        lambda: zstd(rootfs(member("etc/x", os.urandom(1 << 20))))[: 1 << 19],
        "zstd",
        code="image-corrupt",
    ),
    Case("asks for 2 GB to be unpacked", huge_window, "zstd", code="image-corrupt"),
    Case("asks for 4 GB to be unpacked", huge_dictionary, "xz", code="image-corrupt"),
]


# -- the trial ----------------------------------------------------------------


@pytest.fixture(scope="module")
def settings():
    """The limits that the bombs shall meet."""
    return {"images": LIMITS}


@pytest.fixture(scope="module")
def good(service, busybox_file):
    """A good image, whose layers are there all the time."""
    return service.import_image(busybox_file)


def state(paths: list[Path]) -> list[tuple]:
    """Everything that a write would change."""
    states = []
    for path in paths:
        at = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(at.st_mode) else ""
        states.append((path, at.st_mode, at.st_uid, at.st_nlink, at.st_mtime_ns, at.st_ctime_ns, content))
    return states


def store(service: Service) -> tuple:
    """What the store holds, and what is mounted there."""
    images = service.state_dir / "images"
    layers = sorted(os.listdir(images / "layers/sha256"))
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(images) in line]
    return layers, sorted(os.listdir(images / "records")), os.listdir(images / "tmp"), mounts


def check_layers(service: Service, image: str, holds: dict[str, bytes | None]) -> None:
    """That the unpacked layers hold this, and nothing that overlayfs would obey."""
    digests = service.client.get(f"/v1/images/{image}")["layers"]
    roots = [service.state_dir / "images/layers/sha256" / d.removeprefix("sha256:") / "fs" for d in digests]
    for name, content in holds.items():
        found = [root / name for root in roots if os.path.lexists(root / name)]
        assert bool(found) == (content is not None), name
        for path in found:
            assert not path.is_symlink(), name
            assert content is None or path.is_dir() or path.read_bytes() == content, name
            assert not [a for a in os.listxattr(path) if a.startswith("trusted.")], name


def check_disobedience(service: Service, image: str, name: str) -> None:
    """That the topmost layer's file is none of overlayfs's marks, and has them under no name of theirs."""
    digest = service.client.get(f"/v1/images/{image}")["layers"][-1].removeprefix("sha256:")
    path = service.state_dir / "images/layers/sha256" / digest / "fs" / name
    assert not stat.S_ISCHR(path.lstat().st_mode)
    marks = [a for a in os.listxattr(path) if a.startswith("trusted.overlay.")]
    assert marks and all(a.startswith("trusted.overlay.overlay.") for a in marks)


def test_the_corpus_is_what_it_says():
    assert len(CASES) >= 60
    assert len({case.tries for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.tries)
def test_it(service, good, tmp_path, case):
    outside = [Path(p) for p in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc", "/")]
    outside += [service.base / "canary", service.state_dir]
    outside[-2].write_text("untouched")
    path = tmp_path / "image"
    path.write_bytes(case.make())
    assert path.stat().st_size < 64 << 20
    before, here = state(outside), store(service)
    image = str(uuid.uuid4())
    if case.word:
        with pytest.raises(Fault) as fault:
            service.import_image(path, image)
        assert (fault.value.status, fault.value.code) == (422, case.code), fault.value
        assert case.word in fault.value.detail, fault.value.detail
        assert fault.value.detail.isprintable()
    else:
        service.import_image(path, image)
        check_layers(service, image, case.holds)
        if case.obeys_not:
            check_disobedience(service, image, case.obeys_not)
        service.client.delete(f"/v1/images/{image}")
    assert state(outside) == before
    assert store(service) == here
    assert not os.path.lexists(f"/{OUTSIDE}") and not list(service.base.glob(f"**/{OUTSIDE}"))


def test_afterwards_it_does_its_work(service, good, busybox_file):
    instance = service.spawn(good)
    instance.wait_console("is up")
    instance.delete()
    again = service.import_image(busybox_file)
    service.client.delete(f"/v1/images/{again}")
    assert "panicked" not in service.log.read_text(errors="replace")
    assert not service.leftovers()
