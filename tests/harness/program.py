"""Programs that a test compiles, to be tried on the host and from inside."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest


def compiled(source: Path, directory: Path) -> Path:
    """The program of a C file, which needs nothing of an image's."""
    program = directory / source.stem
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


def injected(program: Path, path: str) -> dict[str, Any]:
    """It as a file of an instance."""
    content = base64.b64encode(program.read_bytes()).decode()
    return {"path": path, "content": content, "mode": 0o755}


def possible_outside(program: Path, attempt: str) -> None:
    """Skips the test where the host's root, in a mount namespace of its own, does not get through either."""
    command = ["unshare", "--mount", "--propagation", "private", program, attempt]
    outside = subprocess.run(command, capture_output=True, text=True)
    if not outside.stdout.startswith("POSSIBLE"):
        pytest.skip(f"nor is it possible on this host: {outside.stdout}")
