"""The lessons' chain of verification in one view: three levels, what each has found, and what it cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.report.claims.claim_rows import ClaimRow
from harness.report.claims.measured import finding_text
from harness.report.formatting import date
from harness.report.markdown import code, escape, table
from harness.report.run_records import RunRecords, count_verdicts


@dataclass(frozen=True)
class Level:
    """One level: its name in the ledger, the suites that belong to it, and a mistake that only the next one shows."""

    name: str
    suites: tuple[str, ...]
    blind_to: str


LEVELS = (
    Level(
        "shapes and counts",
        ("structure", "loading", "data"),
        "attn.c_proj, which is square, loaded without its transpose",
    ),
    Level(
        "outputs against a reference",
        ("parity", "attention", "generation", "precision", "loss", "pretrained", "arms"),
        "a residual projection that starts five times too wide: outputs are compared for given weights",
    ),
    Level(
        "training behaviour",
        ("initialisation", "training"),
        "where a mistake is: a loss names no line",
    ),
)


def section(run: RunRecords, claims: Sequence[ClaimRow], runs: Iterable[RunRecords]) -> Iterator[str]:
    """Yield the chain as a table: for each level the claims of `run` with their findings, and the suites' verdicts.

    `runs` are verification runs of the same subject, the newest first. A suite's verdicts are of the newest that has
    it, and are dated if that is another run than the claims'.
    """
    yield from ("## The chain of verification", "")
    found_in = newest_of_suites(run, runs)
    rows = []
    for number, level in enumerate(LEVELS, start=1):
        own = [claim for claim in claims if claim.level == level.name]
        # Where several claims of a level have one finding, the finding is named once.
        by_finding: dict[str, list[str]] = {}
        for claim in own:
            by_finding.setdefault(finding_text(claim).split(":")[0], []).append(code(claim.name))
        found = "<br>".join(f"**{escape(finding)}**: {', '.join(names)}" for finding, names in by_finding.items())
        rows.append([f"{number}. {escape(level.name)}", found, suites_of(level, run, found_in), escape(level.blind_to)])
    yield from table(["level", "claims", "checks, of the newest run", "what it cannot see"], rows)


def newest_of_suites(run: RunRecords, runs: Iterable[RunRecords]) -> dict[str, RunRecords]:
    """Return for each suite of the levels the newest run that has it. A selection of checks counts only if it is `run`.

    `runs` is read no further than it is needed.
    """
    missing = {suite for level in LEVELS for suite in level.suites}
    found: dict[str, RunRecords] = {}
    for each in runs:
        if each.selection and each.header != run.header:
            continue
        found |= dict.fromkeys(missing & {str(check.get("suite")) for check in each.checks}, each)
        missing -= set(found)
        if not missing:
            break
    return found


def suites_of(level: Level, run: RunRecords, found_in: dict[str, RunRecords]) -> str:
    """Return the verdicts of a level's suites: `parity: 34 pass`."""
    texts = []
    for suite in level.suites:
        if (newest := found_in.get(suite)) is None:
            continue
        own = [check for check in newest.checks if check.get("suite") == suite]
        counts = {verdict: count for verdict, count in count_verdicts(own).items() if count}
        text = f"{escape(suite)}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}"
        dated = "" if newest.header == run.header else f" ({escape(date(newest.header.get('started')))})"
        texts.append(text + dated)
    if not texts:
        return "none: `pytest verifications/` runs them"
    return "<br>".join(texts)
