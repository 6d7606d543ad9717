"""A measure of how a program reads a sweep's table: which losses it takes, and which N."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from harness.measures.scaling.known_tables import LAWS
from harness.subjects.protocols import ReadsRuns
from harness.suites.measure_registry import Reading, measure

COLUMNS = ("run", "parameters", "non_embedding", "tokens", "horizon", "flops", "loss")
HORIZONS = (2e8, 1e9, 5e9)
WIDTHS = (256, 384, 640)
VOCABULARY, LAYERS = 5000, 4
SHARES = (0.25, 0.5, 0.75, 1.0)  # of a run's horizon, at which it was logged
HIGHER = 1.08  # the loss of a run in progress over that of a run that ends there: its learning rate is still high
DIPS = 0.93  # a loss that was logged on the way may be lower than the final one, by luck
LIKE = 1e-9


@measure
def runs_read(subject: ReadsRuns, *, size: str) -> Reading:
    """Return how far N, D and L are from those of the runs at the end of their own schedules, as a fraction.

    The table has a row for each time that a run was logged. Some runs have not reached their horizon. N counts all
    parameters, for the budgets do: flops = 6·parameters·tokens. Another number of runs is infinitely far.
    """
    rows = list(_rows())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        found = _sorted(subject.read_runs(path))
    right = _sorted(_columns([row for row in rows if row["tokens"] == row["horizon"]]))
    away = {name: _away(found, right, name) for name in "NDL"}
    hint = next((words for words, other in _mistakes(rows).items() if _same(found, _sorted(other))), "")
    said = hint or f"{len(found['N'])} runs, expected {len(right['N'])}"
    return Reading(
        away, "of the value", {"line": subject.runs_line, "hint": said, "answers": dict.fromkeys(away, said)}
    )


def _rows() -> Iterator[dict[str, float | str]]:
    """Yield what was logged of each run; the run of the last width and horizon was stopped at half its schedule."""
    law = LAWS["besiroglu"]
    for width in WIDTHS:
        body = 12 * LAYERS * width**2
        parameters = body + VOCABULARY * width
        for horizon in HORIZONS:
            for number, share in enumerate(SHARES):
                if (width, horizon) == (WIDTHS[-1], HORIZONS[-1]) and share > 0.5:
                    break
                tokens = share * horizon
                final = law.E + law.A * parameters**-law.alpha + law.B * tokens**-law.beta
                factor = 1.0 if share == 1 else DIPS if number == 2 and width == WIDTHS[0] else HIGHER
                yield {
                    "run": f"width-{width}-horizon-{horizon:g}", "parameters": parameters, "non_embedding": body,
                    "tokens": tokens, "horizon": horizon, "flops": 6 * parameters * tokens, "loss": final * factor,
                }  # fmt: skip


def _columns(rows: list[dict[str, float | str]], size: str = "parameters") -> dict[str, np.ndarray]:
    names = {"N": size, "D": "tokens", "L": "loss"}
    return {name: np.asarray([float(row[column]) for row in rows]) for name, column in names.items()}


def _mistakes(rows: list[dict[str, float | str]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Return what known mistakes read, by words."""
    runs: dict[str, list[dict[str, float | str]]] = {}
    for row in rows:
        runs.setdefault(str(row["run"]), []).append(row)
    ended = [own for own in runs.values() if own[-1]["tokens"] == own[-1]["horizon"]]

    def lowest(own: list[dict[str, float | str]]) -> dict[str, float | str]:
        return min(own, key=lambda row: float(row["loss"]))

    return {
        "runs in progress are read as if they had ended": _columns(rows),
        "the last row of each run is read, of a run that was stopped too": _columns([own[-1] for own in runs.values()]),
        "the lowest loss of a run is read, not that at its end": _columns([lowest(own) for own in ended]),
        "the lowest loss of a run is read, of a run that was stopped too": _columns(
            [lowest(own) for own in runs.values()]
        ),
        "the lowest loss of a run is read at its end": _columns(
            [{**own[-1], "loss": lowest(own)["loss"]} for own in ended]
        ),
        "N leaves the embeddings out, and the budgets count them": _columns(
            [own[-1] for own in ended], size="non_embedding"
        ),
    }


def _sorted(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.lexsort([columns[name] for name in "LDN"])
    return {name: np.asarray(columns[name], dtype=np.float64)[order] for name in "NDL"}


def _away(found: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], name: str) -> float:
    if len(found[name]) != len(right[name]):
        return float("inf")
    return float(np.abs(found[name] / right[name] - 1).max())


def _same(found: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(_away(found, other, name) <= LIKE for name in "NDL")
