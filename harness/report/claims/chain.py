"""The lessons' chain of verification in one view: three levels, what each has found, and what it cannot see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.report.claims.claim_rows import ClaimRow
from harness.report.claims.measured import finding_text
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


def section(run: RunRecords, claims: Sequence[ClaimRow]) -> Iterator[str]:
    """Yield the chain as a table: for each level the claims with their findings, and the suites of the run."""
    yield from ("## The chain of verification", "")
    rows = []
    for number, level in enumerate(LEVELS, start=1):
        own = [claim for claim in claims if claim.level == level.name]
        # Where several claims of a level have one finding, the finding is named once.
        by_finding: dict[str, list[str]] = {}
        for claim in own:
            by_finding.setdefault(finding_text(claim).split(":")[0], []).append(code(claim.name))
        found = "<br>".join(f"**{escape(finding)}**: {', '.join(names)}" for finding, names in by_finding.items())
        rows.append([f"{number}. {escape(level.name)}", found, suites_of(run, level), escape(level.blind_to)])
    yield from table(["level", "claims", "checks of this run", "what it cannot see"], rows)


def suites_of(run: RunRecords, level: Level) -> str:
    """Return the verdicts of a level's suites in the run: `parity: 34 pass`."""
    texts = []
    for suite in level.suites:
        own = [check for check in run.checks if check.get("suite") == suite]
        counts = {verdict: count for verdict, count in count_verdicts(own).items() if count}
        if counts:
            texts.append(f"{escape(suite)}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")
    if not texts:
        return "none: `pytest verifications/` runs them"
    return "<br>".join(texts)
