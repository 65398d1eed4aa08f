"""Systems by each other init that Debian has: found, booted to a login, stopped and rebooted.

The images are what Debian's packages make (`scripts/image-inits`); systemd has its own tests.
BERTH_INITS names a directory with further ones, `INIT.tar.zst` or `INIT,WHAT.tar.zst`.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path

import imagelib
import pytest
from harness import ROOT, Terminal, wait_for

#: Images and the init that they have; of those of packages the image's name is the file's.
INITS = {
    "sysvinit": "sysvinit",
    "sysvinit-openrc": "sysvinit",
    "openrc": "openrc",
    "runit": "runit",
    "finit": "finit",
    "busybox-openrc": "busybox",
    "s6": "s6",
}
#: The same of images that were made elsewhere, of inits that Debian has not.
FURTHER = {
    str(file): file.name.split(".")[0].split(",")[0]
    for file in sorted(Path(os.environ.get("BERTH_INITS", "/nonexistent")).glob("*.tar.zst"))
}


@pytest.fixture(scope="module")
def images() -> Path:
    """The directory with the images."""
    directory = ROOT / "target/images"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "inits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may want them, too
        made = subprocess.run([ROOT / "scripts/image-inits"], stdout=subprocess.PIPE, text=True)
    assert made.returncode == 0, "scripts/image-inits failed"
    return Path(made.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def base_layer(images) -> bytes:
    """The layer of Debian without an init."""
    unpacked = subprocess.run(["zstd", "-dc", images / "none.tar.zst"], stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as archive:
        (path,) = json.load(archive.extractfile("manifest.json"))[0]["Layers"]
        return archive.extractfile(path).read()


#: A supervisor at an init's place, with a login and nothing for signals.
S6 = """\
#!/bin/sh
cp -a /etc/s6-linux-init/current/run-image/service /run/
exec s6-svscan /run/service
"""
#: What s6-svscan becomes when it is asked to end.
S6_FINISH = "#!/bin/sh\nexec /bin/busybox poweroff -f\n"


def s6_tree() -> imagelib.Tree:
    """What makes Debian's s6 an init, in the places of s6-linux-init, which Debian has not."""
    tree = imagelib.Tree()
    tree.file("usr/sbin/init", S6, 0o755)  # `sbin` is a link
    service = "etc/s6-linux-init/current/run-image/service"
    tree.file(f"{service}/early-getty/run", "#!/bin/sh\nexec /sbin/getty 38400 tty1\n", 0o755)
    tree.file(f"{service}/.s6-svscan/finish", S6_FINISH, 0o755)
    tree.file("etc/shadow", "root::19000:0:99999:7:::\n", 0o640)
    return tree


@pytest.fixture(scope="module", params=INITS | FURTHER, ids=lambda name: Path(name).name)
def image(request, service, images, tmp_path_factory) -> tuple[str, str]:
    """An image with an init, and which that is."""
    name = request.param
    if name == "s6":
        layers = [request.getfixturevalue("base_layer"), s6_tree().tar()]
        file = tmp_path_factory.mktemp("s6") / "s6.tar"
        file.write_bytes(imagelib.docker_archive(layers, {}, "s6:1"))
    else:
        # Joined to an absolute path it is that.
        file = images / (name if name in FURTHER else f"{name}.tar.zst")
    return name, service.import_image(file)


@pytest.fixture
def system(service, image, made):
    """A running instance of the image, at its login."""
    instance = service.spawn(image[1], hostname="machine")
    made.append(instance)
    instance.wait_console("machine login:", 90)
    return instance


def test_it_is_found_and_somebody_logs_in_at_its_console(service, image, system):
    name, identity = image
    shown = service.client.get(f"/v1/images/{identity}")["config"]
    assert (shown["init"], shown["inits"][0]["command"]) == ((INITS | FURTHER)[name], ["/sbin/init"])
    with Terminal(system) as terminal:
        terminal.wait_raw()
        terminal.type(b"\r")
        terminal.read_until(b"login: ")
        terminal.type(b"root\r")
        terminal.read_until(b"# ")
        terminal.type(b"echo $((6*7))-$(ps -o comm= -p 1)\r")
        terminal.read_until(b"42-")
        if name == "runit":
            return  # Debian's getty at ttyS0 leads no session there, nor on a machine.
        # A terminal of its own: what is interrupted ends, and its shell does not.
        terminal.type(b"sleep 1000\r")
        wait_for("the command", lambda: system.run("pidof", "sleep").stdout)
        terminal.type(b"\x03")
        terminal.type(b"echo interrupted-$((6*7))\r")
        terminal.read_until(b"interrupted-42")


def test_nothing_respawns_for_want_of_a_line(system):
    gettys = "pgrep -f 'getty.*tty[1-9]' | sort"
    wait_for("the gettys", lambda: system.run("sh", "-c", gettys).stdout)
    time.sleep(2)
    before, said = system.sh(gettys), system.console()
    # sysvinit waits five minutes when a line respawns too fast, BusyBox a second.
    time.sleep(6)
    assert system.sh(gettys) == before
    assert system.console() == said
    assert said.count("login:") == 1
    for complaint in ("respawning too", "can't open /dev/tty", "No such device", "open as standard input"):
        assert complaint not in said, said


def test_it_is_stopped_in_good_order_and_soon(image, system):
    before = time.monotonic()
    system.action("stop", timeout=60)
    took = time.monotonic() - before
    assert system.state == "SHUTDOWN"
    ended = system.get()["exit"]
    assert (ended["code"], ended["signal"]) == (0, None), "it was killed"
    assert took < 10, system.console()[-3000:]
    system.action("start")
    wait_for("the login", lambda: system.console().count("machine login:") == 2, 60)


def test_it_is_stopped_soon_while_people_are_logged_in(system):
    """Their shells ignore what asks all that is left to end."""
    with Terminal(system) as console, Terminal(system, "bash", "-i") as other:
        console.wait_raw()
        console.type(b"\r")
        console.read_until(b"login: ")
        console.type(b"root\r")
        for terminal in (console, other):
            terminal.read_until(b"# ")
            terminal.type(b"echo $((6*7))\r")
            terminal.read_until(b"42")
        before = time.monotonic()
        system.action("stop", timeout=60)
        took = time.monotonic() - before
    ended = system.get()["exit"]
    assert (ended["code"], ended["signal"]) == (0, None), "it was killed"
    assert took < 10, system.console()[-3000:]


def test_it_is_rebooted_from_inside_and_softly(system):
    # Not by the name of the init: what people type.
    system.run("sh", "-c", "reboot || busybox reboot -f")
    wait_for("the reboot", lambda: system.get()["guest_reboots"] == 1, 60)
    wait_for("the login", lambda: system.console().count("machine login:") == 2, 60)
    before = time.monotonic()
    system.action("reboot", type="SOFT")
    assert time.monotonic() - before < 20
    wait_for("the login", lambda: system.console().count("machine login:") == 3, 60)
    assert system.state == "RUNNING"


# -- what is told by the program alone ---------------------------------------------

#: What s6-overlay's `/init` says, and what its application does here.
SUPERVISOR = """\
#!/bin/sh -e
# s6-overlay-suexec is accessible via PATH, as are all our binaries.
trap 'echo asked; exit 0' TERM
echo "supervises $*"
while :; do sleep 0.1; done
"""


def applications() -> dict[str, tuple[imagelib.Tree, list[str]]]:
    """Trees with an init that is not what their command starts, and that command."""
    named, other = imagelib.busybox_tree(), imagelib.busybox_tree()
    for tree in (named, other):
        tree.symlink("sbin/init", "/bin/busybox")
    named.file("init", SUPERVISOR, 0o755)
    other.file("opt/sbin/init", SUPERVISOR.replace("s6-overlay", "x"), 0o755)
    return {"s6-overlay": (named, ["/init"]), "an init by name": (other, ["/opt/sbin/init"])}


@pytest.mark.parametrize("kind", applications())
def test_what_only_is_called_init_is_an_application(service, made, tmp_path, kind):
    tree, entrypoint = applications()[kind]
    file = tmp_path / "image.tar"
    file.write_bytes(imagelib.docker_archive([tree.tar()], {"Entrypoint": entrypoint}, "app:1"))
    vif = service.vif()
    made.append(service.spawn(service.import_image(file), vifs=[vif]))
    made[-1].wait_console("supervises")
    # Nothing in it asks for an address.
    address = vif["addresses"][0].split("/")[0]
    assert address in made[-1].sh("ip -o -4 addr show")
    made[-1].action("stop", timeout=30)
    assert "asked" in made[-1].console()
    assert made[-1].get()["exit"]["signal"] is None


def test_an_init_boots_by_the_name_that_is_there(service, made, tmp_path):
    tree = imagelib.busybox_tree()
    tree.symlink("init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    file = tmp_path / "image.tar"
    file.write_bytes(imagelib.docker_archive([tree.tar()], {}, "init:1"))
    image = service.import_image(file)
    assert service.client.get(f"/v1/images/{image}")["config"]["init"] == "busybox"
    made.append(service.spawn(image))
    made[-1].wait_console("started")
    before = time.monotonic()
    made[-1].action("stop", timeout=30)
    assert time.monotonic() - before < 10
