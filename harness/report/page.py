"""The page that a person reads: the verdict first, then failures, measurements and the machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from harness.core.record_files import Row
from harness.report import formatting, history
from harness.report.benchmarks import (
    comparisons,
    false_alarms,
    latency,
    ratios,
    roofline,
    scaling,
    serving,
    setup,
    speculation,
)
from harness.report.benchmarks.arm_rows import by_comparison
from harness.report.formatting import number, plural
from harness.report.history import NONE_EARLIER, Earlier
from harness.report.json_values import as_float, as_mapping
from harness.report.markdown import code, escape, missing, plot_anchor, prose, table
from harness.report.plot import Plot
from harness.report.run_records import RunRecords, commit, provenance
from harness.report.verifications import activations, diagnosis, parity, ranks, verdicts
from harness.report.verifications.check_rows import places
from harness.report.verifications.failures import name_of

VERIFY = "pytest verifications/"


def page(
    verify: list[Row] | None,
    bench: list[Row] | None,
    earlier: Earlier = NONE_EARLIER,
    notes: Sequence[str] = (),
) -> str:
    """Return the whole page, from the records of a verification run and of a benchmark run; either may be None.

    `earlier` are runs of the same subject that the page compares them with; `notes` say which records were left out.
    """
    verify_run, bench_run = (RunRecords.of(records) if records else None for records in (verify, bench))
    drawn = plots(verify_run, bench_run)
    first, *rest = head(verify_run, bench_run, drawn)
    named = [line for note in notes for line in ("", f"> {escape(note)}")]
    return as_markdown([first, *named, *rest, *body(verify_run, bench_run, drawn, earlier)])


def as_markdown(blocks: Iterable[str]) -> str:
    """Return the Markdown of a page's blocks."""
    # A block that only the HTML page shows is empty.
    return "\n".join(each for each in blocks if each or type(each) is str).rstrip() + "\n"


def body(
    verify: RunRecords | None, bench: RunRecords | None, drawn: list[Plot], earlier: Earlier = NONE_EARLIER
) -> Iterator[str]:
    """Yield the blocks of the page below its head, see `blocks`."""
    if verify:
        yield from verdicts.sections(verify, drawn)
    else:
        yield from ("## Verdict", "", *missing("No suite has judged the GPT in this run", VERIFY))
    yield from comparisons.sections(bench, drawn)
    yield from history.sections(verify, bench, earlier)
    if verify:
        yield from verdicts.slowest(verify)
    yield from environment(verify, bench)


def plots(verify: RunRecords | None, bench: RunRecords | None) -> list[Plot]:
    """Return every plot that the records have data for, in the order of the page."""
    possible = []
    if verify:
        possible = [diagnosis.plot(verify), activations.plot(verify), parity.plot(verify), ranks.plot(verify)]
    verified = [plot for plot in possible if plot]
    if not bench:
        return verified
    own = (scaling, latency, serving, speculation, ratios)
    timed = [plot for kind in own for plot in kind.plots(bench)]
    order = list(by_comparison(bench))
    drawn = [*roofline.plots(bench), *sorted(timed, key=lambda plot: order.index(plot.section))]
    if not false_alarms.FalseAlarms.of(bench).evidence:  # a plot may be shown without its page
        drawn = [replace(plot, warning="NOT EVIDENCE") for plot in drawn]
    return verified + drawn


def head(verify: RunRecords | None, bench: RunRecords | None, drawn: list[Plot]) -> Iterator[str]:
    """Yield the title, the verdict, when and where the runs were made, and a line for each plot."""
    run = verify or bench
    yield from (f"# Report on {escape(run.subject, 120) if run else 'nothing'}", "")
    if verify:
        yield from (f"**{verdict_sentence(verify)}**", "")
        for subject, text in as_mapping((verify.footer or {}).get("excepted")).items():
            yield from (f"{code(subject)} is {prose(text)}", "")
    if bench and bench.comparisons:
        yield from false_alarms.warning(bench)
    for made, did in ((verify, "Verified"), (bench, "Benchmarked")):
        if made:
            yield from (f"- {line}" for line in run_summary(made, did))
    if bench and bench.comparisons:
        yield from (f"- {line}" for line in comparisons.summary(bench))
    if run:
        yield from (f"- {escape(provenance(run))}", "")
    compared = by_comparison(bench)
    shown = [plot for plot in drawn if plot.section not in compared]
    if shown:
        yield from ("What the figures show:", "")
        yield from (f"- {escape(plot.headline)} ([figure](#{plot_anchor(plot)}))" for plot in shown)
        yield ""
    if compared:
        yield from (f"The results of {plural(len(compared), 'topic')} are under [Benchmarks](#benchmarks).", "")


def verdict_sentence(run: RunRecords) -> str:
    """Return the outcome of a run in one sentence, which claims no more than was judged."""
    counts, total = run.counts, len(run.checks)
    judged, bad = total - counts["skip"], counts["fail"] + counts["error"]
    if run.interrupted:
        outcome = f"{bad} of them did not pass." if bad else "All that were judged pass." if judged else ""
        return f"Interrupted: {plural(total, 'check')} {was_or_were(total)} recorded. {outcome}".strip()
    if not judged:
        return "Nothing was judged: " + ("every check was skipped." if total else "no check was recorded.")
    if not bad and counts["declared"]:
        return f"{counts['pass']} of {judged:,} checks pass, and {counts['declared']} fail as declared."
    if not bad:
        every = f"All {judged:,} checks that were judged pass" if judged > 1 else "The one check that was judged passes"
        skipped = counts["skip"]
        return f"{every}; {skipped} {was_or_were(skipped)} skipped." if skipped else f"{every}."
    parts = []
    if counts["fail"]:
        parts.append(f"{counts['fail']} of {judged:,} checks {'fails' if counts['fail'] == 1 else 'fail'}")
    if counts["error"]:
        parts.append(f"{counts['error']} of {judged:,} broke before a verdict")
    first = run.of_verdict("fail", "error")[0]
    where = f", at {escape(places(first)[0], 80)}" if places(first) else ""
    return f"{' and '.join(parts)}. First: {escape(name_of(first))}{where}."


def was_or_were(number: int) -> str:
    """Return the verb for `number` things."""
    return "was" if number == 1 else "were"


def run_summary(run: RunRecords, did: str) -> Iterator[str]:
    """Yield when a run was made, how long it took, its tally, and what is missing if it is incomplete."""
    footer = run.footer or {}
    line = f"{did} {formatting.date(run.header.get('started'))}"
    if as_float(footer.get("wall_seconds")):
        line += f" in {formatting.duration(footer['wall_seconds'])}"
    if as_float(footer.get("peak_memory_bytes")):
        line += f", peak memory {formatting.memory(footer['peak_memory_bytes'])}"
    tally = [f"{counted} {kind}" for kind, counted in run.counts.items() if counted]
    if run.comparisons:
        tally.append(setup.tally(run))
    yield f"{line}: {', '.join(tally)}." if tally else f"{line}."
    left_out = deselected(run)
    if left_out:
        arguments = run.header.get("arguments")
        command = code(shlex.join(["pytest", *map(str, arguments)])) if isinstance(arguments, list) else "its options"
        yield f"This was a selection: {plural(left_out, 'check')} {was_or_were(left_out)} left out by {command}."
    if run.interrupted and not run.checks:
        recorded = len(run.comparisons)
        yield f"Interrupted: {plural(recorded, 'comparison')} {was_or_were(recorded)} recorded."


def deselected(run: RunRecords) -> int:
    """Return how many items the options of the run left out, as far as its records say."""
    counts = {**run.header, **(run.footer or {})}
    if isinstance(counts.get("deselected"), int):
        return int(counts["deselected"])
    collected, selected = counts.get("collected"), counts.get("selected")
    return collected - selected if isinstance(collected, int) and isinstance(selected, int) else 0


def environment(verify: RunRecords | None, bench: RunRecords | None) -> Iterator[str]:
    """Yield the table of the machine and versions, with a column for each run if they differ."""
    columns = {name: environment_facts(run) for name, run in (("verification", verify), ("benchmark", bench)) if run}
    if not columns:
        return
    facts = list(columns.values())
    if len(facts) == 2 and facts[0] == facts[1]:
        columns = {"both runs": facts[0]}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[escape(key), *(escape(column.get(key, "")) for column in columns.values())] for key in keys]
    yield from ("## Environment", "")
    yield from table(["what", *columns], rows)
    yield from ("This page was made from the records alone; `gpt-harness report` makes it again.", "")


def environment_facts(run: RunRecords) -> dict[str, str]:
    """Return the environment as text, by what each row is called."""
    found = run.environment
    keys = ("cpu", "gpu", "cores", "threads", "platform", "python")
    facts = {key: number(found[key]) for key in keys if found.get(key) is not None}
    if as_float(found.get("memory_gib")):
        facts["memory"] = f"{found['memory_gib']} GiB"
    packages = {**{name: found.get(name) for name in ("torch", "transformers")}, **as_mapping(found.get("packages"))}
    facts |= {str(name): str(version) for name, version in packages.items() if version}
    return facts | {"commit": (commit(found) or "unknown").removeprefix("commit ")}
