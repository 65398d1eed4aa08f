"""Lists of tests: a pattern of their names on each line."""

from __future__ import annotations

from pathlib import Path


def lines(file: Path) -> list[str]:
    """Without remarks and empty ones."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
