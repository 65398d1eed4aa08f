"""HTTP over a Unix socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Fault(Exception):
    """A problem that the service answered (RFC 9457)."""

    def __init__(self, status: int, body: bytes, content_type: str):
        self.status, self.content_type = status, content_type
        try:
            self.problem = json.loads(body)
        except ValueError:
            self.problem = {"detail": body.decode(errors="replace")}
        self.code: str = self.problem.get("code", "")
        self.field: str | None = self.problem.get("field")
        self.detail: str = self.problem.get("detail", "")
        super().__init__(f"{status} {self.code} ({self.field}): {self.detail}")


@dataclass
class Answer:
    """A successful answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose transport is a Unix socket."""

    def __init__(self, path: Path, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Calls the API. Each call has a connection of its own unless `keep` is set."""

    def __init__(self, path: Path, timeout: float = 180, keep: bool = False):
        self._path, self._timeout, self._keep = path, timeout, keep
        self._connection: UnixConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Sends `body` (JSON, or bytes as they are); raises `Fault` for a status of 400 and above."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = self._connection or UnixConnection(self._path, timeout or self._timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            self._connection = None
            raise
        if self._keep:
            self._connection = connection
        else:
            connection.close()
        if response.status >= 400:
            raise Fault(response.status, content, response.headers.get("Content-Type", ""))
        return Answer(response.status, response.headers, content)

    def get(self, path: str, **options: Any) -> Any:
        """The parsed body of a GET."""
        return self.request("GET", path, **options).json()

    def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        """PUT."""
        return self.request("PUT", path, body, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        """POST; an action without a body sends an empty object."""
        return self.request("POST", path, {} if body is None else body, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        """DELETE."""
        return self.request("DELETE", path, **options)

    @contextlib.contextmanager
    def events(self, after: int | None = None, timeout: float = 30) -> Iterator[Iterator[dict]]:
        """The event stream from the event after `after`; ends with the block."""
        connection = UnixConnection(self._path, timeout)
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        try:
            connection.request("GET", "/v1/events", headers=headers)
            response = connection.getresponse()
            if response.status >= 400:
                content_type = response.headers.get("Content-Type", "")
                raise Fault(response.status, response.read(), content_type)
            yield _parse_events(response)
        finally:
            connection.close()


def _parse_events(response: http.client.HTTPResponse) -> Iterator[dict]:
    data = ""
    while line := response.readline():
        text = line.decode().rstrip("\r\n")
        if text.startswith("data:"):
            data += text[5:].removeprefix(" ")
        elif not text and data:
            yield json.loads(data)
            data = ""
