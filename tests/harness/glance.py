"""A Glance that takes the content of images, and misbehaves when told so."""

from __future__ import annotations

import http.server
import re
import threading
from pathlib import Path

TOKEN = "gAAAA-a-token-of-nobody"


class Glance(http.server.ThreadingHTTPServer):
    """Takes one kind of request: `PUT /v2/images/ID/file`, in chunks."""

    daemon_threads = True

    def __init__(self, directory: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.status = 204
        self.break_after: int | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.begun = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def to(self, image: str, **fields) -> dict:
        """A snapshot's body."""
        endpoint = f"http://127.0.0.1:{self.server_port}"
        to = {"type": "glance", "endpoint": endpoint, "token": TOKEN, "image_id": image}
        return {"destination": to} | fields

    def file(self, image: str) -> Path:
        """Where an image's content is, once it came whole."""
        return self.directory / image


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Glance

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.close_connection = True
        image = re.fullmatch(r"/v2/images/([0-9a-f-]{36})/file", self.path)[1]
        assert self.headers["X-Auth-Token"] == TOKEN
        assert self.headers["Content-Type"] == "application/octet-stream"
        self.server.begun.set()
        if self.server.status != 204:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = self.server.directory / f"{image}.part"
        taken = 0
        with part.open("wb") as file:
            while size := int(self.rfile.readline() or b"-1", 16):
                if size < 0:
                    return
                file.write(self.rfile.read(size))
                self.rfile.readline()
                taken += size
                self.server.hold.wait(60)
                if self.server.break_after is not None and taken > self.server.break_after:
                    return
        part.rename(self.server.file(image))
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()
