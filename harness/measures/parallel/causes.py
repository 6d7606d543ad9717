"""What ranks compute instead: the known mistakes, computed in one process and compared with what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.parallel.global_batch import ACCUMULATED, IGNORED, PLAIN, global_batches
from harness.measures.parallel.rank_model import build
from harness.measures.parallel.session import Session
from harness.oracle.noise_verdict import relative_distance
from harness.oracle.probe_weights import state
from harness.subjects.ranks.program import TENSOR
from harness.subjects.ranks.wrapped import gradient_parts

SAME = 1e-9  # relative, in float64: rounding is some 1e-15, and the mistakes are of order 1

Found = Mapping[str, Sequence[Tensor]]
Exact = Mapping[str, Tensor]


def explain(ranks: Session, compare: str, case: str, found: Found, exact: Exact, wrong: Sequence[str]) -> str:
    """Return what the values at the wrong places are instead, as a sentence; "" if no known mistake gives them."""
    if any(torch.isnan(tensor).any() for name in wrong for tensor in found[name]):
        return f"{wrong[0]}: some of it is on no rank, or is not a number"
    if compare == "gradients":
        return _gradients(ranks, case, found, exact, wrong)
    if compare == "logits":
        return _logits(ranks, found, wrong)
    if compare in ("norm", "clipped"):
        return _norm(ranks, compare, case, found, exact, wrong)
    if compare == "loss":
        return _loss(found, exact)
    return _weights_of_later_steps(ranks, case)


def line_of(ranks: Session, compare: str, case: str) -> tuple[str, int] | None:
    """Return the file and line of the program's function that computes it."""
    role = "clip" if compare in ("norm", "clipped") else "gradients" if case == ACCUMULATED else ranks.kind
    function = ranks.subject.parallel_program.functions.get(role)
    return function.line if function else None


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(relative_distance(a.double(), b.double()) <= SAME for a, b in zip(found, expected, strict=True))


def _gradients(ranks: Session, case: str, found: Found, exact: Exact, wrong: Sequence[str]) -> str:
    n, whole = ranks.ranks, len(wrong) == len(exact)
    which = "every gradient" if whole else f"the gradient of {wrong[0]}{' and others' if len(wrong) > 1 else ''}"
    if ranks.kind == TENSOR:
        return _tensor_gradients(found, exact, wrong, n, which)
    if case == ACCUMULATED and not _first_step_is_right(ranks, PLAIN, "gradients"):
        return ""  # it follows from the wrapper
    for sentence, expected in _candidates(ranks, case):
        if all(_equal(found[name], [view[name] for view in expected]) for name in wrong):
            return f"{which} {sentence}"
    return ""


def _tensor_gradients(found: Found, exact: Exact, wrong: Sequence[str], n: int, which: str) -> str:
    """Return what the gradients of tensor parallel ranks are instead, by what each rank has of whole ones."""
    if any(not _equal(found[name], [found[name][0]] * n) for name in wrong):
        return (
            f"{which} is another on each rank: parts of a gradient are not summed over the ranks in the backward pass"
        )
    last = wrong[-1]  # the backward pass comes from there, so that nothing else has changed it
    if _equal(found[last], [exact[last] * n] * n):
        return f"{which} is wrong from {last} on, which is {n} times the right one: a sum too many in the backward pass"
    return ""


def _candidates(ranks: Session, case: str) -> Iterator[tuple[str, list[dict[str, Tensor]]]]:
    """Yield each known mistake as a sentence, with the gradients that every rank then has."""
    means, counts = _means(ranks, case)  # by rank, then by micro-batch
    n, micro = ranks.ranks, len(means[0])
    total = sum(map(sum, counts))
    pairs = [(r, m) for r in range(n) for m in range(micro)]

    def weighted(weight: Callable[[int, int], float], of: Sequence[tuple[int, int]] = pairs) -> dict[str, Tensor]:
        return {name: sum(means[r][m][name] * weight(r, m) for r, m in of) for name in means[0][0]}  # type: ignore[misc]

    def everywhere(gradient: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [gradient] * n

    def own(weight: Callable[[int, int], float]) -> list[dict[str, Tensor]]:
        return [weighted(weight, [(r, m) for m in range(micro)]) for r in range(n)]

    exact = weighted(lambda r, m: counts[r][m] / total)
    if case == PLAIN:
        yield f"is {n} times the mean: summed over the ranks, not averaged", everywhere(_times(exact, n))
        yield f"is 1/{n} of the mean: divided twice by the number of ranks", everywhere(_times(exact, 1 / n))
    for text, weight in _weights(counts, n, micro, total):
        yield f"is that of each rank's own batch{text}: not summed over the ranks", own(weight)
    yield (
        "is the mean of the ranks' and micro-batches' means, not the mean over all targets",
        everywhere(weighted(lambda r, m: 1 / (n * micro))),
    )
    yield (
        "is the mean of the ranks' means, not the mean over all targets",
        everywhere(weighted(lambda r, m: counts[r][m] / sum(counts[r]) / n)),
    )
    yield (
        "is the mean of the micro-batches' means, not the mean over all targets",
        everywhere(weighted(lambda r, m: counts[r][m] / sum(counts[k][m] for k in range(n)) / micro)),
    )
    for text, weight in _weights(counts, n, micro, total):
        yield (
            f"is the sum over the micro-batches{text}, not divided by their number",
            everywhere(
                weighted(lambda r, m, weight=weight: weight(r, m) * micro / n)  # type: ignore[misc]
            ),
        )
        last = weighted(lambda r, m, weight=weight: weight(r, m) / n, [(r, micro - 1) for r in range(n)])  # type: ignore[misc]
        yield f"is of the last micro-batch alone{text}", everywhere(last)
        yield (
            f"has only the last micro-batch averaged over the ranks{text}",
            [_sum(last, weighted(weight, [(r, m) for m in range(micro - 1)])) for r in range(n)],
        )


def _weights(
    counts: list[list[int]], n: int, micro: int, total: int
) -> Iterator[tuple[str, Callable[[int, int], float]]]:
    """Yield the ways to weight the micro-batches of a rank whose gradients are then averaged over the ranks."""
    yield "", lambda r, m: counts[r][m] * n / total
    if micro > 1:
        yield ", a mean of means", lambda r, m: 1 / micro
    yield ", the mean over its targets", lambda r, m: counts[r][m] / sum(counts[r])


def _means(ranks: Session, case: str) -> tuple[list[list[dict[str, Tensor]]], list[list[int]]]:
    """Return the gradient of the mean loss, and the number of targets, of each rank's part of each micro-batch."""
    model = build(ranks.subject, ranks.size, "float64")
    means: list[list[dict[str, Tensor]]] = []
    counts: list[list[int]] = []
    for rank in range(ranks.ranks):
        means.append([])
        counts.append([])
        for ids, targets in global_batches(ranks.size, case)[0]:
            own = targets.chunk(ranks.ranks)[rank]
            model.module.zero_grad(set_to_none=True)
            loss = model.loss(ids.chunk(ranks.ranks)[rank], own)
            with model.precision():
                loss.backward()
            means[-1].append(dict(zip(ranks.shapes, gradient_parts(model.module), strict=True)))
            counts[-1].append(int((own != IGNORED).sum()))
    return means, counts


def _logits(ranks: Session, found: Found, wrong: Sequence[str]) -> str:
    if ranks.kind != TENSOR:
        return "each rank's logits are not those of its rows"
    whole = [found[name][0] for name in found]
    if not _equal(whole[1:], [whole[0]] * (len(whole) - 1)):
        return "the ranks' logits differ from one another: partial results are not summed over the ranks"
    ((ids, _),) = global_batches(ranks.size, PLAIN)[0]
    for sentence, published in _tensor_mistakes(ranks.size, ranks.ranks):
        model = build(ranks.subject, ranks.size, "float64").load(published)
        with torch.no_grad():
            if _equal(whole[:1], [model.logits(ids)]):
                return sentence
    return ""


def _tensor_mistakes(size: str, n: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each known mistake as the weights with which one process has the same logits."""
    right = state(size, "probe")
    biases = [name for name in right if name.endswith("c_proj.bias")]
    for part in (".attn.", ".mlp.", "."):
        changed = {name: right[name] * n for name in biases if part in name}
        where = {".attn.": " of the attention", ".mlp.": " of the MLP"}.get(part, "")
        yield f"the bias after the sum over the ranks{where} is added on each of {n} ranks", {**right, **changed}
    for part in (".attn.", ".mlp.", "."):
        changed = {name: right[name] * 0 for name in biases if part in name}
        where = {".attn.": " of the attention", ".mlp.": " of the MLP"}.get(part, "")
        yield f"the bias after the sum over the ranks{where} is left out", {**right, **changed}
    C = SIZES[size].width
    by_rank = torch.arange(3 * C).view(n, 3, C // n)  # what each rank takes for its queries, keys and values
    order = by_rank.transpose(0, 1).reshape(3 * C)  # (n, 3, C / n) -> (3, n, C / n)
    fused = [name for name in right if ".attn.c_attn." in name]
    split = {name: right[name][..., order] for name in fused}
    yield (
        "the fused projection is split in a row, not by heads: a rank takes queries for keys, and keys for values",
        {**right, **split},
    )


def _norm(ranks: Session, compare: str, case: str, found: Found, exact: Exact, wrong: Sequence[str]) -> str:
    """Return which norm was used instead of the global one, if it is that of the right gradient."""
    if not _first_step_is_right(ranks, case, "gradients"):
        return ""
    if compare == "clipped":
        whole = dict(zip(ranks.shapes, ranks.one_process(case, "float64")["gradients"], strict=True))
        if all(_equal(found[name], [whole[name]] * ranks.ranks) for name in wrong):
            if len(wrong) == len(exact):
                return "no gradient is clipped: they are as long as before"
            return f"not all gradients are clipped: that of {wrong[0]} is as long as before"
        return ""
    own = _norms_of_parts(ranks, case)
    steps = list(found[wrong[0]])
    if _equal(steps, own):
        return "the norm is that of each rank's own parts, not of the whole gradient"
    n = ranks.ranks
    for factor, text in ((n**0.5, f"√{n}"), (n**-0.5, f"1/√{n}"), (n, f"{n}"), (1 / n, f"1/{n}")):
        if _equal(steps, [exact[wrong[0]] * factor] * n):
            return f"the norm is {text} times that of the whole gradient"
    squares = sum(float(each) ** 2 for each in own) ** 0.5
    if _equal(steps, [torch.tensor(squares, dtype=torch.float64)] * n):
        return "the norm counts a gradient that every rank has once for each rank"
    return ""


def _weights_of_later_steps(ranks: Session, case: str) -> str:
    key = "clipped" if "clipped" in ranks.answers(case)[0]["float64"]["steps"][0] else "gradients"
    right = _first_step_is_right(ranks, case, key)
    return "the first step's gradients are right, so a later step is not like the first" if right else ""


def _first_step_is_right(ranks: Session, case: str, key: str) -> bool:
    """Return True if the ranks' gradients of the first step are those of one process."""
    views = ranks.whole([answer["float64"]["steps"][0][key] for answer in ranks.answers(case)])
    one = ranks.one_process(case, "float64")
    return key in one and all(
        _equal([view[name] for view in views], [exact] * ranks.ranks)
        for name, exact in zip(ranks.shapes, one[key], strict=True)
    )


def _norms_of_parts(ranks: Session, case: str) -> list[Tensor]:
    """Return the norm of what each rank has of the gradient of the first step."""
    given = [answer["float64"]["steps"][0]["gradients"] for answer in ranks.answers(case)]
    return [torch.stack([part.square().sum() for part in own]).sum().sqrt() for own in given]


def _loss(found: Found, exact: Exact) -> str:
    first = next(iter(found))
    values = [float(each) for each in found[first]]
    if len(set(values)) > 1:
        return f"each rank returns a loss of its own: {', '.join(f'{value:.4f}' for value in values)}"
    return f"the ranks return {values[0]:.6f}, and the mean over all targets is {float(exact[first]):.6f}"


def _times(gradient: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: each * factor for name, each in gradient.items()}


def _sum(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each + other[name] for name, each in one.items()}
