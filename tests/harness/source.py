"""An image service with one content, that can break off, hold back and count."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

PIECE = 1 << 18


class ImageSource:
    """Serves a file, or bytes, as the content of whatever image is asked for."""

    def __init__(self, content: bytes | Path, hold_at: int | None = None):
        self.content = content
        self.requests: list[str] = []
        #: After so many bytes it gives no more until `release`.
        self.hold_at = hold_at
        self.release = threading.Event()
        glance = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                glance.requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(glance.size()))
                self.end_headers()
                try:
                    glance.give(self.wfile)
                except OSError:  # the service hung up
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def size(self) -> int:
        """Bytes of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def give(self, sink: Any) -> None:
        """Writes all of it, or the part before `hold_at` first."""
        done = 0
        for piece in self._pieces():
            if self.hold_at is not None and done < self.hold_at <= done + len(piece):
                sink.flush()
                self.release.wait()
            sink.write(piece)
            done += len(piece)

    def _pieces(self):
        if isinstance(self.content, bytes):
            for at in range(0, len(self.content), PIECE):
                yield self.content[at : at + PIECE]
            return
        with self.content.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def source(self, **fields: Any) -> dict[str, Any]:
        """A request's body that names it."""
        endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return {"source": {"type": "glance", "endpoint": endpoint, "token": "t"}} | fields
