"""Hostile disk images: each is refused for what it tries, or read harmlessly.

Every file is made here, by code, and comes with a word on what it tries.
"""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import disklib
import pytest
from harness import Fault

CLUSTER = 65_536
CORRUPT = "cannot be read"


@dataclass
class Hostile:
    """A file: how it is made, what it tries, and what the fault says (none: it is read)."""

    tries: str
    make: Callable[[Path, Path], None]
    says: str | None = None


CORPUS: dict[str, Hostile] = {}


def hostile(tries: str, says: str | None = None):
    """Puts what the function makes into the corpus."""

    def add(make: Callable[[Path, Path], None]):
        CORPUS[make.__name__.replace("_", "-")] = Hostile(tries, make, says)
        return make

    return add


# ── qcow2 ─────────────────────────────────────────────────────────────────────


def qcow2(tables: list[bytes], *, l1: list[int] | None = None, backing: str = "", **fields: int) -> bytes:
    """Header, first table, then clusters 2, 3, … as given."""
    f = {
        "version": 3, "bits": 16, "size": 1 << 24, "crypt": 0, "l1_size": 1, "l1_at": CLUSTER,
        "incompatible": 0, "compression": 0,
    } | fields  # fmt: skip
    header = b"QFI\xfb" + struct.pack(
        ">IQIIQIIQQIIQQQQIIB",
        f["version"], 512 if backing else 0, len(backing), f["bits"], f["size"], f["crypt"],
        f["l1_size"], f["l1_at"], 0, 0, 0, 0, f["incompatible"], 0, 0, 4, 112, f["compression"],
    )  # fmt: skip
    first = b"".join(entry.to_bytes(8) for entry in (l1 if l1 is not None else [2 * CLUSTER]))
    header = header.ljust(512, b"\0") + backing.encode()
    return b"".join(part.ljust(CLUSTER, b"\0") for part in [header, first, *tables])


def simple(name: str, tries: str, says: str, data: Callable[[], bytes]) -> None:
    """A file of these bytes."""
    CORPUS[name] = Hostile(tries, lambda path, _: path.write_bytes(data()), says)


BE = (4 * CLUSTER).to_bytes(8)
for name, tries, says, data in [
    ("backing-json", "reads a host's file through a json: backing file", "has a backing file",
     lambda: qcow2([], backing='json:{"driver":"file","filename":"/etc/shadow"}')),
    ("backing-device", "reads the host's disk as its backing file", "has a backing file",
     lambda: qcow2([], backing="/dev/vda", version=2)),
    ("data-file-bit", "has its content in a host's file", "external data file",
     lambda: qcow2([], incompatible=4)),
    ("aes", "makes the reader ask for a key", "encrypted", lambda: qcow2([], crypt=1)),
    ("luks-inside", "makes the reader derive a key", "encrypted", lambda: qcow2([], crypt=2)),
    ("eight-exabytes", "makes the reader allocate by the disk's size", "beyond all use",
     lambda: qcow2([], size=1 << 63)),
    ("endless-first-table", "makes the reader allocate by the table's size", "beyond all use",
     lambda: qcow2([], l1_size=0xFFFFFFFF)),
    ("no-first-table", "reads behind the table", "beyond all use", lambda: qcow2([], l1_size=0)),
    ("first-table-outside", "reads behind the file", "beyond its end", lambda: qcow2([], l1_at=1 << 40)),
    ("first-table-wraps", "overflows an offset", "beyond its end",
     lambda: qcow2([], l1_at=(1 << 64) - CLUSTER)),
    ("first-table-in-header", "takes the header for a table", "in a circle", lambda: qcow2([], l1_at=0)),
    ("first-table-in-itself", "follows tables in a circle", "in a circle", lambda: qcow2([], l1=[CLUSTER])),
    ("second-table-twice", "grows a small file by sharing tables", "in a circle",
     lambda: qcow2([b""], size=1 << 30, l1_size=2, l1=[2 * CLUSTER] * 2)),
    ("table-as-content", "shows its tables as content", "same time content",
     lambda: qcow2([(2 * CLUSTER).to_bytes(8)])),
    ("cluster-outside", "reads behind the file", "beyond its end", lambda: qcow2([(1 << 40).to_bytes(8)])),
    ("cluster-askew", "reads across clusters", "across others",
     lambda: qcow2([(3 * CLUSTER + 512).to_bytes(8)])),
    ("no-cluster-bits", "divides by nothing", "smaller than 512", lambda: qcow2([], bits=0)),
    ("all-cluster-bits", "shifts beyond a word", "larger than 2 MiB", lambda: qcow2([], bits=63)),
    ("version-9", "is read by guess", "no known version", lambda: qcow2([], version=9)),
    ("unknown-feature", "is read by guess", "not known here", lambda: qcow2([], incompatible=1 << 40)),
    ("marked-corrupt", "is read though its writer gave up", "marked as corrupt",
     lambda: qcow2([], incompatible=2)),
    ("compression-7", "is decompressed by guess", "not known here",
     lambda: qcow2([], incompatible=8, compression=7)),
    ("garbage-deflate", "breaks the decompressor", "does not decompress",
     lambda: qcow2([((1 << 62) | 3 * CLUSTER).to_bytes(8), os.urandom(512)])),
    ("deflate-bomb", "decompresses to more than a cluster", "does not decompress",
     lambda: qcow2([((1 << 62) | (400 << 54) | 3 * CLUSTER).to_bytes(8), raw_deflate(bytes(1 << 24))])),
    ("garbage-zstd", "breaks the decompressor", "does not decompress",
     lambda: qcow2([((1 << 62) | 3 * CLUSTER).to_bytes(8), b"\x28\xb5\x2f\xfd\xff" * 99],
                   incompatible=8, compression=1)),
    ("compressed-outside", "reads behind the file", "beyond its end",
     lambda: qcow2([((1 << 62) | (1 << 50)).to_bytes(8)])),
    ("qcow2-in-qcow2", "has the inner image opened, with its backing file", "convert it",
     lambda: qcow2([(3 * CLUSTER).to_bytes(8), qcow2([], backing="/etc/shadow")])),
    ("subcluster-twice", "is content and zeros at the same time", "stored nowhere, or is zeros",
     lambda: qcow2([(3 * CLUSTER).to_bytes(8) + (1 << 32 | 1).to_bytes(8), b"x"], incompatible=16)),
    ("subcluster-nowhere", "is content that is nowhere", "stored nowhere, or is zeros",
     lambda: qcow2([bytes(8) + b"\0\0\0\0\0\0\0\1"], incompatible=16)),
    ("subclusters-of-nothing", "divides clusters into nothing", "too small for subclusters",
     lambda: qcow2([], bits=9, incompatible=16)),
    ("header-cut", "ends within its header", CORRUPT, lambda: qcow2([])[:40]),
    # Others' formats.
    ("vmdk-descriptor", "has the host's files opened as its extents", "are the host's",
     lambda: b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\n'
             b'RW 8 FLAT "/etc/shadow" 0\n'),
    ("vmdk-embedded", "has a descriptor inside that names the host's files", "descriptor of other files",
     lambda: b"KDMV\1\0\0\0" + bytes(504) + b'# Disk DescriptorFile\nRW 8 FLAT "/etc/shadow" 0\n'),
    ("vmdk-extent", "has QEMU open a host's file as its content", "names a file of the host",
     lambda: vmdk('RW 8 FLAT "/etc/shadow" 0')),
    ("vmdk-extent-sparse", "has QEMU open a host's file as its content", "names a file of the host",
     lambda: vmdk('RW 8 SPARSE "/etc/shadow"')),
    ("vmdk-extent-nbd", "has QEMU connect to the network", "names a file of the host",
     lambda: vmdk('RW 8 SPARSE "nbd:127.0.0.1:1"')),
    ("vmdk-parent", "has QEMU open a host's file below it", "has a parent",
     lambda: vmdk('parentFileNameHint="/etc/shadow"\nRW 8 SPARSE "x"')),
    ("vmdk-flat", "is a kind that has its content elsewhere", "only monolithicSparse",
     lambda: vmdk('RW 8 SPARSE "x"', "monolithicFlat")),
    ("vmdk-two-extents", "has QEMU open another file too", "several files",
     lambda: vmdk('RW 8 SPARSE "x"\nRW 8 SPARSE "y"')),
    ("vmdk-no-size", "has QEMU read the descriptor instead of the header", "descriptor of other files",
     lambda: vmdk('RW 8 SPARSE "x"', size=0)),
    ("vmdk-endless", "is a disk of exabytes", "images.max_unpacked_bytes",
     lambda: vmdk('RW 8 SPARSE "x"', size=1 << 53)),
    ("vmdk-tables-outside", "reads behind the file", "neither a partition table",
     lambda: vmdk('RW 8 SPARSE "x"', tables=1 << 40)),
    ("vmdk-two-headers", "shows QEMU another header than the first", "two headers disagree",
     lambda: vmdk('RW 8 SPARSE "x"', tables=(1 << 64) - 1) + vmdk("", size=9)[:512] + bytes(512)),
    ("vhd-differencing", "has a parent on the host", "has a parent",
     lambda: b"conectix" + bytes(52) + struct.pack(">I", 4) + bytes(960)),
    ("vhd-endless", "is a disk of exabytes", "images.max_unpacked_bytes",
     lambda: b"conectix" + bytes(40) + struct.pack(">QII", 1 << 60, 0, 3) + bytes(960)),
    ("vdi-differencing", "has a parent on the host", "has a parent",
     lambda: bytes(64) + b"\x7f\x10\xda\xbe" + struct.pack("<III", 0x10001, 400, 4) + bytes(960)),
    ("vhdx-noise", "breaks QEMU", "tables of regions disagree",
     lambda: b"vhdxfile" + bytes(64) + os.urandom(1 << 20)),
    ("vhdx-cut", "ends within its tables", "beyond its end", lambda: b"vhdxfile" + bytes(300_000)),
]:  # fmt: skip
    simple(name, tries, says, data)


def vmdk(extents: str, kind: str = "monolithicSparse", size: int = 8, tables: int = 100) -> bytes:
    """A VMDK's header and its descriptor."""
    header = b"KDMV" + struct.pack("<IIQQQQIQQ", 1, 3, size, 128, 1, 20, 512, 0, tables)
    text = f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="{kind}"\n{extents}\n'
    return header.ljust(512, b"\0") + text.encode().ljust(65_024, b"\0")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


@hostile("reads a host's file as its backing file", "has a backing file")
def backing_file(path: Path, _: Path) -> None:
    disklib.qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", path)


def vhdx(path: Path) -> tuple[bytearray, int]:
    """A VHDX as QEMU makes it, and where the items of its metadata are."""
    disklib.qemu_img("create", "-f", "vhdx", path, "16M")
    data = bytearray(path.read_bytes())
    return data, data.index(b"metadata") + 65_536


@hostile("has a parent on the host", "has a parent")
def vhdx_differencing(path: Path, _: Path) -> None:
    data, items = vhdx(path)
    data[items + 4] |= 2
    path.write_bytes(data)


@hostile("is a disk of exabytes", "images.max_unpacked_bytes")
def vhdx_endless(path: Path, _: Path) -> None:
    data, items = vhdx(path)
    data[items + 8 : items + 16] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(data)


@hostile("shows QEMU other metadata than the first reader", "check sum of its table of regions")
def vhdx_altered(path: Path, _: Path) -> None:
    data, _items = vhdx(path)
    for table in (3, 4):
        data[table * 65_536 + 48] ^= 1
    path.write_bytes(data)


@hostile("is a terabyte of zeros in a few kB", "neither a partition table nor a file system")
def terabyte(path: Path, _: Path) -> None:
    disklib.qemu_img("create", "-f", "qcow2", path, "1T")


# ── Partition tables ──────────────────────────────────────────────────────────

SECTORS = 8192
LINUX = disklib.LINUX


def table(*entries: tuple[int, int], patch: tuple[int, bytes] | None = None, sums: bool = True) -> bytes:
    """A disk with this GUID table; its header is changed by `patch`, then summed."""
    rows = [(LINUX, first, last, "", None, None) for first, last in entries]
    head, _ = disklib.gpt_bytes(rows, SECTORS)
    header = bytearray(head[:92])
    if patch:
        header[patch[0] : patch[0] + len(patch[1])] = patch[1]
    if sums:
        header[16:20] = bytes(4)
        header[16:20] = zlib.crc32(header).to_bytes(4, "little")
    disk = disklib.protective(b"", SECTORS) + bytes(header) + head[92:]
    return disk.ljust(SECTORS * 512, b"\0")


def record(*entries: tuple[int, int, int]) -> bytes:
    """A master boot record of (type, first sector, sectors)."""
    rows = b"".join(struct.pack("<B3sB3sII", 0, b"", kind, b"", at, size) for kind, at, size in entries)
    return (bytes(446) + rows.ljust(64, b"\0") + b"\x55\xaa").ljust(512)


def chain(*links: tuple[int, bytes]) -> bytes:
    """A disk with an extended partition at sector 64 and records at these sectors."""
    disk = bytearray(record((0x05, 64, 4096)).ljust(SECTORS * 512, b"\0"))
    for sector, content in links:
        disk[sector * 512 : sector * 512 + len(content)] = content
    return bytes(disk)


for name, tries, says, data in [
    ("gpt-overlap", "shows one reader other content than the next", "lies across another",
     lambda: table((2048, 4095), (4000, 5000))),
    ("gpt-backwards", "overflows a size", "ends before it begins", lambda: table((4096, 2048))),
    ("gpt-outside", "reads behind the disk", "ends beyond the disk", lambda: table((2048, 1 << 40))),
    ("gpt-wraps", "overflows an offset", "partition table",
     lambda: table(((1 << 63) + 2048, (1 << 63) + 4096))),
    ("gpt-endless", "makes the reader allocate by the number of entries", "entries of",
     lambda: table((2048, 4095), patch=(80, b"\xff\xff\xff\xff"))),
    ("gpt-entry-size-0", "makes the reader never advance", "entries of",
     lambda: table((2048, 4095), patch=(84, bytes(4)))),
    ("gpt-entry-size-129", "makes the reader panic", "entries of",
     lambda: table((2048, 4095), patch=(84, b"\x81\0\0\0"))),
    ("gpt-header-size", "makes the reader sum behind the header", "check sum of its GUID table's header",
     lambda: table((2048, 4095), patch=(12, b"\xff\xff\0\0"), sums=False)),
    ("gpt-altered", "is a table that nobody wrote", "check sum of its GUID table's header",
     lambda: table((2048, 4095), patch=(40, b"x"), sums=False)),
    ("gpt-entries-altered", "is a table that nobody wrote", "check sum of its GUID table is",
     lambda: table((2048, 4095), patch=(88, b"\0\0\0\0"))),
    ("gpt-table-outside", "reads behind the disk", "cut off",
     lambda: table((2048, 4095), patch=(72, (1 << 60).to_bytes(8, "little")))),
    ("gpt-empty", "has no partition at all", "Found: none", table),
    ("gpt-nothing-in-it", "has no file system at all", "none of the disk's partitions",
     lambda: table((2048, 4095), (4096, 5000))),
    ("mbr-overlap", "shows one reader other content than the next", "lies across another",
     lambda: record((0x83, 64, 100), (0x83, 100, 100)).ljust(SECTORS * 512, b"\0")),
    ("mbr-outside", "reads behind the disk", "ends beyond the disk",
     lambda: record((0x83, 64, 0xFFFFFFFF)).ljust(SECTORS * 512, b"\0")),
    ("mbr-circle", "follows logical partitions in a circle", "in a circle",
     lambda: chain((64, record((0x83, 1, 1), (5, 0, 8))))),
    ("mbr-longer-circle", "follows logical partitions in a circle", "in a circle",
     lambda: chain((64, record((0x83, 1, 1), (5, 8, 8))), (72, record((0x83, 1, 1), (5, 0, 8))))),
    ("mbr-chain-outside", "reads behind the disk", "chain of logical partitions is broken",
     lambda: chain((64, record((0x83, 1, 1), (5, 1 << 30, 8))))),
    ("mbr-two-extended", "makes the reader follow two chains", "two extended partitions",
     lambda: record((5, 64, 100), (0x0F, 200, 100)).ljust(SECTORS * 512, b"\0")),
    ("mbr-protective-alone", "has the table that it announces nowhere", "none of the disk's partitions",
     lambda: record((0xEE, 1, SECTORS - 1)).ljust(SECTORS * 512, b"\0")),
]:  # fmt: skip
    simple(name, tries, says, data)


@hostile("leaves it open which of two systems is meant", "none of the disk's partitions is certainly")
def two_systems(path: Path, work: Path) -> None:
    (work / "t/sbin").mkdir(parents=True)
    (work / "t/sbin/init").write_text("#!/bin/sh\n")
    (work / "t/sbin/init").chmod(0o755)
    part = disklib.ext(work / "part", "4M", work / "t")
    disklib.gpt(path, [disklib.Partition(LINUX, part), disklib.Partition(LINUX, part)])


# ── File systems ──────────────────────────────────────────────────────────────


class Ext:
    """An ext file system that is changed after it was made, against all its rules."""

    def __init__(self, path: Path, work: Path, kind: str = "ext2", size: str = "8M"):
        tree = work / "tree"
        (tree / "d").mkdir(parents=True)
        (tree / "sbin").mkdir()
        (tree / "sbin/init").write_text("#!/bin/sh\n")
        (tree / "sbin/init").chmod(0o755)
        (tree / "f").write_bytes(b"f" * 3000)
        (tree / "g").write_bytes(b"g" * 3000)
        (tree / "link").symlink_to("x" * 100)
        disklib.ext(path, size, tree, "-t", kind, "-b", "1024")
        self.path = path
        self.data = bytearray(path.read_bytes())

    def debugfs(self, *requests: str) -> None:
        """Asks debugfs to do it."""
        for request in requests:
            command = ["/usr/sbin/debugfs", "-w", "-R", request, str(self.path)]
            subprocess.run(command, check=True, capture_output=True)
        self.data = bytearray(self.path.read_bytes())

    def number(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    def inode(self, name: str) -> int:
        """Where a file's inode is."""
        said = subprocess.run(
            ["/usr/sbin/debugfs", "-R", f"imap {name}", str(self.path)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        # "Inode 12 is part of block group 0\n\tlocated at block 85, offset 0x0580"
        words = said.replace(",", "").split()
        return int(words[words.index("block", words.index("at")) + 1]) * 1024 + int(words[-1], 16)

    def block(self, name: str) -> int:
        """Where a file's first block is, of one with a block map."""
        return self.number(self.inode(name) + 40) * 1024

    def entry(self, directory: str, name: str) -> int:
        """Where a directory's entry is."""
        at = self.block(directory)
        while True:
            length, size = struct.unpack_from("<HB", self.data, at + 4)
            if self.data[at + 8 : at + 8 + size] == name.encode():
                return at
            at += length

    def set(self, at: int, value: bytes | int, length: int = 4) -> None:
        value = value if isinstance(value, bytes) else value.to_bytes(length, "little")
        self.data[at : at + len(value)] = value

    def write(self) -> None:
        self.path.write_bytes(self.data)


SUPER = 1024
for name, tries, says, at, value in [
    ("ext-unknown-feature", "is read by guess", "not known here", 96, b"\0\0\0\x40"),
    ("ext-journal-device", "is no file system but a journal", "journal", 96, b"\x08\0\0\0"),
    ("ext-larger-than-its-disk", "reads behind the disk", "larger than the disk", 4, b"\xff\xff\xff\x0f"),
    ("ext-block-size", "shifts beyond a word", "impossible", 24, b"\xff\xff\xff\xff"),
    ("ext-inode-size", "reads across inodes", "impossible", 88, b"\x07\0"),
    ("ext-no-inodes-in-a-group", "divides by nothing", "impossible", 40, bytes(4)),
    ("ext-no-blocks-in-a-group", "divides by nothing", "impossible", 32, bytes(4)),
    ("ext-first-block", "reads descriptors anywhere", "impossible", 20, b"\x09\0\0\0"),
]:  # fmt: skip

    def patched(path: Path, work: Path, at: int = at, value: bytes = value) -> None:
        ext = Ext(path, work, "ext4")
        ext.set(SUPER + at, value)
        ext.write()

    CORPUS[name] = Hostile(tries, patched, says)


@hostile("makes the reader never advance in a directory", "do not fit into it")
def entry_without_length(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "f") + 4, 0, 2)
    ext.write()


@hostile("reads a name from behind its directory", "do not fit into it")
def entry_too_long(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", ".") + 6, 255, 1)
    ext.write()


@hostile("writes a file above the layer", "impossible name")
def entry_that_climbs(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "link") + 8, b"../x")
    ext.write()


@hostile("cuts a name short for one reader", "impossible name")
def entry_with_a_zero(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "link") + 8, b"l\0nk")
    ext.write()


@hostile("shows one reader another file than the next", "twice")
def entry_twice(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "g") + 8, b"f")
    ext.write()


@hostile("reads an inode behind all others", "none that it has")
def entry_without_inode(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "f"), 0xFFFFFF00)
    ext.write()


@hostile("walks a directory that is in itself", "in itself")
def directory_in_itself(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "g"), 2)
    ext.write()


@hostile("walks a directory that has no end in bytes", CORRUPT)
def endless_directory(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.inode("/d") + 4, 0xFFFFFFFF)
    ext.set(ext.inode("/d") + 40 + 14 * 4, ext.block("/d") // 1024)
    ext.write()


@hostile("reads blocks behind the file system", "none that it has")
def block_outside(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.inode("/f") + 40, 0x00FFFFFF)
    ext.write()


@hostile("reads blocks behind the file system through an extent", "none that it has")
def extent_outside(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    ext.set(ext.inode("/f") + 40 + 12 + 8, 0x00FFFFFF)
    ext.write()


@hostile("follows a tree of extents in a circle", "broken tree")
def extents_in_a_circle(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    inode, node = ext.inode("/f"), 4000
    index = struct.pack("<HHHHI", 0xF30A, 1, 84, 5, 0) + struct.pack("<IIHH", 0, node, 0, 0)
    ext.set(inode + 40, index)
    ext.set(node * 1024, index)
    ext.write()


@hostile("stores an extent before the one before it", "broken tree")
def extents_that_turn_back(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    inode = ext.inode("/f")
    ext.set(inode + 32, 0x80000)
    ext.set(inode + 4, 100_000)
    two = struct.pack("<IHHI", 9, 1, 0, 100) + struct.pack("<IHHI", 9, 0, 0, 100)
    ext.set(inode + 40, struct.pack("<HHHHI", 0xF30A, 2, 4, 0, 0) + two)
    ext.write()


@hostile("grows a small file system by sharing its blocks", "belong to several files")
def shared_blocks(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    for name in ("/f", "/g"):
        inode = ext.inode(name)
        ext.set(inode + 4, 6 << 20)
        extent = struct.pack("<IHHI", 0, 6144, 0, 1024)
        ext.set(inode + 40, struct.pack("<HHHHI", 0xF30A, 1, 4, 0, 0) + extent)
    ext.write()


@hostile("is a terabyte of hole in a few kB", "images.max_unpacked_bytes")
def terabyte_of_hole(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    ext.set(ext.inode("/f") + 108, 256)
    ext.write()


@hostile("makes the reader allocate by a link's length", "larger than it can be")
def endless_link(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.inode("/link") + 108, 1)
    ext.write()


@hostile("reads an attribute from behind its block", "lies outside its block")
def attribute_outside(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    ext.debugfs("ea_set /f user.a b")
    inode = ext.inode("/f")
    ext.set(inode + 128 + 32 + 4 + 2, 0xFFF0, 2)
    ext.write()


@hostile("hides what lower layers hold")
def opaque_attribute(path: Path, work: Path) -> None:
    Ext(path, work, "ext4").debugfs("ea_set /d trusted.overlay.opaque y")


@hostile("deletes files of lower layers")
def whiteout_name(path: Path, work: Path) -> None:
    Ext(path, work, "ext4").debugfs("ln /f .wh.etc")


@hostile("belongs to a user that no instance has")
def foreign_owner(path: Path, work: Path) -> None:
    Ext(path, work, "ext4").debugfs("set_inode_field /f uid 70000")


@hostile("is encrypted, and its names are noise", "encrypted files")
def encrypted_inode(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext4")
    inode = ext.inode("/f")
    ext.set(inode + 32, ext.number(inode + 32) | 0x800)
    ext.write()


@hostile("holds a directory where a file was linked", "two names, or is in itself")
def directory_linked_twice(path: Path, work: Path) -> None:
    ext = Ext(path, work)
    ext.set(ext.entry("/", "g"), ext.number(ext.entry("/", "d")))
    ext.write()


@hostile("brings the host's disk as a device")
def device_nodes(path: Path, work: Path) -> None:
    Ext(path, work, "ext4").debugfs("mknod disk b 254 0")


@hostile("leads out by links, and writes through them")
def links_out(path: Path, work: Path) -> None:
    Ext(path, work, "ext4").debugfs("symlink up ../../../../../../etc", "symlink root /etc/shadow")


# ── Journals ──────────────────────────────────────────────────────────────────


def block(kind: int, sequence: int, rest: bytes) -> bytes:
    """One of a journal's own blocks."""
    return struct.pack(">III", 0xC03B3998, kind, sequence) + rest


def descriptor(*numbers: int, sequence: int = 1) -> bytes:
    """Says which blocks of the file system follow."""
    tags = [struct.pack(">II", number, 2) for number in numbers]
    tags[-1] = struct.pack(">II", numbers[-1], 2 | 8)
    return block(1, sequence, b"".join(tags))


COMMIT = block(2, 1, b"")


def journal(name: str, tries: str, says: str | None, *blocks: bytes, **fields: int) -> None:
    """A file system whose journal holds these blocks; `fields` of its superblock are changed."""

    def make(path: Path, work: Path) -> None:
        ext = Ext(path, work, "ext3")
        ext.set(SUPER + 96, ext.number(SUPER + 96) | 4)
        at = ext.block("<8>")
        for field, value in ({"sequence": 1, "start": 1} | fields).items():
            offset = {"length": 16, "first": 20, "sequence": 24, "start": 28, "features": 40}[field]
            ext.set(at + offset, value.to_bytes(4))
        for number, content in enumerate(blocks, 1):
            ext.set(at + number * 1024, content.ljust(1024, b"\0"))
        ext.write()

    CORPUS[name] = Hostile(tries, make, says)


journal("journal-writes-outside", "puts a block behind the file system", "none that it has",
        descriptor(0x00FFFFFF), b"", COMMIT)  # fmt: skip
journal("journal-wipes-the-root", "puts zeros where all inodes are described", "none that it has",
        descriptor(2), b"", COMMIT)  # fmt: skip
journal("journal-wipes-the-superblock", "replaces the superblock by noise", "no superblock",
        descriptor(1), b"noise", COMMIT)  # fmt: skip
journal("journal-never-commits", "has a transaction that did not happen", None, descriptor(2), b"")
journal("journal-revokes-itself", "frees the block that it wrote", None,
        descriptor(2), b"", block(5, 1, struct.pack(">II", 20, 2)), COMMIT)  # fmt: skip
journal("journal-starts-outside", "reads behind its journal", "begins outside itself", start=0x10000)
journal("journal-too-long", "reads behind its journal", "sizes are impossible", length=0xFFFFFFFF)
journal("journal-first-0", "takes its superblock for a transaction", "sizes are impossible", first=0)
journal("journal-unknown-kind", "is replayed by guess", "unknown kind", block(9, 1, b""))
journal("journal-list-too-long", "reads freed blocks from behind their list", "longer than its block",
        block(5, 1, b"\xff\xff\xff\xff"))  # fmt: skip
journal("journal-unknown-feature", "is replayed by guess", "not known here", features=0x8000)
journal("journal-fast-commits", "is replayed without what only the kernel replays", "fast commits",
        features=0x20)  # fmt: skip
journal("journal-without-sums", "says that sums are there, which are not", "check sum in it is wrong",
        features=0x10)  # fmt: skip
journal("journal-in-a-circle", "has descriptors without end", "longer than itself",
        descriptor(*[30] * 120), length=40)  # fmt: skip


@hostile("has its journal nowhere", "on another device")
def journal_elsewhere(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext3")
    ext.set(SUPER + 96, ext.number(SUPER + 96) | 4)
    ext.set(SUPER + 224, 0)
    ext.write()


@hostile("takes a directory for its journal", "it is no file")
def journal_is_a_directory(path: Path, work: Path) -> None:
    ext = Ext(path, work, "ext3")
    ext.set(SUPER + 96, ext.number(SUPER + 96) | 4)
    ext.set(SUPER + 224, 2)
    ext.write()


# ── File systems that only the kernel reads ───────────────────────────────────

KERNEL = "images.kernel_mounts"
for name, tries, says, data in [
    ("xfs-noise", "has the kernel mount noise as XFS", KERNEL,
     lambda: b"XFSB" + os.urandom(65_532 * 4)),
    ("btrfs-noise", "has the kernel mount noise as Btrfs", KERNEL,
     lambda: bytes(65_536 + 64) + b"_BHRfS_M" + bytes(64) + (1).to_bytes(8, "little") + os.urandom(65_536)),
    ("btrfs-two-devices", "has the kernel look for its other half on the host", "on 2 devices",
     lambda: bytes(65_536 + 64) + b"_BHRfS_M" + bytes(64) + (2).to_bytes(8, "little") + bytes(65_536)),
    ("squashfs-noise", "has the kernel mount noise as SquashFS", KERNEL,
     lambda: b"hsqs" + os.urandom(65_532)),
    ("erofs-noise", "has the kernel mount noise as EROFS", KERNEL,
     lambda: bytes(1024) + b"\xe2\xe1\xf5\xe0" + os.urandom(65_532)),
]:  # fmt: skip
    simple(name, tries, says, data)


# ── The tests ─────────────────────────────────────────────────────────────────


def test_the_corpus_is_whole():
    assert len(CORPUS) >= 60
    assert all(hostile.tries for hostile in CORPUS.values())


@pytest.mark.parametrize("name", CORPUS)
def test_it_is_refused_for_what_it_tries_or_read_harmlessly(service, tmp_path, name):
    hostile, path = CORPUS[name], tmp_path / "image"
    hostile.make(path, tmp_path)
    if hostile.says is None:
        image = service.import_image(path)
        (layer,) = service.client.get(f"/v1/images/{image}")["layers"]
        root = service.state_dir / "images/layers/sha256" / layer.removeprefix("sha256:") / "fs"
        found = {file.name: file for file in root.iterdir()}
        assert {"d", "f", "g"} <= found.keys()
        assert not {"disk", "deleted"} & found.keys()
        assert all(file.is_symlink() for name, file in found.items() if name in ("up", "root"))
        service.client.delete(f"/v1/images/{image}")
    else:
        with pytest.raises(Fault) as fault:
            service.import_image(path)
        assert fault.value.code == "image-unacceptable", fault.value
        assert hostile.says in fault.value.detail
    assert service.client.get("/v1/images")["images"] == []
    assert list((service.state_dir / "images/tmp").iterdir()) == []
