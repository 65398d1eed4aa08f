"""Who looks at a console over TCP, as Nova's proxies do for people."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from typing import Any

#: The encodings of RFB that the service has.
RAW, TIGHT = 0, 7
#: A character's cell in pixels.
CELL = (9, 20)


def connect(console: dict) -> socket.socket:
    """To a console's port."""
    return socket.create_connection((console["address"], console["port"]), timeout=20)


class SerialViewer:
    """The console's bytes, by a socket or what is like one."""

    def __init__(self, connection: Any):
        self.socket = connection
        self.seen = b""

    def __enter__(self) -> SerialViewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def type(self, text: bytes) -> None:
        self.socket.sendall(text)

    def read_until(self, text: bytes, timeout: float = 20) -> bytes:
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                got = self.socket.recv(65536)
            except TimeoutError:
                raise AssertionError(f"waited for {text!r}; saw {self.seen[-500:]!r}") from None
            assert got, f"closed before {text!r}: {self.seen[-500:]!r}"
            self.seen += got
        return self.seen

    def read_to_the_end(self) -> bytes:
        """Until the other side closes."""
        self.socket.settimeout(20)
        try:
            while got := self.socket.recv(65536):
                self.seen += got
        except ConnectionResetError:
            pass
        return self.seen


class VncViewer:
    """The console as a picture: `pixels` has red, green and blue of each, row by row."""

    def __init__(
        self, connection: Any, encodings: tuple[int, ...] = (TIGHT, RAW), version: bytes = b"003.008"
    ):
        self.socket = connection
        assert self.take(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB " + version + b"\n")
        if version == b"003.003":
            assert self.take(4) == b"\0\0\0\1"
        else:
            assert self.take(2) == b"\1\1", "the security type None, alone"
            self.socket.sendall(b"\1")
            if version == b"003.008":
                assert self.take(4) == b"\0\0\0\0"
        self.socket.sendall(b"\1")
        self.width, self.height = struct.unpack(">HH", self.take(4))
        self.format = self.take(16)
        self.name = self.take(*struct.unpack(">I", self.take(4))).decode()
        self.pixels = bytearray(self.width * self.height * 3)
        self.inflate = zlib.decompressobj()
        self.used: set[int] = set()
        self.socket.sendall(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def __enter__(self) -> VncViewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def take(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            got = self.socket.recv(count - len(taken))
            assert got, "the connection was closed"
            taken += got
        return taken

    def key(self, keysym: int) -> None:
        for down in (1, 0):
            self.socket.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def type(self, text: str) -> None:
        for character in text:
            self.key(0xFF0D if character == "\r" else ord(character))

    def ask(self, incremental: bool = True) -> None:
        self.socket.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def update(self, incremental: bool = True, timeout: float = 20) -> None:
        """Asks for what changed, and waits for it."""
        self.ask(incremental)
        self.socket.settimeout(timeout)
        assert self.take(1) == b"\0"
        (count,) = struct.unpack(">xH", self.take(3))
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            self.used.add(encoding)
            self._draw(x, y, width, self._rectangle(width * height, encoding))

    def _rectangle(self, count: int, encoding: int) -> bytes:
        if encoding == RAW:
            raw = self.take(count * 4)
            return b"".join(raw[i + 2 : i - 1 if i else None : -1] for i in range(0, len(raw), 4))
        assert encoding == TIGHT
        assert self.take(1) == b"\0", "the basic compression, stream 0"
        if count * 3 < 12:
            return self.take(count * 3)
        length = 0
        for shift in (0, 7, 14):
            (byte,) = self.take(1)
            length |= (byte if shift == 14 else byte & 0x7F) << shift
            if not byte & 0x80:
                break
        pixels = self.inflate.decompress(self.take(length))
        assert len(pixels) == count * 3
        return pixels

    def _draw(self, x: int, y: int, width: int, pixels: bytes) -> None:
        for row in range(len(pixels) // (width * 3)):
            to = ((y + row) * self.width + x) * 3
            self.pixels[to : to + width * 3] = pixels[row * width * 3 :][: width * 3]

    def cell(self, row: int, column: int) -> bytes:
        """The pixels of one character."""
        width, height = CELL
        rows = range(row * height, (row + 1) * height)
        return b"".join(
            bytes(self.pixels[(y * self.width + column * width) * 3 :][: width * 3]) for y in rows
        )

    def wait_for(self, what: str, seen, timeout: float = 20) -> None:
        """Updates until what is seen is so."""
        deadline = time.monotonic() + timeout
        while not seen():
            assert time.monotonic() < deadline, f"waited for {what}"
            self.update()
