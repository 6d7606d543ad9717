"""What an interrupted benchmark run has left: comparisons that the next run need not measure again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.record_files import encode, read
from harness.core.shipped_packages import HOME
from harness.history.compare_runs import age

# Of the environment, what times depend on.
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

Row = dict[str, Any]


def fingerprint(subject: str, *, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What a time depends on, as one word: the subject's code, the harness's, the machine, and how it was asked for.

    `environment` is `harness.core.environment.environment`'s, `settings` the options of the run (size, device, threads,
    quick ...). Of the code every character counts, committed or not.
    """
    told = {"subject": subject, "machine": {key: environment.get(key) for key in MACHINE}, "settings": settings}
    digest = hashlib.sha256(json.dumps(encode(told), sort_keys=True).encode())
    for path in (*_sources(subject), *_package(HOME / "harness"), *_package(HOME / "benchmarks")):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(subject: str) -> list[Path]:
    """The subject's code: the modules beside its file, or its package."""
    where = subject.rpartition(":")[0]
    if where.endswith(".py"):
        beside = Path(where).resolve().parent
        # What it most likely imports besides: the reference.
        return [*sorted(beside.glob("*.py")), *sorted(beside.glob("*.toml")), *_package(HOME / "gpt")]
    if subject.startswith("hf:"):
        return sorted(Path(subject.removeprefix("hf:")).glob("*.json"))
    try:
        spec = importlib.util.find_spec(where.split(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return []
    folders = spec.submodule_search_locations
    return _package(Path(folders[0])) if folders else [Path(spec.origin)]


def _package(folder: Path) -> list[Path]:
    return sorted(path for kind in ("*.py", "*.toml") for path in folder.rglob(kind) if "tests" not in path.parts)


def resumable(records: Path, fingerprint: str) -> list[Row]:
    """The comparisons that runs with this fingerprint measured before they were interrupted, each once, newest first.

    A complete run ends the search: after it there is nothing to go on with. Rows have their `fingerprint`; a file
    that cannot be read is passed over.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for path in sorted(records.glob("bench-*.jsonl"), key=age, reverse=True):
        try:
            rows = read(path)
        except (HarnessError, OSError):
            continue
        own = list(_comparisons(rows, fingerprint))
        if own and rows[-1].get("kind") == "footer" and rows[-1].get("complete"):
            break
        for row in own:
            found.setdefault((row["comparison"], row["metric"], row["point"]), {**row, "resumed_from": path.name})
    return list(found.values())


def _comparisons(rows: Collection[Row], fingerprint: str) -> Iterator[Row]:
    return (row for row in rows if row.get("kind") == "comparison" and row.get("fingerprint") == fingerprint)


def covers(row: Row, arms: Collection[str]) -> bool:
    """Whether a comparison measured, or refused, every one of `arms`."""
    return {arm["arm"] for arm in row["arms"]} >= set(arms)
