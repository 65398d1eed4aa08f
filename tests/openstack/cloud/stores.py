"""memcached, MariaDB and RabbitMQ, and the databases' schemas. None of the three asks for a password."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from pathlib import Path

from . import commands
from .config import database
from .place import KEYSTONE, LOOPBACK, PASSWORD, PORTS, REGION, STATE
from .processes import Program, listens, run, together, wait_until

MEMCACHED, MARIADB, RABBITMQ = (Program(name) for name in ("memcached", "mariadb", "rabbitmq"))
MYSQL_DIR, RABBIT_DIR = STATE / "mysql", STATE / "rabbitmq"
SCHEMAS_MADE = STATE / "schemas-made"
DATABASES = ("keystone", "glance", "placement", "nova_api", "nova_cell0", "nova_cell1", "neutron", "heat")


def start() -> None:
    """Starts all three. RabbitMQ is still on its way afterwards: see `wait_for_broker`."""
    MEMCACHED.start(
        "memcached", "-u", "nobody", "-l", LOOPBACK, "-p", PORTS["memcached"], "-m", 64, "-c", 2048
    )
    _start_rabbitmq()
    _start_mariadb()


def _start_mariadb() -> None:
    """Tuned for speed: what a power failure would cost is made anew."""
    if not MARIADB.pid:
        MYSQL_DIR.mkdir(exist_ok=True)
        shutil.chown(MYSQL_DIR, "mysql", "mysql")
    common = ("--no-defaults", "--user=mysql", f"--datadir={MYSQL_DIR}")
    if not (MYSQL_DIR / "mysql").exists():
        run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
    MARIADB.start(
        "mariadbd",
        *common,
        f"--socket={MYSQL_DIR}/socket",
        f"--pid-file={MYSQL_DIR}/pid",
        f"--bind-address={LOOPBACK}",
        f"--port={PORTS['mariadb']}",
        "--max-connections=1000",
        "--skip-log-bin",
        "--skip-name-resolve",
        "--character-set-server=utf8mb4",
        "--performance-schema=0",
        "--innodb-buffer-pool-size=192M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--innodb-flush-method=nosync",
    )
    wait_until("MariaDB", lambda: listens(PORTS["mariadb"]), 60, MARIADB)


def _start_rabbitmq() -> None:
    if RABBITMQ.pid:
        return
    RABBIT_DIR.mkdir(exist_ok=True)
    shutil.chown(RABBIT_DIR, "rabbitmq", "rabbitmq")
    settings, advanced = RABBIT_DIR / "rabbitmq.conf", RABBIT_DIR / "advanced.config"
    settings.write_text(
        f"listeners.tcp.local = {LOOPBACK}:{PORTS['rabbitmq']}\n"
        "vm_memory_high_watermark.absolute = 512MiB\n"
        "disk_free_limit.absolute = 64MB\n"
    )
    # Erlang's own port is for loopback too.
    advanced.write_text("[{kernel,[{inet_dist_use_interface,{127,0,0,1}}]}].\n")
    RABBITMQ.start(
        # runuser has its own idea of HOME, where Erlang keeps its cookie.
        *("runuser", "-u", "rabbitmq", "--", "env", f"HOME={RABBIT_DIR}"),
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        ERL_EPMD_ADDRESS=LOOPBACK,
        RABBITMQ_NODENAME="berth@localhost",
        RABBITMQ_CONFIG_FILE=str(settings),
        RABBITMQ_ADVANCED_CONFIG_FILE=str(advanced),
        RABBITMQ_ENABLED_PLUGINS_FILE=str(RABBIT_DIR / "plugins"),
        RABBITMQ_MNESIA_BASE=str(RABBIT_DIR / "mnesia"),
        RABBITMQ_LOG_BASE=str(RABBIT_DIR / "log"),
        # Idle schedulers sleep instead of turning in circles.
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none",
    )


def wait_for_broker() -> None:
    """RabbitMQ takes a while to boot."""
    wait_until("RabbitMQ", lambda: listens(PORTS["rabbitmq"]), 90, RABBITMQ)


def make_schemas() -> None:
    """Makes the databases and their tables, once."""
    if SCHEMAS_MADE.exists():
        return
    statements = "".join(
        f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4;\n" for name in DATABASES
    )
    run("mariadb", "--no-defaults", "-h", LOOPBACK, "-u", "root", stdin=statements)
    together([_keystone_and_others, _nova_and_neutron])
    SCHEMAS_MADE.touch()


def _manage(service: str, *words: object, **more: str) -> str:
    return run(commands.PLACE / f"{service}-manage", *words, log=f"{service}-manage", **more)


def _keystone_and_others() -> None:
    owner = ("--keystone-user", "root", "--keystone-group", "root")
    _manage("keystone", "db_sync")
    _manage("keystone", "fernet_setup", *owner)
    _manage("keystone", "credential_setup", *owner)
    endpoints = [f"--bootstrap-{kind}-url={KEYSTONE}" for kind in ("public", "internal", "admin")]
    # Not as an argument, which any user of this machine could read.
    secret = {"OS_BOOTSTRAP_PASSWORD": PASSWORD}
    _manage("keystone", "bootstrap", "--bootstrap-region-id", REGION, *endpoints, **secret)
    _manage("placement", "db", "sync")
    _manage("glance", "db_sync")
    _manage("heat", "db_sync")


def _nova_and_neutron() -> None:
    _manage("nova", "api_db", "sync")
    _manage("nova", "cell_v2", "map_cell0", "--database_connection", database("nova_cell0"))
    if "cell1" not in _manage("nova", "cell_v2", "list_cells"):
        _manage("nova", "cell_v2", "create_cell", "--name", "cell1")
    _manage("nova", "db", "sync")
    run(commands.PLACE / "neutron-db-manage", "upgrade", "head", log="neutron-manage")


def stop() -> None:
    """Ends all three, and the port mapper that RabbitMQ leaves behind."""
    together([program.stop for program in (MEMCACHED, MARIADB, RABBITMQ)])
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (directory / "comm").read_text() == "epmd\n" and _is_ours(directory):
                os.kill(int(directory.name), signal.SIGTERM)


def _is_ours(process: Path) -> bool:
    if pwd.getpwuid(process.stat().st_uid).pw_name != "rabbitmq":
        return False
    ours = f"RABBITMQ_MNESIA_BASE={RABBIT_DIR}/mnesia".encode()
    return ours in (process / "environ").read_bytes().split(b"\0")
