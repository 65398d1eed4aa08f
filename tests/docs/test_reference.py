"""What the program writes about itself, and what it says of a wrong configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import ROOT
from harness.service import BERTH


def berth(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([BERTH, *arguments], capture_output=True, text=True, timeout=120)


def test_the_reference_of_the_configuration_is_current():
    assert berth("configuration").stdout == (ROOT / "docs/configuration.md").read_text(), "run `make docs`"


def test_every_command_has_a_manual_page(tmp_path: Path):
    assert berth("manual", tmp_path).returncode == 0
    pages = {page.name for page in tmp_path.iterdir()}
    shown = berth("--help").stdout.split("Commands:")[1].split("Options:")[0]
    verbs = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2] != " "]
    assert len(verbs) > 20
    assert {f"berth-{verb}.1" for verb in verbs if verb != "help"} <= pages
    assert {"berth.1", "berth-image-import.1"} <= pages
    # Man finds nothing to complain about, and every page says how the command is called.
    for page in tmp_path.iterdir():
        assert ".SH SYNOPSIS" in page.read_text(), page.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_the_commands(shell: str):
    assert "resize-confirm" in berth("completion", shell).stdout


@pytest.mark.parametrize(
    "text,key,remedy",
    [
        (
            '[service]\nsokcet = "/x"',
            "service.sokcet: ",
            "line 2: unknown field `sokcet`, expected one of `socket`",
        ),
        ('[service]\n\nworkers = "many"', "service.workers: ", "line 3: invalid type"),
        ("[service]\nworkers = -1", "service.workers: ", "a whole number, 0 or more"),
        ('[service]\nlog_format = "xml"', "service.log_format: ", "expected `text` or `json`"),
        ('[service]\nlog_level = "berth=loudly"', "service.log_level: ", 'take e.g. "info"'),
        ('[service]\nsocket_group = "no-such-group"', "service.socket_group: ", "there is no group"),
        ('[bridge]\nnat = "yes"', "bridge.nat: ", "expected a boolean"),
        ('[service.tls]\nlisten = "0.0.0.0:1"', "service.tls: ", "missing field `certificate`"),
        ('[service]\nsocket = "run/x"', "service.socket: ", "must be an absolute path"),
        ('[images]\nglance_ca = "/no/such/file"', "images.glance_ca", "No such file"),
        ("[service", "configuration: ", "line 1: "),
    ],
)
def test_check_names_the_key_and_the_remedy(tmp_path: Path, text: str, key: str, remedy: str):
    config = tmp_path / "berth.toml"
    config.write_text(text)
    result = berth("check", "--config", config)
    assert result.returncode == 1
    assert result.stdout == ""
    assert key in result.stderr and remedy in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_check_says_of_a_good_file_that_it_is():
    config = ROOT / "etc/berth.toml"
    assert f"{config} is valid" in berth("check", "--config", config).stdout
