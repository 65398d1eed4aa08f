"""Consoles by VNC over TLS, as Nova's proxy takes them with `auth_schemes = vencrypt`."""

from __future__ import annotations

import os
import socket
import ssl
import struct

import pytest
from harness import VncViewer
from harness.certificates import Authority
from harness.viewers import connect

#: On loopback, and not where another worker's service listens.
HOST = f"127.78.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
X509_NONE = 260


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def settings(authority):
    files = authority.sign("host", HOST)
    return {"vnc.vencrypt": {**files, "client_ca": str(authority.certificate)}}


@pytest.fixture
def console(instance) -> dict:
    body = {"address": HOST, "first_port": 10000, "last_port": 10999}
    return instance.service.client.put(f"{instance.path}/remote-consoles/vnc", body).json()


def take(connection: socket.socket, count: int) -> bytes:
    taken = b""
    while len(taken) < count:
        got = connection.recv(count - len(taken))
        assert got, f"closed after {taken!r}"
        taken += got
    return taken


def chosen(console: dict, version: bytes = b"003.008") -> socket.socket:
    """A connection that has come to the choice of VeNCrypt's kind."""
    connection = connect(console)
    assert take(connection, 12) == b"RFB 003.008\n"
    connection.sendall(b"RFB " + version + b"\n")
    assert take(connection, 2) == b"\1\x13", "the security type VeNCrypt, alone"
    connection.sendall(b"\x13")
    assert take(connection, 2) == b"\0\2"
    connection.sendall(b"\0\2")
    assert take(connection, 6) == struct.pack(">BBI", 0, 1, X509_NONE)
    return connection


def secured(console: dict, authority: Authority, proxy: dict[str, str] | None) -> ssl.SSLSocket:
    """The same with TLS, as a proxy with this certificate."""
    connection = chosen(console)
    connection.sendall(struct.pack(">I", X509_NONE))
    assert take(connection, 1) == b"\1"
    context = ssl.create_default_context(cafile=authority.certificate)
    if proxy:
        context.load_cert_chain(proxy["certificate"], proxy["private_key"])
    return context.wrap_socket(connection, server_hostname=HOST)


class Begun:
    """A connection over TLS, to whoever would begin without: what they say of it is heard here."""

    def __init__(self, connection: ssl.SSLSocket):
        self.connection = connection
        self.early = b"RFB 003.008\n\1\1"
        self.said = 0

    def recv(self, count: int) -> bytes:
        if not self.early:
            return self.connection.recv(count)
        taken, self.early = self.early[:count], self.early[count:]
        return taken

    def sendall(self, data: bytes) -> None:
        # The version and the security type.
        self.said += 1
        if self.said > 2:
            self.connection.sendall(data)

    def settimeout(self, seconds: float) -> None:
        self.connection.settimeout(seconds)

    def close(self) -> None:
        self.connection.close()


def test_a_proxy_with_a_certificate_sees_and_types(console, authority, instance):
    proxy = authority.sign("proxy", HOST)
    with VncViewer(Begun(secured(console, authority, proxy))) as viewer:
        viewer.update(False)
        before = bytes(viewer.pixels)
        viewer.type("\recho typed > /typed\r")
        viewer.wait_for("what is typed", lambda: bytes(viewer.pixels) != before)
        viewer.wait_for("it to be done", lambda: instance.run("cat", "/typed").stdout == "typed\n")


@pytest.mark.parametrize("known", [False, True], ids=["no certificate", "a stranger's"])
def test_nobody_else_sees_anything(console, authority, tmp_path, known):
    stranger = Authority(tmp_path, "stranger").sign("proxy", HOST) if known else None
    with pytest.raises(OSError):
        secured(console, authority, stranger).recv(1)
        raise AssertionError("it goes on")


@pytest.mark.parametrize("subtype", [256, 257, 261])
def test_another_kind_is_refused(console, subtype):
    with chosen(console) as connection:
        connection.sendall(struct.pack(">I", subtype))
        assert take(connection, 1) == b"\0"
        assert connection.recv(1) == b""


def test_without_tls_there_is_no_console(console):
    with connect(console) as connection:
        take(connection, 12)
        connection.sendall(b"RFB 003.008\n")
        assert take(connection, 2) == b"\1\x13"
        connection.sendall(b"\1")
        assert take(connection, 4) == b"\0\0\0\1"
        (length,) = struct.unpack(">I", take(connection, 4))
        assert b"VeNCrypt alone" in take(connection, length)
        assert connection.recv(1) == b""
    with connect(console) as connection:
        take(connection, 12)
        connection.sendall(b"RFB 003.003\n")
        assert connection.recv(1) == b""
