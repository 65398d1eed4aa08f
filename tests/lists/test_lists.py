"""Whatever names a test names one that is there: lists of tests, documents, the Makefile.

Nothing is run or imported, so this needs seconds and no root. By itself, without the service's fixtures:

    target/venv/bin/python -m pytest -c tests/pytest.ini --rootdir tests --confcutdir tests/lists tests/lists
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OWN_LISTS = [ROOT / "tests/vm/tests", ROOT / "tests/vm/part"]
TEMPEST_LISTS = [
    ROOT / "tests/openstack/tempest-part.txt",
    ROOT / "tests/openstack/tempest-excluded.txt",
    ROOT / "tests/devstack/tempest.txt",
]
EXCLUDED_OF_OTHERS = ROOT / "tests/openstack/foreign/excluded.txt"
MADE = {"target", ".git", "node_modules"}
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not MADE & set(path.relative_to(ROOT).parts) and path.is_file()
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def entries(path: Path) -> list[str]:
    """The lines of a list, without remarks."""
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in path.read_text().splitlines())
    return [line for line in lines if line]


@functools.cache
def defined_in(path: Path) -> set[str]:
    """The tests of a Python file, `test_name` or `TestClass::test_name`, inherited ones too."""
    tree = ast.parse(path.read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def methods(name: str) -> Iterator[str]:
        for node in classes[name].body:
            if isinstance(node, Definition) and node.name.startswith("test_"):
                yield node.name
        for base in classes[name].bases:
            if isinstance(base, ast.Name) and base.id in classes:
                yield from methods(base.id)

    functions = {node.name for node in tree.body if isinstance(node, Definition)}
    alone = {name for name in functions if name.startswith("test_")}
    return alone | {f"{name}::{method}" for name in classes for method in methods(name)}


def is_there(entry: str) -> bool:
    """Whether pytest would find a test by this, a path below tests/ with or without a name."""
    file, _, name = entry.partition("::")
    path = ROOT / "tests" / file
    if not path.exists():
        return False
    name = re.sub(r"\[.*\]$", "", name)
    return not name or any(test == name or test.startswith(f"{name}::") for test in defined_in(path))


@pytest.mark.parametrize("path", OWN_LISTS, ids=name_of)
def test_a_list_of_own_tests_names_what_is_there_once(path: Path):
    listed = entries(path)
    assert listed
    assert [entry for entry in listed if not is_there(entry)] == []
    assert len(listed) == len(set(listed))


def test_the_part_is_of_the_whole():
    whole = entries(ROOT / "tests/vm/tests")

    def is_in(entry: str) -> bool:
        return any(entry == other or entry.startswith(f"{other}::") for other in whole)

    assert [entry for entry in entries(ROOT / "tests/vm/part") if not is_in(entry)] == []


@functools.cache
def tempest() -> set[str]:
    """Ids of the tests of the installed Tempest and Heat's plug-in, as it lists them but for the tags."""
    package = next(ROOT.glob("target/venv-openstack/lib/python3*/site-packages/tempest"), None)
    if package is None:
        pytest.skip("Tempest is not installed: scripts/deps openstack")
    ids = set()
    directories = [package / name for name in ("api", "scenario", "serial_tests")]
    for directory in (*directories, package.with_name("heat_tempest_plugin")):
        for path in directory.rglob("test_*.py"):
            module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            ids |= {f"{module}.{test.replace('::', '.')}" for test in defined_in(path)}
    return ids


def alternatives(pattern: str) -> list[str]:
    """A pattern for each way through its groups: a name that is gone must not hide behind another."""
    parts = [part.split("|") for part in re.split(r"\(([^()]*)\)", pattern)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


@pytest.mark.parametrize("path", TEMPEST_LISTS, ids=name_of)
def test_a_list_for_tempest_names_what_is_there(path: Path):
    patterns = [way for entry in entries(path) for way in alternatives(entry)]
    assert [way for way in patterns if not any(map(re.compile(way).search, tempest()))] == []


def published_modules() -> list[str]:
    """The packages and modules of other people's tests that are run against the cloud."""
    tree = ast.parse((ROOT / "tests/openstack/cloud/foreign.py").read_text())
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    (suites,) = (node.value for node in assignments if ast.unparse(node.targets[0]) == "SUITES")
    return [module for modules in ast.literal_eval(suites).values() for module in modules]


def published_tests() -> set[str]:
    """Their names, as tests/openstack/foreign/excluded.py makes them."""
    packages = next(ROOT.glob("target/venv-openstack/lib/python3*/site-packages"), None)
    if packages is None:
        pytest.skip("openstacksdk is not installed: scripts/deps openstack")
    names = set()
    for wanted in published_modules():
        place = packages / wanted.replace(".", "/")
        files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place.with_suffix(".py")]
        assert files, f"{wanted} has no tests"
        for path in files:
            module = ".".join(path.relative_to(packages).with_suffix("").parts)
            names |= {f"{module}.{test.replace('::', '.')}" for test in defined_in(path)}
    return names


def test_what_is_left_out_of_other_peoples_tests_is_there():
    patterns = [way for entry in entries(EXCLUDED_OF_OTHERS) for way in alternatives(entry)]
    assert patterns
    published = published_tests()
    assert [way for way in patterns if not any(map(re.compile(way).search, published))] == []


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_names_targets_and_paths_that_are_there(path: Path):
    text = path.read_text()
    for words in re.findall(r"(?:^ {4}|`)make((?: +[a-z0-9-]+)+)", text, re.M):
        assert set(words.split()) <= targets(), words
    for place in re.findall(r"(?<![\w./-])tests/[\w./-]*\w", text):
        assert (ROOT / place).exists() or (path.parent / place).exists(), place


def test_the_makefile_names_paths_that_are_there():
    text = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?<![\w./-])(?:tests|scripts|bench|debian|devstack)/[\w./-]*\w", text))
    assert [place for place in sorted(named) if not (ROOT / place).exists()] == []


@functools.cache
def own_names() -> set[str]:
    """Names of own tests and of the files that hold them."""
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("nova-driver/tests/**/test_*.py")]
    names = {part for file in files for test in defined_in(file) for part in test.split("::")}
    return names | {file.stem for file in files}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_names_tests_that_are_there(path: Path):
    others = set(re.findall(r"\btest_\w+", path.read_text())) - own_names()
    # What is not berth's own is Tempest's.
    if others:
        assert others - {test.rsplit(".", 1)[1] for test in tempest()} == set()
