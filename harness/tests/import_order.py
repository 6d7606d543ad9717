"""The order of the rooms. Every import statement counts, in functions and under TYPE_CHECKING too."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

# From the ground up. A room may import what is on a lower floor, and itself.
FLOORS = (
    {"core"},
    {"suites", "subjects"},
    {"oracle"},
    {"bench", "training"},
    {"measures"},
    {"diagnosis"},
    {"judging"},
    {"faults", "history", "lessons", "report"},
    {"sweeps"},
    {"pytest_plugin"},
    {"commands"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FEWER = {"report": {"core"}}  # rooms that may import less than their floor allows
SEPARATE = {"gpt": "harness", "harness": "gpt"}  # packages that must not know each other

Imports = Mapping[str, set[str]]


def violations(root: Path) -> list[str]:
    """Return a line for each import and each file that breaks the order, in the packages gpt and harness of `root`."""
    found = []
    for package, other in SEPARATE.items():
        modules = {name: path for name, path in _modules(root, package) if "tests" not in path.relative_to(root).parts}
        imports = {name: set(_imported(path, name, modules)) for name, path in modules.items()}
        found += [f"{name} imports {other}" for name, targets in imports.items() if other in map(_package, targets)]
        found += [f"circle: {' -> '.join(circle)}" for circle in _circles(imports)]
        if package == "harness":
            found += [f"{name} is in no room" for name in modules if _room(name) not in FLOOR and _room(name)]
            found += [text for name, targets in imports.items() for text in _upward(name, targets)]
    return found


def _upward(name: str, targets: set[str]) -> Iterator[str]:
    here = _room(name)
    for target in sorted(targets):
        there = _room(target)
        if _package(target) != "harness" or there == here or not here or there not in FLOOR or here not in FLOOR:
            continue
        allowed = FEWER.get(here, {room for room in FLOOR if FLOOR[room] < FLOOR[here]})
        if there not in allowed:
            yield f"{name} imports {target}: {here} may not import {there}"


def _modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def _imported(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the module behind every import: `from harness import X` is an import of harness.X, if X is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _resolved(node, name, is_package=path.name == "__init__.py")
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base


def _resolved(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".") if is_package else name.split(".")[:-1]
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _circles(imports: Imports) -> Iterator[list[str]]:
    """Yield each circle once, as the modules on the way from one of them back to itself."""
    done: set[str] = set()
    for start in sorted(imports):
        way = _way_back(imports, start)
        if way and not done & set(way):
            done |= set(way)
            yield way


def _way_back(imports: Imports, start: str) -> list[str] | None:
    came_from: dict[str, str] = {}
    queue = [start]
    for module in queue:
        for target in sorted(imports.get(module, ())):
            if target == start and module != start:
                way = [start, module]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target in imports and target not in came_from and target != start:
                came_from[target] = module
                queue.append(target)
    return None


def _package(module: str) -> str:
    return module.split(".")[0]


def _room(module: str) -> str:
    """The room of a module of harness: the folder below it, or the module's own name directly in harness."""
    return module.split(".")[1] if "." in module else ""
