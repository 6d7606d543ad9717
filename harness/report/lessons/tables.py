"""The tables behind the page of the lessons' runs: what each has, its columns and its rows, ready for CSV."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report.json_values import as_cell, as_list
from harness.report.lessons.training_runs import LessonRuns, TrainingRun

Table = tuple[str, list[str], list[Row]]  # what a row is, the columns, the rows
RUN = ["lesson", "arm", "seed"]
NUMBERS = [
    *("name", "steps", "tokens", "tokens_per_step", "train_tokens", "parameters", "vocabulary_size"),
    "active_parameters",
    *("text_characters", "device", "first_loss", "last_loss", "best_validation", "exploded_at"),
    *("tokens_per_second", "seconds", "ended", "settings", "made"),
]


# Of a table: what a row of it is, the key of a run's row that has the points, and their columns.
POINTS = {
    "lesson-curves": ("a recorded step of a run", "curve", ["step", "loss", "lr", "norm"]),
    "lesson-validation": ("a validation", "validation", ["step", "loss"]),
    "lesson-clipping": ("a recorded step, its gradient norms", "clipping", ["step", "norm", "clipped_norm", "cosine"]),
    "lesson-lost-updates": (
        "a recorded step, the share of its updates that is lost",
        "lost_updates",
        ["step", "share"],
    ),
    "lesson-experts": (
        "a recorded step, the share of tokens of each expert of each layer",
        "expert_shares",
        ["step", "shares", "balance_loss"],
    ),
    "lesson-speed": ("a recorded step, its speed", "speed", ["step", "tokens_per_second"]),
    "lesson-samples": ("a sample of text, in full", "samples", ["step", "loss", "text"]),
}


def tables(found: LessonRuns) -> dict[str, Table]:
    """Return every table that has rows, by the name of its file."""
    every: dict[str, Table] = {"lesson-runs": ("a run", [*RUN, *NUMBERS], [*map(run_row, found.runs)])}
    for name, (what, key, columns) in POINTS.items():
        every[name] = (what, [*RUN, *columns], [row for run in found.runs for row in point_rows(run, key, columns)])
    return {name: table for name, table in every.items() if table[2]}


def identity(run: TrainingRun) -> Row:
    """Return lesson, arm and seed of a run."""
    return {"lesson": run.lesson, "arm": run.arm, "seed": run.seed}


def run_row(run: TrainingRun) -> Row:
    """Return the numbers of a run, nested ones as JSON."""
    return identity(run) | {key: as_cell(run.row.get(key)) for key in NUMBERS}


def point_rows(run: TrainingRun, key: str, columns: list[str]) -> Iterator[Row]:
    """Yield the points of a run as they are recorded: a list of values or a mapping each."""
    for point in as_list(run.row.get(key)):
        cells = [point.get(column) for column in columns] if isinstance(point, dict) else as_list(point)
        yield identity(run) | {column: as_cell(cell) for column, cell in zip(columns, cells, strict=False)}
