"""What is written is true: links, commands, options, targets, metrics, the jobs of .zuul.yaml."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from harness import ROOT, Service
from harness.service import BERTH

DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "nova-driver/README.md"])
BOARD, RULES = ROOT / "etc/metrics/grafana.json", ROOT / "etc/metrics/alerts.yaml"
METRIC = re.compile(r"\bberth_(?!nova\b)[a-z0-9_]+\b")

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def code(text: str) -> list[str]:
    """What stands in backticks, a span each, and the lines of blocks."""
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.S)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    lines = [line.strip() for line in re.findall(r"^ {4}.*$", text, re.M)]
    return spans + lines + [line for block in blocks for line in block.splitlines()]


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def links(path: Path) -> list[tuple[str, str]]:
    """Text and target of each link."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    return re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", text)


@documents
def test_links_lead_somewhere(path: Path):
    for text, target in links(path):
        if target.startswith(("http://", "https://")):
            continue
        file, _, wanted = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"[{text}]({target})"
        if wanted:
            assert wanted in anchors(there), f"[{text}]({target})"


@documents
def test_a_link_to_a_test_names_one_that_is_there(path: Path):
    for text, target in links(path):
        if text.startswith("`test_"):
            source = (path.parent / target).read_text()
            assert text.strip("`").removeprefix("test_") in source, f"[{text}]({target})"


def walls() -> list[list[str]]:
    """The rows of the table of walls, without its head."""
    text = (ROOT / "docs/security.md").read_text().partition("## The walls of an instance")[2]
    rows = [line.strip("|").split(" | ") for line in text.partition("\n#")[0].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_each_wall_is_compared_and_has_a_proof_that_is_there():
    table = walls()
    assert len(table) > 15
    for wall, ours, *others, proof in table:
        assert len(others) == 3 and all(others), wall
        if ours == "none":
            assert not proof, wall
            continue
        [(name, file)] = re.findall(r"\[`([^`]+)`\]\(([^)]+)\)", proof)
        source = (ROOT / "docs" / file).read_text()
        found = any(f"{word} {name}(" in source for word in ("def", "fn"))
        assert found or file.endswith(name), f"{wall}: {proof}"


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))


@documents
def test_make_has_the_targets(path: Path):
    for span in code(path.read_text()):
        for words in re.findall(r"^make((?: +[a-z0-9-]+)+)", span):
            assert set(words.split()) <= targets(), span


@functools.cache
def usage(*command: str) -> str:
    """The help of a command; empty: there is none."""
    result = subprocess.run([BERTH, *command, "--help"], capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else ""


def berth_calls(span: str) -> list[list[str]]:
    """The words of each call of `berth` in a line."""
    line = re.sub(r" #.*", "", span)
    return [part.split() for part in re.split(r"&&|\||;", line) if re.match(r"\s*berth [a-z]", part)]


@documents
def test_berth_has_the_commands_and_options(path: Path):
    for span in code(path.read_text()):
        for call in berth_calls(span):
            words = call[1:]
            command = words[:2] if words[0] in ("image", "volume") else words[:1]
            # What comes after -- is another program's.
            own = words[: words.index("--")] if "--" in words else words
            options = [word for word in own if word[0] == "-" and word != "-"]
            help_text = usage(*command)
            assert help_text, f"there is no such command: {span}"
            for option in options:
                name = option.split("=")[0]
                assert re.search(rf"(^|[\s,]){name}\b", help_text), f"{name} in {span}"


@pytest.fixture(scope="module")
def metrics(runtime: str, lxcfs, busybox_file: Path) -> set[str]:
    """The names that a service shows which has done something."""
    service = Service(runtime, lxcfs.mount_point)
    try:
        service.start()
        service.define(service.import_image(busybox_file)).delete()
        answer = service.client.request("GET", "/metrics").body.decode()
    finally:
        left = service.close()
    assert not left, left
    return {line.split("{")[0].split()[0] for line in answer.splitlines() if line and line[0] != "#"}


def test_the_metrics_of_dashboard_alerts_and_documents_are_there(metrics: set[str]):
    board = json.loads(BOARD.read_text())
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules]
    named = {name for text in expressions for name in METRIC.findall(text)}
    assert len(expressions) > 15 and named
    assert named <= metrics, named - metrics
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics}
    told = set(METRIC.findall((ROOT / "docs/operations.md").read_text()))
    assert told == families, told ^ families


def test_alerts_say_what_to_do():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
            for call in berth_calls(rule["annotations"]["action"].replace(",", ";")):
                assert usage(call[1]), rule["alert"]


def zuul() -> dict[str, list[dict]]:
    """The items of .zuul.yaml by kind."""
    found: dict[str, list[dict]] = {}
    for item in yaml.safe_load((ROOT / ".zuul.yaml").read_text()):
        [(kind, value)] = item.items()
        found.setdefault(kind, []).append(value)
    return found


def test_zuul_knows_its_jobs_and_playbooks():
    items = zuul()
    assert items.keys() == {"job", "nodeset", "project"}
    jobs = {job["name"]: job for job in items["job"]}
    for job in jobs.values():
        assert job["description"].strip(), job["name"]
        for key in ("pre-run", "run", "post-run"):
            for playbook in [job[key]] if isinstance(job.get(key), str) else job.get(key, []):
                plays = yaml.safe_load((ROOT / playbook).read_text())
                assert all({"hosts", "tasks"} <= play.keys() for play in plays), playbook
        if job["parent"].startswith("berth-"):
            assert job["parent"] in jobs, job["name"]
        assert set(job.get("vars", {}).get("make_targets", [])) <= targets(), job["name"]
    [project] = items["project"]
    for pipeline in ("check", "gate"):
        assert set(project[pipeline]["jobs"]) <= jobs.keys()


def test_zuul_runs_every_nova():
    supported = {path.stem for path in (ROOT / "nova-driver/tests/requirements").iterdir()}
    run = {job["vars"]["nova"] for job in zuul()["job"] if "nova" in job.get("vars", {})}
    assert run == supported


def test_what_zuul_excludes_has_a_reason():
    """A comment stands above each expression."""
    lines = (ROOT / ".zuul.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if "exclude_regex" in line:
            assert lines[number - 1].strip().startswith("# "), line
