"""Ratios that the run could not decide about: what stood in the way, what it takes, and the command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from benchmarks.show import label, ratio_of
from harness.bench.rounds import rounds_to_decide
from harness.core.record_files import Row
from harness.pytest_plugin.options import DEFAULT_DEVICE, as_typed
from harness.report.formatting import duration

SHOWN = 6
# Options that decide what is compared, with their defaults.
SETTINGS = {
    "--size": "124M", "--device": DEFAULT_DEVICE, "--deviations": None, "--threads": None, "--nanogpt": None,
    "--reports": None, "--quick": False,
}  # fmt: skip
# What a quiet machine stays below: a share of a core, times a second, and pages of 4 KiB a call.
STOLEN, PREEMPTIONS, FRESH_PAGES = 0.02, 20.0, 2000


def command(config: pytest.Config) -> str:
    """Return the command of this run without its selection: `pytest benchmarks/ --subject my_gpt.py:GPT`."""
    words = ["pytest", f"{as_typed(Path(__file__).parent, config)}/"]
    for subject in config.getoption("--subject") or ():
        words += ["--subject", subject]
    for option, default in SETTINGS.items():
        if (value := config.getoption(option)) != default:
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def undecided_lines(rows: Collection[Row], run: str = "pytest benchmarks/") -> Iterator[str]:
    """Yield a line for each comparison with a ratio that is undecided, and how to go on until it is not.

    `run` is the command of the run without its selection.
    """
    found = [row for row in rows if _undecided(row)]
    for row in found[:SHOWN]:
        ratios = _undecided(row)
        width = max(math.expm1(ratio_of(each).half_width) for each in ratios)
        arms = ", ".join(each["arm"] for each in ratios)
        reasons = "".join(f"; {reason}" for reason in noise(row))
        yield f"{label(row)}: {arms}: known to {width:.0%} after {ratios[0]['rounds']} rounds{reasons}"
    if found[SHOWN:]:
        yield f"and {len(found) - SHOWN} more"
    for effect in sorted({row["effect"] for row in found}):
        alike = [row for row in found if row["effect"] == effect]
        words = dict.fromkeys(f"({row['comparison']} and {row['metric'].replace(' ', ' and ')})" for row in alike)
        seconds = math.fsum(seconds_to_decide(row) for row in alike)
        yield (
            f"about {duration(seconds)} decide {len(alike)} of them: "
            f"{run} -k '{' or '.join(words)}' --resolve {effect:.0%}"
        )


def seconds_to_decide(row: Row) -> float:
    """Return the seconds that it takes to measure the comparison again until all of its ratios are decided."""
    rounds = max(len(arm["seconds"] or []) for arm in row["arms"])
    needed = max(rounds, rounds_to_decide(map(ratio_of, row["ratios"]), row["effect"]))
    return needed * float(row["timing_seconds"]) / rounds + float(row["wall_seconds"]) - float(row["timing_seconds"])


def noise(row: Row) -> Iterator[str]:
    """Yield what disturbed the comparison's blocks, in words."""
    used = [arm["usage"] for arm in row["arms"] if arm.get("usage")]
    if used and (stolen := max(each["stolen"] for each in used)) > STOLEN:
        yield f"other machines took {stolen:.0%} of a core"
    if used and (often := max(each["preemptions"] for each in used)) > PREEMPTIONS:
        yield f"other processes took the core {often:.0f} times a second"
    if used and (pages := max(each["fresh_pages"] for each in used)) > FRESH_PAGES:
        yield f"a call needs {pages:,} fresh pages from the kernel"


def _undecided(row: Row) -> list[Row]:
    return [each for each in row["ratios"] if each["verdict"] == "UNRESOLVED"]
