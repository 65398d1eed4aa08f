"""A plug-in of pytest: leaves out the tests that `excluded.txt` names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cloud.lists import lines

FILE = Path(__file__).with_name("excluded.txt")


def name_of(item: Any) -> str:
    """`module.Class.test`: pytest's own names of what lies outside its root have no module."""
    return f"{item.module.__name__}.{item.cls.__name__}.{item.name}"


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """A pattern is searched for in a test's name."""
    patterns = lines(FILE)
    left = [item for item in items if any(re.search(pattern, name_of(item)) for pattern in patterns)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
