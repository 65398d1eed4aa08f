"""A throw-away berth service and what is needed to look at it from all sides.

Python's standard library only: the demo and the benchmark use it too.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from .client import Client, Fault  # noqa: E402
from .hosts import Hugetlb, Lxcfs, cgroup_dir, small_file_system  # noqa: E402
from .service import Instance, Service, wait_for  # noqa: E402
from .source import ImageSource  # noqa: E402
from .terminal import Terminal  # noqa: E402
from .viewers import SerialViewer, VncViewer  # noqa: E402

__all__ = [
    "ROOT",
    "Client",
    "Fault",
    "Hugetlb",
    "ImageSource",
    "Instance",
    "Lxcfs",
    "SerialViewer",
    "Service",
    "Terminal",
    "VncViewer",
    "cgroup_dir",
    "small_file_system",
    "wait_for",
]
