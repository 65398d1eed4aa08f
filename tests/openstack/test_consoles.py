"""Nova's consoles, by Nova's own proxies, as a browser has them."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import websocket
from harness.viewers import SerialViewer, VncViewer
from helpers import server

from openstack import exceptions


class ProxyStream:
    """What a proxy carries in web socket frames, as a socket."""

    def __init__(self, url: str):
        # A browser would say whose page it comes from; this is no page.
        self.frames = websocket.create_connection(
            url, subprotocols=["binary"], suppress_origin=True, timeout=20
        )
        self.rest = b""

    def settimeout(self, seconds: float) -> None:
        self.frames.settimeout(seconds)

    def sendall(self, data: bytes) -> None:
        self.frames.send_binary(data)

    def recv(self, count: int) -> bytes:
        # The proxy sends an empty frame when the handshake is done.
        while not self.rest:
            try:
                self.rest = self.frames.recv()
            except websocket.WebSocketTimeoutException as error:
                raise TimeoutError from error
            except websocket.WebSocketConnectionClosedException:
                return b""
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def close(self) -> None:
        self.frames.close()


@contextlib.contextmanager
def small_server(demo: Any, name: str) -> Iterator[Any]:
    private = demo.network.find_network("private")
    with server(demo, name, private, image="tempest", flavor="nano") as made:
        yield made


def test_a_serial_console_by_novas_proxy(demo: Any) -> None:
    with small_server(demo, "serial") as made:
        console = demo.compute.create_console(made, "serial")
        assert console["type"] == "serial" and console["url"].startswith("ws://")
        with SerialViewer(ProxyStream(console["url"])) as one:
            one.type(b"\recho $((6*7))-answers\r")
            one.read_until(b"42-answers")
            # Another look at the same console, by another token, is told what was said.
            again = demo.compute.create_console(made, "serial")
            with SerialViewer(ProxyStream(again["url"])) as other:
                other.read_until(b"42-answers")
                other.type(b"hostname\r")
                one.read_until(b"hostname\r\nserial")


def test_a_graphical_console_by_novas_proxy(demo: Any) -> None:
    with small_server(demo, "graphical") as made:
        console = demo.compute.create_console(made, "novnc")
        page, _, token = console["url"].partition("?")
        assert b"noVNC" in urllib.request.urlopen(page, timeout=20).read()
        host = page.split("/")[2]
        assert token.startswith("path=")
        with VncViewer(ProxyStream(f"ws://{host}/{urllib.request.unquote(token[5:])}")) as viewer:
            viewer.update(False)
            viewer.type("\rclear; echo; echo LOOKS\r")
            blank = viewer.cell(23, 79)
            drawn = lambda: viewer.cell(1, 1) != blank and viewer.cell(0, 0) == blank  # noqa: E731
            viewer.wait_for("what was typed to be drawn", drawn)
            viewer.update(False)
            assert viewer.cell(1, 1) == viewer.cell(1, 2), "an O is an O"
            assert len({viewer.cell(1, column) for column in range(5)}) == 4


def test_a_token_is_for_its_own_server_while_it_is_there(demo: Any) -> None:
    with small_server(demo, "gone") as made:
        url = demo.compute.create_console(made, "serial")["url"]
    try:
        stream = ProxyStream(url)
    except websocket.WebSocketException:
        return
    with SerialViewer(stream) as viewer:
        assert viewer.read_to_the_end() == b""


def test_a_console_that_there_is_not_is_said(demo: Any) -> None:
    with small_server(demo, "spice") as made:
        try:
            demo.compute.create_console(made, "spice-html5")
        except exceptions.HttpException as error:
            assert "spice-html5" in str(error)
        else:
            raise AssertionError("there is a SPICE console")
