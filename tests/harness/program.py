"""Programs that a test compiles, to be tried on the host and from inside."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any


def compiled(source: Path, directory: Path) -> Path:
    """The program of a C file, which needs nothing of an image's."""
    program = directory / source.stem
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


def injected(program: Path, path: str) -> dict[str, Any]:
    """It as a file of an instance."""
    content = base64.b64encode(program.read_bytes()).decode()
    return {"path": path, "content": content, "mode": 0o755}
