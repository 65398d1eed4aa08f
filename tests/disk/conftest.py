"""The disk image of a cloud's shape."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import ROOT


@pytest.fixture(scope="session")
def disk() -> Path:
    """Made once, some minutes."""
    made = subprocess.run([ROOT / "scripts/image-disk"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.splitlines()[-1])
