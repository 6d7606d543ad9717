"""The backward pass explained: where gradients stop, or are scaled, in a model whose forward pass is understood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import ModuleCreationSites, OperationRecorder, SourceLine
from harness.oracle.formula import OPERATIONS, At, Formula, Operation, Replacement, place
from harness.subjects.model import Model
from harness.subjects.weight_map import family

HEAD = "lm_head.weight"
SAME = 1e-8  # relative to the gradient's largest value
SUM = "the embeddings' sum"
# What each operation reads, in words, for a sentence about where the gradient stops.
INPUTS: dict[str, tuple[str, ...]] = {
    "embedding": ("the token embeddings", "the position embeddings"),
    "residual.attn": ("the skip around attention", "the attention branch"),
    "residual.mlp": ("the skip around the MLP", "the MLP branch"),
    "attn.scores": ("the queries", "the keys"),
    "attn.mix": ("the attention weights", "the values"),
    "attn.softmax": ("the scores",),
    "attn.qkv": ("what attention reads",),
    "attn.c_proj": ("the merged heads",),
    "ln_1": ("ln_1's input",),
    "ln_2": ("ln_2's input",),
    "ln_f": ("ln_f's input",),
    "mlp.c_fc": ("what the MLP reads",),
    "mlp.activation": ("the activation's input",),
    "mlp.c_proj": ("the activation's output",),
    "head": ("what the head reads",),
}
FAULTS = {
    "the skip around attention": "residual-detached",
    "the skip around the MLP": "residual-mlp-detached",
    "the attention branch": "attention-without-gradient",
    "the MLP branch": "mlp-without-gradient",
    "the queries": "queries-detached",
    "the keys": "keys-detached",
    "the attention weights": "attn-weights-detached",
    "the values": "values-detached",
    SUM: "embedding-detached",
    "what the head reads": "head-detached",
}


def explain(
    model: Model,
    ids: Tensor,
    targets: Tensor,
    weights: dict[str, Tensor],
    size: Size,
    changes: Sequence[Replacement],
    births: ModuleCreationSites,
) -> list[Finding]:
    """Why the gradients differ from those of the formula with `changes`, which explains the forward pass."""
    model.module.zero_grad(set_to_none=True)
    with OperationRecorder(births) as recorder:
        loss = model.loss(ids, targets)
    loss.backward()
    own = {name: tensor.double() for name, tensor in model.gradients().items()}
    if HEAD in own:  # a head of its own, which is told elsewhere: its gradient is its own as well
        weights = {**weights, HEAD: weights["transformer.wte.weight"]}
        changes = [*changes, Replacement("head", lambda at, x: x @ at.formula.weights[HEAD].mT)]
    right = gradients(size, weights, changes, ids, targets)
    wrong = [name for name in reversed(list(right)) if name in own and not _agree(own[name], right[name])]
    if not wrong:
        return []
    frozen = _frozen(model, own, right, wrong)
    if frozen is not None:
        return [frozen]
    best: tuple[int, str, str, int | None, str] | None = None
    for operation, layer, change, says in _stops(size):
        with_it = gradients(size, weights, [change, *changes], ids, targets)
        left = sum(
            not _agree(own[name], with_it[name]) for name in wrong + [n for n in right if n not in wrong] if name in own
        )
        if left < len(wrong) and (best is None or left < best[0]):
            best = (left, operation, says, layer, change.operation)
            if left == 0:
                break
    line = _detached(recorder)
    first = wrong[0]
    gap = _gap(own[first], right[first])
    differs = f"in backward order the first gradient that differs is {first}'s, by {gap:.1e} of its size"
    if best is not None and best[0] == 0:
        _, operation, says, layer, _ = best
        where = place(operation, layer) if layer is not None or not _of_block(operation) else f"h.*.{operation}"
        fault = FAULTS.get(says, "gradient-stopped")
        evidence = f"{differs}; with the gradient stopped there every gradient agrees"
        return [_finding(where, fault, f"the gradient does not flow through {says}", evidence, line)]
    rows = _rows_without(own[first], right[first])
    if rows and len(wrong) == 1:
        cause = f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))} of {family(first)} learn nothing as an input"
        fault = "embedding-padding-index" if "wte" in first else ""
        return [_finding(_component(first), fault, cause, differs, line)]
    ratio = _ratio(own, right, wrong)
    if ratio is not None:
        cause = f"every gradient that differs is {ratio:.6g} times what it should be"
        return [_finding(_component(first), "gradient-scaled", cause, differs, line)]
    cause = "the forward pass agrees, the backward pass does not"
    if best is not None:
        cause += f"; a gradient stopped at {best[2]} would explain {len(wrong) - best[0]} of {len(wrong)}"
    return [_finding(_component(first), "", cause, differs, line)]


def gradients(
    size: Size, weights: dict[str, Tensor], changes: Sequence[Replacement], ids: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The gradient of the mean cross entropy by every published weight, float64."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    logits = Formula(size, leaves, changes)(ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _stops(size: Size) -> Iterator[tuple[str, int | None, Replacement, str]]:
    """Every place where a gradient can be stopped: in all layers, then in each."""
    layers = [None, *range(size.layers)]
    for layer in layers:
        for operation, inputs in INPUTS.items():
            if not _of_block(operation) and layer is not None:
                continue
            for number, says in enumerate(inputs):
                yield operation, layer, Replacement(operation, _stopped(operation, number), layer), says
    yield "embedding", None, Replacement("embedding", lambda at, token, position: (token + position).detach()), SUM
    head: Operation = lambda at, x: x @ at["wte.weight"].detach().mT  # noqa: E731 - as the formula's table has them
    yield "head", None, Replacement("head", head), "the head's weight, which is the token embedding"
    yield (
        "embedding.token",
        None,
        Replacement("embedding.token", lambda at, ids: at["wte.weight"].detach()[ids]),
        "the token embedding",
    )


def _stopped(operation: str, number: int) -> Operation:
    def function(at: At, *inputs: Any) -> Any:
        return OPERATIONS[operation](at, *(x.detach() if n == number else x for n, x in enumerate(inputs)))

    return function


def _of_block(operation: str) -> bool:
    return operation.startswith(("residual", "attn", "mlp", "ln_1", "ln_2"))


def _frozen(model: Model, own: dict[str, Tensor], right: dict[str, Tensor], wrong: list[str]) -> Finding | None:
    """Parameters that get no gradient while everything else is right: requires_grad is off, or they are not used."""
    if not all(bool((own[name] == 0).all()) for name in wrong):
        return None
    parameters = dict(model.module.named_parameters())
    rows = {row.published: parameters.get(row.own) for row in model.weights.rows}
    off = [name for name in wrong if (p := rows.get(name)) is not None and not p.requires_grad]
    families = ", ".join(dict.fromkeys(family(name) for name in reversed(wrong)))
    cause = f"{families}: requires_grad is off" if off else f"{families}: no gradient arrives"
    evidence = f"the gradient of {len(wrong)} parameter{'s' * (len(wrong) > 1)} is exactly 0; every other one agrees"
    return Finding(
        _component(wrong[0]), "wpe-frozen" if families == "wpe.weight" else "gradient-frozen", cause, evidence
    )


def _rows_without(own: Tensor, right: Tensor) -> list[int]:
    """The few rows of a table whose gradient is another, where all others agree."""
    gap = (own - right).abs().flatten(1).amax(1) if own.ndim > 1 else (own - right).abs()
    rows = (gap > SAME * right.abs().max()).nonzero().flatten().tolist()
    return rows if len(rows) <= 4 else []


def _ratio(own: dict[str, Tensor], right: dict[str, Tensor], wrong: list[str]) -> float | None:
    first = wrong[0]
    size = float((right[first] * right[first]).sum())
    if not size:
        return None
    ratio = float((own[first] * right[first]).sum()) / size
    return ratio if ratio and all(_agree(own[name], ratio * right[name]) for name in wrong) else None


def _detached(recorder: OperationRecorder) -> SourceLine | None:
    """The line of the user's that detaches something."""
    lines = [step.line for step in recorder.steps if step.operation == "detach" and step.line is not None]
    return next(
        (line for line in lines if "detach" in line.text or "no_grad" in line.text or ".data" in line.text), None
    )


def _agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= SAME * max(float(expected.abs().max()), 1e-300)
    )


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-300)


def _component(published: str) -> str:
    return published.removeprefix("transformer.").rpartition(".")[0].replace("attn.c_attn", "attn.qkv")


def _finding(where: str, fault: str, cause: str, evidence: str, line: SourceLine | None) -> Finding:
    return Finding(where, fault, cause, evidence, "" if line is None else str(line), "" if line is None else line.text)
