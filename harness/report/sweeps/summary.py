"""The fits of a sweep in a few lines of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.core.record_files import read
from harness.report.sweeps.sweep_rows import ALL, ISO_FLOP, PARAMETRIC, Fit, Sweep

CHINCHILLA = 0.5  # of N_opt and D_opt, as the lessons have it
LESSONS_LOSS = 0.05  # of L ~ C^-0.05


def summary(records: Path) -> list[str]:
    """Return the fits of a record file as lines."""
    return list(lines(Sweep.of(read(records))))


def lines(sweep: Sweep) -> Iterator[str]:
    """Yield a heading for each source and count of N, and a line for each fit."""
    for source in sweep.sources:
        for count in dict.fromkeys(fit.count for fit in sweep.fits if fit.source == source):
            yield f"{source}, {len(sweep.of_source(source))} runs, N: {count_text(count)}"
            for fit in (fit for fit in sweep.fits if (fit.source, fit.count) == (source, count)):
                yield f"  {fit.approach:11s}{fit_line(fit)}"
    for run in sweep.without_loss:
        yield f"not fitted: {run.get('name')}: {run.get('why')}"


def count_text(count: str) -> str:
    """Return what a count of N counts."""
    return "all parameters" if count == ALL else "without embeddings"


def fit_line(fit: Fit) -> str:
    """Return the values of a fit that matter, with their intervals."""
    if fit.missing:
        return f"no fit: it needs {fit.missing}"
    if fit.approach == ISO_FLOP:
        names = {"size_exponent": "N_opt ~ C^", "data_exponent": "D_opt ~ C^", "loss_exponent": "L_opt ~ C^-"}
        text = "   ".join(f"{words}{fit.values[name].text()}" for name, words in names.items() if name in fit.values)
        return text + outside_text(fit)
    names = {"E": "E ", "alpha": "α ", "beta": "β ", "size_exponent": "N_opt ~ C^"}
    return "   ".join(f"{words}{fit.values[name].text()}" for name, words in names.items() if name in fit.values) + (
        entropy_text(fit)
    )


def outside_text(fit: Fit) -> str:
    """Return a warning about minima that no run is beyond; empty if there are none."""
    outside = fit.row.get("not_bracketed") or []
    if not outside:
        return ""
    budgets = ", ".join(f"{float(budget):g}" for budget in outside)
    return f"   (the minimum at {budgets} FLOPs is beyond the sizes that were run)"


def entropy_text(fit: Fit) -> str:
    """Return how E compares with the entropy of the source; empty if that is not known."""
    floor, entropy, E = fit.number("floor"), fit.number("entropy"), fit.values.get("E")
    if floor is None or entropy is None or E is None or fit.approach != PARAMETRIC:
        return ""
    verdict = "outside" if E.excludes(floor) else "inside"
    return f"   (known: {floor:.3f}, {verdict}; {entropy:.3f} of the source)"
