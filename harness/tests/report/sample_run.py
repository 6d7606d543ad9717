"""The header and footer of a run on a 2-core machine."""

from __future__ import annotations

from typing import Any

from harness.core.record_files import Row

ENVIRONMENT: Row = {
    "python": "3.11.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "platform": "Linux-6.1-x86_64",
    "cpu": "Intel(R) Xeon(R) Processor @ 2.10GHz",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "memory_gib": 23.5,
    "git_commit": "d3ab9a4",
    "git_dirty": False,
    "packages": {"numpy": "2.4.6", "tiktoken": "0.14.0"},
}


def run(
    kind: str,
    rows: list[Row],
    *,
    subject: str = "gpt:GPT",
    footer: bool = True,
    complete: bool = True,
    ending: Row | None = None,
    **header: Any,
) -> list[Row]:
    """Return rows between a header and a footer, which a run that died lacks; `ending` adds to the footer."""
    first = {
        "kind": "header",
        "schema": 1,
        "run": kind,
        "started": "2026-11-22T15:30:00Z",
        "subject": {"name": subject},
        "arguments": ["verifications/"],
        "environment": ENVIRONMENT,
        **header,
    }
    last = {
        "kind": "footer",
        "finished": "2026-11-22T15:31:32Z",
        "wall_seconds": 92.3,
        "peak_memory_bytes": 3_360_000_000,
        "complete": complete,
        **(ending or {}),
    }
    return [first, *rows, *([last] if footer else [])]
