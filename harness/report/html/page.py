"""The page as one HTML file: the verdict and what won first, then the blocks of the Markdown page, and the claims."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from harness.report.benchmarks import comparisons, false_alarms, setup
from harness.report.benchmarks.arm_rows import by_comparison
from harness.report.claims import page as claims_page
from harness.report.claims.claim_rows import claims_of
from harness.report.claims.figures import plots as claims_plots
from harness.report.formatting import plain
from harness.report.history import NONE_EARLIER, Earlier
from harness.report.html.contents import Contents, Item, outline, without_empty
from harness.report.html.inline_markdown import as_text, block, inline
from harness.report.markdown import code, plot_anchor, prose
from harness.report.page import body, plots, run_summary, verdict_sentence
from harness.report.plot import Plot
from harness.report.run_records import VERDICTS, RunRecords, provenance
from harness.report.verifications.failures import in_order, name_of

if TYPE_CHECKING:
    from jinja2 import Template

MOST_CAUSES = 3  # of a diagnosis in the verdict; all are in its section
MOST_RESULTS = 12  # headlines of benchmarks at the top; all are in the overview


class Result(NamedTuple):
    """One headline of the top of the page, its topic, and the anchor of its figure."""

    topic: str
    text: str
    anchor: str


def page(
    verify: RunRecords | None,
    bench: RunRecords | None,
    *,
    claimed: RunRecords | None = None,
    runs: Iterable[RunRecords] = (),
    earlier: Earlier = NONE_EARLIER,
    notes: Sequence[str] = (),
) -> str:
    """Return the HTML of a report. Same records, same text.

    Args:
        verify: the verification run; None if there is none.
        bench: the benchmark run; None if there is none.
        claimed: the run whose claims are shown.
        runs: verification runs whose suites are shown beside the claims, newest first.
        earlier: runs of the same subject that these are compared with.
        notes: what is wrong with the records, in words.
    """
    contents = Contents()
    drawn = plots(verify, bench)
    items, missing = without_empty(contents.items(body(verify, bench, drawn, earlier)))
    run = verify or bench or claimed
    if claimed and claims_of(claimed):
        of_claims = claims_page.body(claimed, claims_plots(claimed), runs)
        items += [Item("part", id=contents.unique("claims")), *contents.items(of_claims, deeper=1)]
    results, found = results_of(bench, drawn), findings_of(items)
    script = asset("page.js")
    return template().render(
        subject=run.subject if run else "nothing",
        tone=tone(verify, bench),
        verdict=inline(verdict_sentence(verify)) if verify else "",
        tally=[(verdict, verify.counts[verdict]) for verdict in VERDICTS if verify.counts[verdict]] if verify else [],
        facts=[inline(line) for line in facts(verify, bench)],
        warning=block("\n".join(false_alarms.warning(bench))) if bench and bench.comparisons else "",
        excepted=[inline(line) for line in excepted(verify)],
        results=results[:MOST_RESULTS],
        words=setup.ANCHOR,
        more_results=max(0, len(results) - MOST_RESULTS),
        first_failures=first_failures(verify),
        causes=found[:MOST_CAUSES],
        more_causes=max(0, len(found) - MOST_CAUSES),
        provenance=("Verified on " if verify and bench else "") + (provenance(run) if run else ""),
        notes=[plain(note) for note in notes],
        items=items,
        missing=missing,
        outline=outline(items),
        style=Markup(asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def tone(verify: RunRecords | None, bench: RunRecords | None) -> str:
    """Return `failed`, `unfinished` or `passed`, which colours the verdict; `none` without a verification."""
    if verify is None:
        return "none"
    counts = verify.counts
    if counts["fail"] or counts["error"]:
        return "failed"
    return "passed" if (counts["pass"] or counts["declared"]) and not verify.interrupted else "unfinished"


def facts(verify: RunRecords | None, bench: RunRecords | None) -> Iterator[str]:
    """Yield when each run was made and how far it can be trusted, as lines of Markdown."""
    for run, did in ((verify, "Verified"), (bench, "Benchmarked")):
        if run:
            yield from run_summary(run, did)
    if bench and bench.comparisons:
        yield from comparisons.summary(bench)


def excepted(verify: RunRecords | None) -> Iterator[str]:
    """Yield what each subject is except for its declared deviations, as lines of Markdown."""
    found = (verify.footer or {}).get("excepted") if verify else None
    for subject, text in (found if isinstance(found, dict) else {}).items():
        yield f"{code(subject)} is {prose(text)}"


def results_of(bench: RunRecords | None, drawn: Iterable[Plot]) -> list[Result]:
    """Return the headlines of the comparisons' plots, the first of each topic before any second one."""
    named = by_comparison(bench)
    shown = [plot for plot in drawn if plot.section in named]
    first: dict[str, Plot] = {}
    for plot in shown:
        first.setdefault(plot.section, plot)
    topics = {name: plain(comparisons.title(name, rows), 80) for name, rows in named.items()}
    shown.sort(key=lambda plot: plot is not first[plot.section])
    return [Result(topics[plot.section], plot.headline, plot_anchor(plot)) for plot in shown]


def findings_of(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Return the findings of the diagnosis that are not declared, as the page shows them."""
    shown = [found for item in items if item.kind == "findings" for found in item.more["findings"]]
    return [found for found in shown if not found["declared"]]


def first_failures(verify: RunRecords | None) -> list[tuple[str, str]]:
    """Return the first failure's name and command, if there is one, for the top of the page."""
    bad = in_order(verify) if verify else []
    return [(name_of(check), plain(check.get("rerun") or "", 1000)) for check in bad[:1]]


def asset(name: str) -> str:
    """Return the text of a file of this folder."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


@functools.cache
def template() -> Template:
    """Return the template, in which everything is escaped that is not marked as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["as_text"] = as_text
    return environment.from_string(asset("page.html.j2"))
