"""The demo user's and the administrator's connections."""

from __future__ import annotations

from typing import Any

import pytest
from cloud import identity


@pytest.fixture(scope="session")
def demo() -> Any:
    return identity.connect("demo")


@pytest.fixture(scope="session")
def admin() -> Any:
    return identity.connect("admin")
