"""The page of the claims ledger: claimed, derived, measured and found, lesson by lesson."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.report import formatting
from harness.report.blocks import Beside
from harness.report.claims import chain
from harness.report.claims.agreement import OVERVIEW
from harness.report.claims.claim_rows import (
    AS_THE_RUN_FINDS,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_MEASURABLE,
    ClaimRow,
    claims_of,
    tally,
)
from harness.report.claims.measured import contradicts, finding_text, measured_text
from harness.report.formatting import plural, slug
from harness.report.markdown import code, collapsed, csv_link, embed, escape, prose, table
from harness.report.plot import Plot
from harness.report.run_records import RunRecords, provenance

TITLES = {
    "building": "Building a GPT",
    "pretraining": "Pretraining",
    "scaling": "Scaling and efficiency",
    "weights": "Loading real weights",
}
SOURCES = {
    "lessons": "by `make lessons`",
    "sweep": "by `gpt-harness sweep`",
    "bench": "by `make bench`",
    "pretrained": "with GPT-2's released weights",
}
RULE = (
    "A figure holds if the measured one rounds to it at the digits that the lessons give. "
    "*With a correction*: it does not, and the corrected figure does. *For another setting*: it does where the "
    "verdict says. *Not measurable here*: the column before it says what is missing."
)
LONGEST = 1000  # characters of a cell


def page(run: RunRecords, drawn: Sequence[Plot], runs: Iterable[RunRecords] = ()) -> str:
    """Return the page of a run's claims. `runs` are as in `chain.section`; without any, the run itself is one."""
    made = ["This page was made from the records alone; `gpt-harness report` makes it again.", ""]
    return "\n".join([*body(run, drawn, runs), *made]).rstrip() + "\n"


def body(run: RunRecords, drawn: Sequence[Plot], runs: Iterable[RunRecords] = ()) -> list[str]:
    """Return the blocks of the page, with the arguments of `page`."""
    claims = claims_of(run)
    lines = [*head(run, claims)]
    for plot in drawn:
        if plot.section == OVERVIEW:
            lines += [*embed(plot)]
    lines += [*chain.section(run, claims, runs or (run,))]
    for lesson in dict.fromkeys(claim.lesson for claim in claims):
        own = [claim for claim in claims if claim.lesson == lesson]
        lines += [*section(lesson, own, [plot for plot in drawn if plot.section == lesson])]
    lines += [Beside(f"Every claim, one row each: {csv_link('claims')}."), ""]
    return lines


def head(run: RunRecords, claims: Sequence[ClaimRow]) -> Iterator[str]:
    """Yield the title, the tally, and where and when the run was made."""
    yield from ("# The claims of the lessons", "", f"**{tally_sentence(claims)}**", "")
    yield from (f"Measured {formatting.date(run.header.get('started'))}: {escape(provenance(run))}", "")
    if run.selection:
        yield from ("**This run was a selection**: `pytest verifications/claims.toml` measures every claim.", "")
    yield from (RULE, "")
    wrong = [claim for claim in claims if contradicts(claim)]
    if wrong:
        yield from ("The ledger says otherwise than this run of:", "")
        yield from (f"- {code(claim.name)}: {escape(finding_text(claim), LONGEST)}" for claim in wrong)
        yield ""


def tally_sentence(claims: Sequence[ClaimRow]) -> str:
    """Return how many claims have which finding: `Of 78 claims 35 hold, 8 hold with a correction, ...`."""
    counts = tally(claims)
    plurals = {HOLDS: "hold", DOES_NOT_HOLD: "do not hold", NOT_MEASURABLE: "were not measurable here"}
    parts = []
    for finding, count in counts.items():
        words = finding or "could not be judged"
        if count != 1:
            words = plurals.get(finding) or words.replace("holds", "hold", 1)
        elif finding == NOT_MEASURABLE:
            words = "was not measurable here"
        parts.append(f"{count} {words}")
    return f"Of {plural(len(claims), 'claim')} {', '.join(parts)}."


def section(lesson: str, claims: Sequence[ClaimRow], drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield a lesson's figures, its table, and why each claim matters."""
    yield from (f"## {escape(TITLES.get(lesson, lesson))}", "")
    for plot in drawn:
        yield from embed(plot)
    rows = [
        [
            prose(claim.says, LONGEST),
            escape(claim.figure),
            escape(claim.derived, LONGEST),
            prose(measured_text(claim), LONGEST),
            verdict_cell(claim),
        ]
        for claim in claims
    ]
    ids = [f"claim-{slug(claim.name, 120)}" for claim in claims]
    yield from table(["claim", "claimed", "derived", "measured", "verdict"], rows, ids=ids)
    notes = [
        f"- {code(claim.name)}: {prose(claim.row.get('why') or '')} Source: {prose(claim.row.get('source') or '')}. "
        f"{how_measured(claim)}"
        for claim in claims
    ]
    yield from collapsed("Why each matters, its source, and how to measure it again", [*notes, ""])


def verdict_cell(claim: ClaimRow) -> str:
    """Return the finding, in bold if it is not as claimed and was measured."""
    text = escape(finding_text(claim))
    return text if claim.finding in (HOLDS, NOT_MEASURABLE) and not contradicts(claim) else f"**{text}**"


def how_measured(claim: ClaimRow) -> str:
    """Return where the claim is measured, and the command that judges it again."""
    by = SOURCES.get(claim.by, "")
    if claim.ledger == NOT_MEASURABLE:
        return ""
    again = f"Again: {code(claim.row.get('rerun') or '')}."
    if claim.ledger == AS_THE_RUN_FINDS:
        again = f"Depends on the run, so the ledger states no finding. {again}"
    return f"Measured {by}. {again}" if by else again
