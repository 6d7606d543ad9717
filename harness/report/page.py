"""The page that a person reads: the verdict first, then what failed, what was measured, and on which machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.report import tables, wording
from harness.report.benchmarks import comparisons, latency, ratios, roofline, scaling
from harness.report.figure import Plot
from harness.report.markdown import anchor, code, escape, missing, prose, table
from harness.report.run import Row, Run, commit, machine, plural
from harness.report.tables import as_mapping
from harness.report.verifications import activation, diagnosis, parity, verdicts
from harness.report.wording import as_float, number

VERIFY = "pytest verifications/"


def page(verify: list[Row] | None, bench: list[Row] | None) -> str:
    """The whole page, from the records of a verification run and of a benchmark run; either may be None."""
    judged, timed = (Run.of(records) if records else None for records in (verify, bench))
    found = plots(judged, timed)
    sections = [*opening(judged, timed, found)]
    if judged:
        sections += [*verdicts.sections(judged, found)]
    else:
        sections += ["## Verdict", "", *missing("No verifications ran yet", VERIFY)]
    sections += [*comparisons.sections(timed, found)]
    if judged:
        sections += [*verdicts.slowest(judged)]
    return "\n".join([*sections, *environment(judged, timed)]).rstrip() + "\n"


def plots(verify: Run | None, bench: Run | None) -> list[Plot]:
    """Every figure that the records have data for, in the order of the page."""
    judged = [diagnosis.plot(verify), activation.plot(verify), parity.plot(verify)] if verify else []
    if not bench:
        return [plot for plot in judged if plot]
    timed = scaling.plots(bench) + latency.plots(bench) + ratios.plots(bench)
    order = list(tables.by_comparison(bench))
    drawn = [*roofline.plots(bench), *sorted(timed, key=lambda plot: order.index(plot.section))]
    if not comparisons.FalseAlarms.of(bench).evidence:  # a figure is shown without its page, too
        drawn = [replace(plot, stamp="NOT EVIDENCE") for plot in drawn]
    return [plot for plot in judged if plot] + drawn


def opening(verify: Run | None, bench: Run | None, found: list[Plot]) -> Iterator[str]:
    """Title, verdict, when and where, and what the figures say in a line each."""
    run = verify or bench
    yield from (f"# Report on {escape(run.subject, 120) if run else 'nothing'}", "")
    if verify:
        yield from (f"**{verdict(verify)}**", "")
        for subject, told in as_mapping((verify.footer or {}).get("excepted")).items():
            yield from (f"{code(subject)} is {prose(told)}", "")
    if bench and bench.comparisons:
        yield from comparisons.stamp(bench)
    for made, did in ((verify, "Verified"), (bench, "Benchmarked")):
        if made:
            yield from (f"- {line}" for line in account(made, did))
    if bench and bench.comparisons:
        yield from (f"- {line}" for line in comparisons.summary(bench))
    if run:
        yield from (f"- {escape(machine(run))}", "")
    compared = tables.by_comparison(bench)
    shown = [plot for plot in found if plot.section not in compared]
    if shown:
        yield from ("What the figures show:", "")
        yield from (f"- {escape(plot.finding)} ([figure](#{anchor(plot)}))" for plot in shown)
        yield ""
    if compared:
        yield from (f"What {plural(len(compared), 'comparison')} found: [benchmarks](#benchmarks).", "")


def verdict(run: Run) -> str:
    """The run in one sentence, which claims no more than was judged."""
    counts, total = run.counts, len(run.checks)
    judged, bad = total - counts["skip"], counts["fail"] + counts["error"]
    if run.interrupted:
        outcome = f"{bad} of them did not pass." if bad else "All that were judged pass." if judged else ""
        return f"Interrupted: {plural(total, 'check')} {were(total)} recorded. {outcome}".strip()
    if not judged:
        return "Nothing was judged: " + ("every check was skipped." if total else "no check was recorded.")
    if not bad and counts["declared"]:
        return f"{counts['pass']} of {judged:,} checks pass, and {counts['declared']} fail as declared."
    if not bad:
        every = f"All {judged:,} checks that were judged pass" if judged > 1 else "The one check that was judged passes"
        return f"{every}; {counts['skip']} {were(counts['skip'])} skipped." if counts["skip"] else f"{every}."
    parts = []
    if counts["fail"]:
        parts.append(f"{counts['fail']} of {judged:,} checks {'fails' if counts['fail'] == 1 else 'fail'}")
    if counts["error"]:
        parts.append(f"{counts['error']} of {judged:,} broke before a verdict")
    first = run.of_verdict("fail", "error")[0]
    where = f", at {escape(tables.places(first)[0], 80)}" if tables.places(first) else ""
    return f"{' and '.join(parts)}. First: {escape(verdicts.name(first))}{where}."


def were(number: int) -> str:
    """The verb for so many things."""
    return "was" if number == 1 else "were"


def account(run: Run, did: str) -> Iterator[str]:
    """When a run was made, how long it took, what came of it, and whether it was whole."""
    footer = run.footer or {}
    line = f"{did} {wording.date(run.header.get('started'))}"
    if as_float(footer.get("wall_seconds")):
        line += f" in {wording.duration(footer['wall_seconds'])}"
    if as_float(footer.get("peak_memory_bytes")):
        line += f", {wording.memory(footer['peak_memory_bytes'])} at the peak"
    tally = [f"{counted} {kind}" for kind, counted in run.counts.items() if counted]
    if run.comparisons:
        tally.append(str(plural(len(run.comparisons), "comparison")))
    yield f"{line}: {', '.join(tally)}." if tally else f"{line}."
    left_out = deselected(run)
    if left_out:
        arguments = run.header.get("arguments")
        asked = code("pytest " + " ".join(map(str, arguments))) if isinstance(arguments, list) else "its options"
        yield f"This was a selection: {plural(left_out, 'check')} {were(left_out)} left out by {asked}."
    if run.interrupted and not run.checks:
        recorded = len(run.comparisons)
        yield f"Interrupted: {plural(recorded, 'comparison')} {were(recorded)} recorded."


def deselected(run: Run) -> int:
    """How many items the run's options left out, as far as its records say."""
    told = {**run.header, **(run.footer or {})}
    if isinstance(told.get("deselected"), int):
        return int(told["deselected"])
    collected, selected = told.get("collected"), told.get("selected")
    return collected - selected if isinstance(collected, int) and isinstance(selected, int) else 0


def environment(verify: Run | None, bench: Run | None) -> Iterator[str]:
    """The machine and versions, in one column a run where they differ."""
    told = {name: facts(run) for name, run in (("verification", verify), ("benchmark", bench)) if run}
    if not told:
        return
    columns = list(told.values())
    if len(columns) == 2 and columns[0] == columns[1]:
        told = {"both runs": columns[0]}
    keys = dict.fromkeys(key for column in told.values() for key in column)
    rows = [[escape(key), *(escape(column.get(key, "")) for column in told.values())] for key in keys]
    yield from ("## Environment", "")
    yield from table(["what", *told], rows)
    yield from ("Made from the records of these runs alone; `gpt-harness report` makes it again.", "")


def facts(run: Run) -> dict[str, str]:
    """The environment as words."""
    found = run.environment
    keys = ("cpu", "gpu", "cores", "threads", "platform", "python")
    told = {key: number(found[key]) for key in keys if found.get(key) is not None}
    if as_float(found.get("memory_gib")):
        told["memory"] = f"{found['memory_gib']} GiB"
    packages = {**{name: found.get(name) for name in ("torch", "transformers")}, **as_mapping(found.get("packages"))}
    told |= {str(name): str(version) for name, version in packages.items() if version}
    return told | {"commit": (commit(found) or "unknown").removeprefix("commit ")}
