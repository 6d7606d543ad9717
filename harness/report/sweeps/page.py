"""The page of a sweep: its fits, its figures, what was run, and how far it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.core.record_files import Row
from harness.report.formatting import date, duration, number
from harness.report.json_values import as_float, as_mapping, mappings
from harness.report.markdown import code, csv_link, embed, escape, prose, table
from harness.report.plot import Plot
from harness.report.sweeps.iso_flop_plot import flops_text, plots
from harness.report.sweeps.summary import count_text
from harness.report.sweeps.sweep_rows import ISO_FLOP, PARAMETRIC, Fit, Sweep

COMMAND = "gpt-harness sweep"
NAMES = {
    "size_exponent": "a of N_opt ~ C^a", "data_exponent": "b of D_opt ~ C^b", "E": "E (nats)", "A": "A", "B": "B",
    "alpha": "α", "beta": "β",
}  # fmt: skip
# The exponent of the loss is another thing in each approach: with a constant E it is that of what is above E.
LOSS = {ISO_FLOP: "γ of L_opt ~ C^-γ", PARAMETRIC: "γ of L_opt - E ~ C^-γ"}


def page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown, from the rows of a record file."""
    sweep = Sweep.of(rows)
    drawn = plots(sweep)
    lines = [*head(sweep, drawn), *entropy(sweep)]
    for plot in drawn:
        lines += embed(plot)
    lines += [*fits(sweep), *what_was_run(sweep)]
    if sweep.header.get("plan"):
        lines += reach()
    lines += ["## Data", "", f"- {csv_link('sweep-runs')}: a run; {code(f'{COMMAND} --fit FILE.csv')} reads it", ""]
    lines += [f"- {csv_link('sweep-fits')}: a fitted value with its interval", ""]
    return "\n".join(lines).rstrip() + "\n"


def head(sweep: Sweep, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the title, what was done and the results in one line each."""
    yield from ("# Scaling laws of a sweep", "")
    about = sweep.header.get("about")
    if about:
        yield from (prose(about), "")
    if name := sweep.header.get("table"):
        yield from (f"Fitted to the table {code(name)}; nothing was trained.", "")
    planned = as_float(sweep.header.get("planned")) or len(sweep.runs)
    took = duration(as_float(sweep.footer.get("wall_seconds")))
    trained = sum(as_float(run.get("seconds")) or 0.0 for run in sweep.runs)
    yield f"- Made {date(sweep.header.get('started'))}: {len(sweep.runs)} of {planned:.0f} runs" + (
        f", {duration(trained)} of training in all; the last command took {took}." if trained else "."
    )
    yield "- C = 6·N·D, where N counts all parameters, embeddings too, and D the tokens of a run."
    yield "- Intervals are 95%, by a bootstrap of the runs' scatter about each fit."
    yield ""
    for name, why in as_mapping(sweep.footer.get("unfinished")).items():
        yield f"**Not finished:** {code(name)}: {escape(why)}"
        yield ""
    for plot in drawn:
        yield f"- {escape(plot.headline)}"
    if drawn:
        yield ""


def entropy(sweep: Sweep) -> Iterator[str]:
    """Yield what the known entropy of a source says about the fit."""
    for source in sweep.sources:
        fit = sweep.fit(source, PARAMETRIC)
        if fit is None or "E" not in fit.values or (floor := fit.number("floor")) is None:
            continue
        E, known = fit.values["E"], fit.number("entropy") or floor
        inside = "outside, so the law does not describe these runs" if E.excludes(floor) else "inside"
        yield from (
            f"**Proof on a known source.** The entropy of {escape(source)} is {known:.4f} nats; a perfect model has a "
            f"loss of {floor:.4f} on the validation part of its text. The fit knows neither, and finds "
            f"E = {E.text()}: {inside}.",
            "",
        )


def fits(sweep: Sweep) -> Iterator[str]:
    """Yield every fit as a table."""
    yield from ("## Fits", "")
    yield from (
        "Approach 2 takes the minimum of each iso-FLOP curve, approach 3 fits L = E + A/N^α + B/D^β to all runs "
        "(Hoffmann et al. 2022). With N counted without embeddings the budgets stay those of all parameters.",
        "",
    )
    rows = []
    for fit in sweep.fits:
        names = {**NAMES, "loss_exponent": LOSS.get(fit.approach, "γ")}
        if fit.missing:
            rows.append([escape(fit.source), count_text(fit.count), fit.approach, "no fit", escape(fit.missing)])
        rows += [
            [escape(fit.source), count_text(fit.count), fit.approach, names[name], fit.values[name].text(4)]
            for name in names
            if name in fit.values
        ]
    yield from table(["source", "N", "approach", "value", "fitted [95%]"], rows)
    yield from scatter(sweep.fits)


def scatter(found: Sequence[Fit]) -> Iterator[str]:
    """Yield how far runs are from the law, beside how far seeds are from each other."""
    for fit in found:
        about, seeds = fit.number("scatter"), fit.number("seed_scatter")
        if about is not None and seeds is not None and fit.count == "all":
            says = "the law misses them by more than chance" if about > 2 * seeds else "chance explains it"
            yield (
                f"- {escape(fit.source)}: runs scatter about the law by {about:.2%} of the loss, seeds about each "
                f"other by {seeds:.2%}: {says}."
            )
    yield ""


def what_was_run(sweep: Sweep) -> Iterator[str]:
    """Yield a row for each budget of each source, and what is known of the sources."""
    yield from ("## What was run", "")
    cells: dict[tuple[str, float], list[Row]] = {}
    for run in sweep.runs:
        cells.setdefault((str(run.get("source")), as_float(run.get("budget") or run.get("flops")) or 0.0), []).append(
            run
        )
    rows = []
    if len(cells) <= 24:
        for (source, flops), runs in cells.items():
            sizes = sorted(value for run in runs if (value := as_float(run.get("parameters"))) is not None)
            tokens = sorted(value for run in runs if (value := as_float(run.get("tokens"))) is not None)
            epochs = [
                t / n for run in runs if (t := as_float(run.get("tokens"))) and (n := as_float(run.get("train_tokens")))
            ]
            model = [value / flops for run in runs if (value := as_float(run.get("model_flops"))) and flops]
            rows.append([
                escape(source), flops_text(flops) if flops else "", str(len(runs)), ends(sizes), ends(tokens),
                f"{max(epochs):.1f}" if epochs else "", f"{min(model):.2f} to {max(model):.2f}" if model else "",
            ])  # fmt: skip
    heads = ["budget", "runs", "parameters", "tokens", "most epochs", "FLOPs with attention / 6ND"]
    yield from table(["source", *heads], rows, right=heads)
    for known in mappings(sweep.header.get("sources")):
        vocabulary = as_float(known.get("vocabulary_size"))
        kinds = f" of {vocabulary:.0f} kinds" if vocabulary else ""
        yield f"- {escape(known.get('name'))}: {number(known.get('characters'))} characters{kinds}."
    for run in sweep.without_loss[:10]:
        yield f"- Not fitted: {code(run.get('name') or '')}: {escape(run.get('why') or 'it has no loss')}."
    yield ""


def ends(values: Sequence[float]) -> str:
    """Return the least and the most of values: `2,760 to 21,408`."""
    return f"{values[0]:,.0f} to {values[-1]:,.0f}" if values else ""


def reach() -> Iterator[str]:
    """Yield what such a sweep cannot say."""
    yield from ("## How far this reaches", "")
    yield from (
        "The exponents are those of these models, texts and budgets. The lessons' 1/2 and 0.05 are of models a "
        "thousand to a million times as large, on text without end, over more decades. At this size the "
        "vocabulary is a large part of a small model, the batch is the same for all, the rate follows a rule "
        "instead of a search for each cell, and a text of a million characters is read several times by the "
        "smallest models. The exponent of L_opt itself depends on how near E the losses are: where E is most of "
        "the loss, it is small, whatever the law.",
        "",
    )
