"""Disk images, made with e2fsprogs, qemu-img and Python: partition tables and file systems.

Used by scripts/image-disk and by the tests, the hostile ones too: what is
written is what was asked for, whether it makes sense or not.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
#: Where the first partition begins, in sectors.
ALIGNMENT = 2048
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
ROOT_X86_64 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
EXTENDED_BOOT = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


@dataclass
class Partition:
    """A partition: its type, what is in it, and what else the table says."""

    kind: str
    content: Path | bytes
    size: int | None = None
    name: str = ""
    uuid: str | None = None
    #: Its row in the table; without one that after the row of the partition before it.
    number: int | None = None

    def bytes(self) -> int:
        """Its size, in whole sectors."""
        own = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        return -(-(self.size or own) // SECTOR) * SECTOR


def run(*command: object) -> None:
    """Runs a program that must not fail."""
    made = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"{command[0]}: {made.stderr}")


def qemu_img(*arguments: object) -> None:
    """Runs qemu-img."""
    run("qemu-img", *arguments)


def ext(path: Path, size: str, tree: Path | None = None, *options: str) -> Path:
    """An ext2/3/4 file system with the files of `tree`."""
    path.unlink(missing_ok=True)
    content = ["-d", tree] if tree else []
    run("/usr/sbin/mke2fs", "-q", "-F", *options, *content, path, size)
    # It does not write the last blocks where nothing is in them.
    with path.open("rb+") as image:
        image.seek(1024)
        superblock = image.read(1024)
        blocks, bits = int.from_bytes(superblock[4:8], "little"), superblock[24]
        image.truncate(blocks << 10 + bits)
    return path


def gpt_bytes(
    partitions: list[tuple[str, int, int, str, str | None, int | None]], sectors: int
) -> tuple[bytes, bytes]:
    """Both copies of a table, of (type, first sector, last sector, name, uuid, number)."""
    table, row = bytearray(128 * 128), 0
    for kind, first, last, name, own, number in partitions:
        row = number or row + 1
        table[(row - 1) * 128 : row * 128] = (
            uuid.UUID(kind).bytes_le
            + uuid.UUID(own or str(uuid.uuid4())).bytes_le
            + struct.pack("<QQQ", first, last, 0)
            + name.encode("utf-16-le").ljust(72, b"\0")
        )
    table = bytes(table)
    disk = uuid.uuid4().bytes_le

    def header(here: int, there: int, entries: int) -> bytes:
        def fields(checksum: int) -> bytes:
            return (
                b"EFI PART"
                + struct.pack("<IIIIQQQQ", 0x10000, 92, checksum, 0, here, there, 34, sectors - 34)
                + disk
                + struct.pack("<QIII", entries, 128, 128, zlib.crc32(table))
            )

        return fields(zlib.crc32(fields(0))).ljust(SECTOR, b"\0")

    return header(1, sectors - 1, 2) + table, table + header(sectors - 1, 1, sectors - 33)


def protective(boot: bytes, sectors: int) -> bytes:
    """The master boot record before a GUID table."""
    entry = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, min(sectors - 1, 0xFFFFFFFF))
    return boot[:446].ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"


def gpt(path: Path, partitions: list[Partition], boot: bytes = b"") -> Path:
    """A disk with a GUID table and these partitions, one after the other."""
    first, rows, places = ALIGNMENT, [], []
    for partition in partitions:
        last = first + partition.bytes() // SECTOR - 1
        rows.append((partition.kind, first, last, partition.name, partition.uuid, partition.number))
        places.append(first * SECTOR)
        first = -(-(last + 1) // ALIGNMENT) * ALIGNMENT
    sectors = first + ALIGNMENT
    head, tail = gpt_bytes(rows, sectors)
    with path.open("wb") as disk:
        disk.write(protective(boot, sectors) + head)
        _fill(disk, partitions, places)
        disk.truncate(sectors * SECTOR)
        disk.seek(sectors * SECTOR - len(tail))
        disk.write(tail)
    return path


def mbr(path: Path, partitions: list[tuple[int, Path | bytes]]) -> Path:
    """A disk with a master boot record and up to four partitions of (type, content)."""
    first, entries, places = ALIGNMENT, b"", []
    parts = [Partition("", content) for _, content in partitions]
    for (kind, _), part in zip(partitions, parts, strict=True):
        sectors = part.bytes() // SECTOR
        entries += struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\xff\xff\xff", first, sectors)
        places.append(first * SECTOR)
        first = -(-(first + sectors) // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as disk:
        disk.write(bytes(440) + b"BRTH\0\0" + entries.ljust(64, b"\0") + b"\x55\xaa")
        _fill(disk, parts, places)
        disk.truncate(first * SECTOR)
    return path


def _fill(disk, partitions: list[Partition], places: list[int]) -> None:
    for partition, place in zip(partitions, places, strict=True):
        disk.seek(place)
        if isinstance(partition.content, bytes):
            disk.write(partition.content)
        else:
            with partition.content.open("rb") as source:
                shutil.copyfileobj(source, disk, 1 << 20)


def fat(label: str, sectors: int = 8192) -> bytes:
    """An empty FAT16 file system of that name, as ESPs have; at least 4096 sectors and some."""
    name, per_fat = label.encode().ljust(11), 32
    head = b"\xeb\x3c\x90berth   " + struct.pack(
        "<HBHBHHBHHHII", SECTOR, 1, 1, 2, 512, sectors, 0xF8, per_fat, 63, 255, 0, 0
    )
    boot = (head + b"\x80\0\x29" + b"BRTH" + name + b"FAT16   ").ljust(510, b"\0") + b"\x55\xaa"
    table = b"\xf8\xff\xff\xff".ljust(per_fat * SECTOR, b"\0")
    volume = (name + b"\x08").ljust(512 * 32, b"\0")
    return (boot + table + table + volume).ljust(sectors * SECTOR, b"\0")


def grub_boot(boot: bytes, core: int) -> bytes:
    """GRUB's first sector, told where its core is."""
    return boot[:0x5C] + struct.pack("<Q", core) + boot[0x64:]


def grub_core(core: bytes, first: int) -> bytes:
    """GRUB's core, told where the rest of it is: the sectors after its first."""
    return core[:500] + struct.pack("<Q", first + 1) + core[508:]
