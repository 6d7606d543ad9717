"""Resume an interrupted benchmark run: find the comparisons that it measured, which the next run need not repeat."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.record_files import Row, age, encode, read
from harness.core.shipped_packages import HOME

# The fields of the environment that times depend on.
MACHINE = (
    "python",
    "torch",
    "transformers",
    "cpu",
    "cores",
    "gpu",
    "omp_wait_policy",
    "huge_pages",
    "preloaded",
    "memory_gib",
)


def fingerprint(subject: str, *, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return a hash of everything that a time depends on: the subject's code, the harness, the machine, the settings.

    `environment` comes from `harness.core.environment.environment`. `settings` are the options of the run (size,
    device, threads, quick ...). Every character of the code counts, committed or not.
    """
    inputs = {"subject": subject, "machine": {key: environment.get(key) for key in MACHINE}, "settings": settings}
    digest = hashlib.sha256(json.dumps(encode(inputs), sort_keys=True).encode())
    for path in (*_sources(subject), *_package(HOME / "harness"), *_package(HOME / "benchmarks")):
        digest.update(f"\n{path}\n".encode("utf-8", "surrogateescape") + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(subject: str) -> list[Path]:
    """Return the files of the subject's code: what its file may import, or its package."""
    location = subject.rpartition(":")[0]
    if location.endswith(".py"):
        folder = Path(location).resolve().parent
        # The reference, too: it is what a subject most likely imports from outside its folder.
        return [*_project(folder), *_package(HOME / "gpt")]
    if subject.startswith("hf:"):
        return sorted(Path(subject.removeprefix("hf:")).glob("*.json"))
    try:
        spec = importlib.util.find_spec(location.split(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return []
    folders = spec.submodule_search_locations
    return _package(Path(folders[0])) if folders else [Path(spec.origin)]


def _package(folder: Path) -> list[Path]:
    return sorted(path for kind in ("*.py", "*.toml") for path in folder.rglob(kind) if "tests" not in path.parts)


def _project(folder: Path) -> list[Path]:
    """Return the modules beside a file and the packages in its folder: of a home directory, not every other project."""
    within = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    packages = [path for path in within if any(path.glob("*.py")) and not (path / "pyvenv.cfg").exists()]
    beside = [path for kind in ("*.py", "*.toml") for path in folder.glob(kind)]
    return sorted({*beside, *(path for package in packages for path in _package(package))})


def resumable(records: Path, fingerprint: str) -> list[Row]:
    """Return the comparisons that interrupted runs with this fingerprint measured, each once, newest first.

    Rows carry the `fingerprint` of their run. A complete run ends the search, because there is nothing to resume before
    it. A file that cannot be read is skipped.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for path in sorted(records.glob("bench-*.jsonl"), key=age, reverse=True):
        try:
            rows = read(path)
        except (HarnessError, OSError):
            continue
        comparisons = list(_comparisons(rows, fingerprint))
        if comparisons and rows[-1].get("kind") == "footer" and rows[-1].get("complete"):
            break
        for row in comparisons:
            found.setdefault((row["comparison"], row["metric"], row["point"]), {**row, "resumed_from": path.name})
    return list(found.values())


def _comparisons(rows: Collection[Row], fingerprint: str) -> Iterator[Row]:
    return (row for row in rows if row.get("kind") == "comparison" and row.get("fingerprint") == fingerprint)


def covers(row: Row, arms: Collection[str]) -> bool:
    """Return True if the comparison measured, or refused, every one of `arms`."""
    return {arm["arm"] for arm in row["arms"]} >= set(arms)
