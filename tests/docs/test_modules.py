"""No files of the program lead in a circle: what two need has a place of its own.

A file depends on another when it names an item that is defined there, by whatever way: a name that
a module only hands on (`pub use`) counts for the file that it comes from, so a parent may declare
its children and hand on what is theirs, and they may use each other's through it. A parent that
uses a child which uses what the parent defines is a circle. What only tests see does not count,
nor do methods, which no path names.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness import ROOT

SOURCE = ROOT / "src"
VISIBLE = r"(pub(?:\([^)]*\))?\s+)?"
PATH = re.compile(r"(?<![\w:.'$])(?:\w+::)+\w+")
DEFINES = r"\b(?:fn|struct|enum|trait|type|const|static)"
ROOTS = ("crate", "self", "super")


def bare(text: str) -> str:
    """Code without comments, the content of strings, and what is only there for tests."""
    tokens = r'//[^\n]*|/\*.*?\*/|b?r(#+)".*?"\1|b?"(?:\\.|[^"\\])*"|\'(?:\\[^\']+|[^\'\\])\''
    text = re.sub(tokens, lambda m: "''" if m[0][0] in "'\"br" else " ", text, flags=re.S)
    while match := re.search(r"#\[cfg\((?:all\()?test\b[^\]]*\]\s*", text):
        text = text[: match.start()] + text[end_of_item(text, match.end()) :]
    return text


def end_of_item(text: str, at: int) -> int:
    """Where an item, a field or an arm ends that begins here."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth < 0:
            return place
        if depth == 0 and text[place] in ";,}":
            return place + 1
    return len(text)


def leaves(tree: str) -> list[tuple[list[str], str]]:
    """What a `use` names: each path, and the name that it gets here."""
    tree = tree.strip()
    if "{" in tree:
        head, _, rest = tree.partition("{")
        head = [part for part in head.strip().split("::") if part]
        parts, depth = [""], 0
        for letter in rest[: rest.rindex("}")]:
            depth += (letter == "{") - (letter == "}")
            parts.append("") if letter == "," and not depth else parts.append(parts.pop() + letter)
        return [(head + path, name) for part in parts if part.strip() for path, name in leaves(part)]
    path, _, name = tree.partition(" as ")
    parts = path.strip().split("::")
    if parts[-1] == "self":
        parts.pop()
    return [(parts, name.strip() or (parts[-1] if parts else ""))]


class Module:
    def __init__(self, name: tuple[str, ...], file: Path):
        self.name, self.file = name, file
        text = bare(file.read_text())
        self.children = set(re.findall(r"\bmod\s+(\w+)\s*;", text))
        #: What `use` brings in: by its name here, whole modules (`*`), and what is handed on.
        self.scope: dict[str, list[str]] = {}
        self.globs: list[list[str]] = []
        self.taken: list[list[str]] = []
        for visible, tree in re.findall(rf"\b{VISIBLE}use\s+([^;]+);", text):
            for path, name in leaves(re.sub(r"\s+", " ", tree)):
                if name == "*":
                    self.globs.append(path[:-1])
                # In an `impl` of a `use` that is named `self`, the head's last part is the name.
                self.scope[name or path[-1]] = path
                if not visible:
                    self.taken.append(path)
        self.code = re.sub(rf"\b{VISIBLE}use\s+[^;]+;", " ", text)

    def paths(self) -> list[list[str]]:
        """All that the file names, as it is written."""
        written = [match.split("::") for match in PATH.findall(self.code)]
        words = set(re.findall(r"\w+", self.code))
        return self.taken + written + [[name] for name in self.scope if name in words]


class Tree:
    def __init__(self, source: Path):
        self.source = source
        self.modules: dict[tuple[str, ...], Module] = {}
        todo: list[tuple[tuple[str, ...], Path]] = [((), source / "lib.rs")]
        while todo:
            name, file = todo.pop()
            module = self.modules[name] = Module(name, file)
            folder = file.parent if file.name in ("lib.rs", "mod.rs") else file.with_suffix("")
            for child in module.children:
                places = [folder / f"{child}.rs", folder / child / "mod.rs"]
                todo += [((*name, child), place) for place in places if place.exists()]

    def home(self, module: Module, path: list[str], deep: int = 0) -> Module | None:
        """The module that defines what a path means there; none for a module or another crate's."""
        if deep > 20:
            return None
        here, rest = module.name, list(path)
        if rest[0] in ROOTS:
            here = () if rest[0] == "crate" else here
            while rest and rest[0] in ROOTS:
                here = here[:-1] if rest[0] == "super" else here
                rest.pop(0)
        elif rest[0] in module.scope and module.scope[rest[0]] != path:
            return self.home(module, module.scope[rest[0]] + rest[1:], deep + 1)
        elif rest[0] not in module.children:
            return None
        while rest and (*here, rest[0]) in self.modules:
            here = (*here, rest.pop(0))
        found = self.modules.get(here)
        if not rest or found is None:
            return None
        if rest[0] == "*":
            return found
        if rest[0] in found.scope and found.scope[rest[0]] != rest:
            return self.home(found, found.scope[rest[0]] + rest[1:], deep + 1)
        for whole in found.globs:
            target = self.home(found, [*whole, rest[0]], deep + 1)
            if target and re.search(rf"{DEFINES} {rest[0]}\b", target.code):
                return target
        return found

    def edges(self) -> dict[str, set[str]]:
        edges = {}
        for module in self.modules.values():
            homes = {self.home(module, path) for path in module.paths()} - {None, module}
            edges[self.shown(module)] = {self.shown(home) for home in homes}
        return edges

    def shown(self, module: Module) -> str:
        return str(module.file.relative_to(self.source))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The files that lead to each other, circle by circle."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for file in edges[todo.pop()] - seen:
                seen.add(file)
                todo.append(file)
        return seen

    reach = {file: reached(file) for file in edges}
    found = {
        tuple(sorted(other for other in reach[file] if file in reach[other]))
        for file in edges
        if file in reach[file]
    }
    return [list(circle) for circle in sorted(found)]


def test_no_files_lead_in_a_circle():
    edges = Tree(SOURCE).edges()
    found = circles(edges)
    told = [f"{file} -> {sorted(edges[file] & set(circle))}" for circle in found for file in circle]
    assert found == [], "\n".join(told)


def test_a_circle_is_seen(tmp_path: Path):
    for name, text in {
        "lib.rs": "mod one; mod two; mod parent;",
        "one.rs": 'use crate::{two::{Two}, parent as x};\nfn f() { g("crate::parent::Own") } // parent::Own',
        "two.rs": "pub struct Two; fn f() -> super::one::One { crate::parent::Handed }",
        "parent/mod.rs": "mod child; mod other; mod user; pub use child::Handed; pub struct Own;\n"
        "#[cfg(test)] mod tests { use super::user::User; }",
        "parent/child.rs": "use crate::one; pub struct Handed; fn f() { one::f() }",
        "parent/other.rs": "use super::Handed;",
        "parent/user.rs": "use super::{Handed, Own}; pub struct User;",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    edges = Tree(tmp_path).edges()
    assert edges == {
        "lib.rs": set(),
        "one.rs": {"two.rs"},
        "two.rs": {"one.rs", "parent/child.rs"},
        # Handing on is no use, and tests do not count.
        "parent/mod.rs": set(),
        "parent/child.rs": {"one.rs"},
        "parent/other.rs": {"parent/child.rs"},
        "parent/user.rs": {"parent/child.rs", "parent/mod.rs"},
    }
    assert circles(edges) == [["one.rs", "parent/child.rs", "two.rs"]]
