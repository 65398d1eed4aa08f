"""Horizon, where it is wanted: HORIZON=1."""

from __future__ import annotations

import os

from .config import write_secret
from .place import ETC, KEYSTONE, LOOPBACK, PASSWORD, PORTS, ROOT, STATE, VENV
from .processes import Failure, Program, answers, run, wait_until

WANTED = bool(os.environ.get("HORIZON"))
# Its own, by `scripts/deps horizon`, of the same Python.
DASHBOARD_VENV = ROOT / "target/venv-horizon"
PORT = 8080
URL = f"http://{LOOPBACK}:{PORT}/"
PROGRAM = Program("horizon")
WORK, SETTINGS = STATE / "horizon", ETC / "horizon"
STATIC = WORK / "static"
# Last, as what says that its files are made.
MADE = WORK / "made"


def start() -> None:
    """Makes its files, once, and starts it."""
    if PROGRAM.pid:
        return
    if not (DASHBOARD_VENV / "stamp").exists():
        raise Failure("Horizon is not installed: scripts/deps horizon")
    _write_settings()
    if not MADE.exists():
        _make_files()
    PROGRAM.start(
        *(VENV / "bin/uwsgi", "--venv", DASHBOARD_VENV, "--module", "openstack_dashboard.wsgi:application"),
        *("--http-socket", f"{LOOPBACK}:{PORT}", "--static-map", f"/static={STATIC}"),
        *("--master", "--processes", 1, "--threads", 4, "--enable-threads", "--lazy-apps", "--need-app"),
        *("--die-on-term", "--buffer-size", 65535, "--disable-logging", "--log-5xx"),
        PYTHONPATH=str(SETTINGS),
    )
    wait_until("Horizon", lambda: answers(f"{URL}auth/login/"), 120, PROGRAM)


def stop() -> None:
    """Ends it, also where it is not wanted now."""
    PROGRAM.stop(5)


def _write_settings() -> None:
    """A package `local`, which comes before Horizon's own of that name."""
    settings = {
        "ALLOWED_HOSTS": [LOOPBACK, "localhost"],
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
                "LOCATION": f"{LOOPBACK}:{PORTS['memcached']}",
            }
        },
        "COMPRESS_OFFLINE": True,
        "LOCAL_PATH": str(WORK),
        "OPENSTACK_KEYSTONE_URL": KEYSTONE,
        "SECRET_KEY": PASSWORD,
        "STATIC_ROOT": str(STATIC),
        "TIME_ZONE": "UTC",
    }
    place = SETTINGS / "local"
    place.mkdir(parents=True, exist_ok=True)
    (place / "__init__.py").touch()
    write_secret(
        place / "local_settings.py", "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    )


def _make_files() -> None:
    """What browsers get: collected from its packages, its styles and scripts each in one file."""
    WORK.mkdir(exist_ok=True)
    more = {"PYTHONPATH": str(SETTINGS), "DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings"}
    django = (DASHBOARD_VENV / "bin/python", "-W", "ignore", "-m", "django")
    run(*django, "collectstatic", "--noinput", "--verbosity", "0", log="horizon-files", **more)
    run(*django, "compress", "--force", log="horizon-files", **more)
    MADE.touch()
