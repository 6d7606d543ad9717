"""The record file of a sweep: its runs, and what was fitted to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.core.record_files import RecordWriter, Row
from harness.lessons.trainer_process import TRAINER
from harness.sweeps.fits import budgets_of, fit_rows
from harness.sweeps.plan_file import SweepPlan
from harness.sweeps.sources import SourceText
from harness.sweeps.sweep_runs import SweepRun, sweep_rows

KIND = "sweep"


def write_records(
    reports: Path, plan: SweepPlan, texts: Mapping[str, SourceText], runs: Sequence[SweepRun], *,
    not_finished: Mapping[str, str], machine: Row, seconds: float,
) -> Path | None:  # fmt: skip
    """Write a record file with every finished run of a plan and the fits, and return its path; None if none is."""
    rows = sweep_rows(runs)
    if not rows:
        return None
    header = {
        "plan": plan.name, "about": plan.about, "planned": len(runs), "subject": {"name": TRAINER},
        "environment": machine, "rate_times_width": plan.rate_times_width,
        "sources": [source_row(source.name, texts[source.name]) for source in plan.sources],
    }  # fmt: skip
    entropies = {name: {"entropy": text.entropy, "floor": text.floor} for name, text in texts.items()}
    footer = {"unfinished": dict(not_finished), "complete": not not_finished and len(rows) == len(runs)}
    return write_rows(reports, header, [*rows, *fit_rows(rows, entropies=entropies)], footer, seconds=seconds)


def write_table_records(reports: Path, table: Path, rows: Sequence[Mapping[str, Any]], *, seconds: float) -> Path:
    """Write a record file of anybody's table of runs and the fits, and return its path."""
    runs = [
        {"kind": "run", "why": "", "name": f"row {number}", **row, "budget": budget}
        for number, (row, budget) in enumerate(zip(rows, budgets_of(rows).tolist(), strict=True), start=1)
    ]
    header = {"plan": "", "table": table.name, "planned": len(runs), "subject": {"name": table.name}, "sources": []}
    return write_rows(reports, header, [*runs, *fit_rows(runs)], {"complete": True}, seconds=seconds)


def write_rows(
    reports: Path, header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], footer: Mapping[str, Any], *,
    seconds: float,
) -> Path:  # fmt: skip
    """Write a record file and return its path."""
    now = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}Z-{int(now * 1000) % 1000:03d}"
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - seconds))
    recorder = RecordWriter(reports / "records" / f"{KIND}-{stamp}.jsonl", {"run": KIND, "started": started, **header})
    for row in rows:
        recorder.write(row)
    recorder.close({"wall_seconds": seconds, **footer})
    return recorder.path


def source_row(name: str, text: SourceText) -> dict[str, Any]:
    """Return what the header says about a source."""
    return {"name": name, **asdict(text), "path": text.path.name}
