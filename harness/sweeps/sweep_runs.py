"""The runs of a plan: each cell as settings of the trainer, with its parameters, tokens and FLOPs by closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench.costs import block_matrices, model_flops
from harness.core.errors import HarnessError
from harness.core.sizes import Size
from harness.lessons.lesson_file import LessonRun
from harness.lessons.run_folder import RunFolder, fingerprint
from harness.oracle.closed_forms import parameter_count
from harness.oracle.scaling_law.law import compute
from harness.sweeps.plan_file import Budget, Source, SweepPlan
from harness.sweeps.sources import SourceText, validation_fraction

RUNS = "sweeps"  # the folder of the runs, in that of the reports
WARMUP = 0.05  # of the steps, as the lessons have it
FINAL_RATE = 0.1  # of the highest one, at the end of a run's own schedule
FEWEST_STEPS = 20  # below this a run has hardly left its warm-up
LOGGED = 100  # lines of a run's log, so that a run of many steps has no log of megabytes
SETTINGS: Mapping[str, Any] = {
    "vocabulary": "characters", "order": "epoch", "schedule": "cosine", "precision": "float32", "device": "cpu",
    "weight_decay": 0.0, "eval_every": 0, "eval_batches": 0, "sample_every": 0, "save_every": 1000, "keep": 1,
    "spike_factor": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class SweepRun:
    """One cell of a sweep with a seed: what is trained, and what it costs.

    `parameters` counts all of them, as Hoffmann et al. do; `non_embedding` leaves the embeddings out, and with them the
    head, which is tied (Kaplan et al. 2020). `flops` is 6·N·D with all parameters and the tokens of whole steps;
    `model_flops` also counts attention and leaves out the lookup of positions.
    """

    source: str
    budget: float
    width: int
    seed: int
    parameters: int
    non_embedding: int
    tokens: int
    flops: float
    model_flops: float
    folder: RunFolder
    text: Path

    @property
    def name(self) -> str:
        """The name of the run and of its folder: `markov-1e11-width-16-seed-0`."""
        return self.folder.run.name


def model_size(plan: SweepPlan, source: Source, width: int, vocabulary_size: int) -> Size:
    """Return the size of the models of a width."""
    return Size(f"width {width}", vocabulary_size, source.context, plan.layers, plan.heads, width)


def sweep_runs(
    plan: SweepPlan, texts: Mapping[str, SourceText], parent: Path, *, device: str = "cpu"
) -> list[SweepRun]:
    """Return every run of a plan, with its folder below `parent`.

    Raises HarnessError for a cell that cannot be trained: heads that do not divide the width, a batch that is no number
    of windows, or a budget that buys too few steps.
    """
    return [
        _run(plan, source, texts[source.name], budget, width, seed, parent, device)
        for source in plan.sources
        for budget in source.budgets
        for width in budget.widths
        for seed in plan.seeds
    ]


def _run(
    plan: SweepPlan, source: Source, text: SourceText, budget: Budget, width: int, seed: int, parent: Path, device: str
) -> SweepRun:
    size = model_size(plan, source, width, text.vocabulary_size)
    if width % plan.heads or plan.tokens_per_step % source.context:
        raise HarnessError(
            f"width {width} of the sweep '{plan.name}' has {plan.heads} heads, a step {plan.tokens_per_step} tokens "
            f"in windows of {source.context}; expected whole numbers of channels a head and of windows a step"
        )
    parameters = parameter_count(size)
    steps = round(budget.flops / compute(parameters, plan.tokens_per_step))
    if steps < FEWEST_STEPS:
        raise HarnessError(
            f"a budget of {budget.flops:g} FLOPs buys {steps} steps of width {width} in the sweep '{plan.name}'; "
            f"expected at least {FEWEST_STEPS}: leave the width out there, or lower tokens_per_step"
        )
    rate = plan.rate_times_width / width
    settings = {
        **SETTINGS, **plan.settings, "device": device,
        "n_layer": plan.layers, "n_head": plan.heads, "n_embd": width, "block_size": source.context,
        "batch_size": plan.tokens_per_step // source.context, "steps": steps,
        "lr": rate, "min_lr": FINAL_RATE * rate, "warmup": max(1, round(WARMUP * steps)),
        "validation_fraction": validation_fraction(text.characters, plan.validation_tokens),
        "log_every": max(1, steps // LOGGED),
    }  # fmt: skip
    arm = f"{budget.flops:g}-width-{width}".replace("+", "")
    run = LessonRun(source.name, arm, seed, settings, budget.seconds)
    tokens = steps * plan.tokens_per_step
    return SweepRun(
        source=source.name, budget=budget.flops, width=width, seed=seed, parameters=parameters,
        non_embedding=block_matrices(size) + (13 * size.layers + 2) * width, tokens=tokens,
        flops=compute(parameters, tokens), model_flops=model_flops(size, tokens=source.context) * tokens,
        folder=RunFolder(parent, run, fingerprint(run, {**settings, "text": text.digest})), text=text.path,
    )  # fmt: skip


def sweep_rows(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """Return a row for each finished run: what it is, what it cost, and the validation loss at its end.

    A run whose loss was not finite, or whose trainer counts other parameters, has no loss and says why.
    """
    return [_row(run) for run in runs if run.folder.finished]


def _row(run: SweepRun) -> dict[str, Any]:
    row = run.folder.row()
    last = next((loss for step, loss in reversed(row["validation"]) if step == row["settings"]["steps"]), None)
    why = "" if last is not None else f"it has no validation at its end ({row['ended'] or 'killed'})"
    if row["parameters"] != run.parameters:
        last, why = None, f"the trainer counts {row['parameters']} parameters, the closed form {run.parameters}"
    kept = ("tokens_per_step", "train_tokens", "vocabulary_size", "tokens_per_second", "seconds", "ended", "made")
    return {
        "kind": "run", "name": run.name, "source": run.source, "budget": run.budget, "width": run.width,
        "seed": run.seed, "parameters": run.parameters, "non_embedding": run.non_embedding, "tokens": run.tokens,
        "flops": run.flops, "model_flops": run.model_flops, "lr": row["settings"]["lr"],
        "steps": row["settings"]["steps"], "loss": last, "why": why,
        **{key: row[key] for key in kept},
    }  # fmt: skip
