"""Measures of what the ranks have in common: equal copies, the tie, the start, dropout, and the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.measures.parallel.experiments import DTYPES
from harness.measures.parallel.failures import failed_ranks_are_a_reading
from harness.measures.parallel.parity import Kind
from harness.measures.parallel.rank_model import build
from harness.measures.parallel.session import Session, session
from harness.subjects.protocols import Parallelizes
from harness.suites.measure_registry import Reading, measure


@measure
@failed_ranks_are_a_reading
def ranks_apart(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Count the elements that several ranks have and that differ, bitwise, after the steps of training."""
    ranks = session(subject, kind, size)
    after = {dtype: [answer[dtype]["after"] for answer in ranks.answers(ranks.trained)] for dtype in DTYPES}
    found = {f"{dtype} weights": ranks.apart(parts) for dtype, parts in after.items()}
    return Reading(found, "elements", _said(ranks, "replicas of a weight differ between the ranks", found))


@measure
@failed_ranks_are_a_reading
def ties_after_wrapping(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Count what wrapping does to the parameters: elements with two copies on one rank, and elements on no rank.

    A tied head that is sharded apart from the token embedding has two copies, of which training makes two weights.
    """
    ranks = session(subject, kind, size)
    twice, seen = 0, torch.zeros(ranks.elements + 1, dtype=torch.bool)
    strange = 0
    for own in ranks.layout:
        numbers = torch.cat([part.flatten() for part in own])
        strange += int(((numbers < 0) | (numbers > ranks.elements)).sum())
        numbers = numbers[(numbers > 0) & (numbers <= ranks.elements)]
        twice = max(twice, len(numbers) - len(numbers.unique()))
        seen[numbers] = True
    found = {
        "elements with two copies on a rank": twice,
        "elements on no rank": int((~seen[1:]).sum()),
        "elements of other values": strange,
    }
    return Reading(found, "", _said(ranks, "the tie of head and embedding is broken", {"": twice}))


@measure
@failed_ranks_are_a_reading
def start_of_ranks(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Return whether all ranks start with rank 0's weights if each comes with others, as differently seeded ones do.

    "rank 0's", "each rank's own", or "a mixture".
    """
    ranks = session(subject, kind, size)
    views = ranks.whole([answer["weights"] for answer in ranks.answers("start")])
    values = [{float(v) for tensor in view.values() for v in tensor.unique()} for view in views]
    if all(each == {1.0} for each in values):
        return Reading("rank 0's")
    own = all(each == {1.0 + number} for number, each in enumerate(values))
    text = "each rank's own" if own else "a mixture"
    return Reading(text, "", _said(ranks, f"the weights at the start are {text}", {"": 1}))


@measure
@failed_ranks_are_a_reading
def dropout_is_shared(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Return True if the ranks drop the same elements: the same ids give the same logits with dropout on."""
    ranks = session(subject, kind, size)
    first, *others = ranks.answers("masks")
    same = all(torch.equal(first["logits"], other["logits"]) for other in others)
    seed = ranks.subject.parallel_program.functions["seed"].line
    return Reading(same, "", {"line": list(seed), "hint": f"the same dropout on all ranks: {same}"})


@measure
@failed_ranks_are_a_reading
def rows_of_ranks(subject: Parallelizes, *, size: str, kind: Literal["data", "sharded"] = "data") -> Reading:
    """Count the rows of a global batch that no rank has, and those that several have."""
    ranks = session(subject, kind, size)
    rows = [int(row[0]) // 3 for answer in ranks.answers("share") for row in answer["rows"].view(-1, 3)]
    line = ranks.subject.parallel_program.functions["share"].line
    missing, twice = 8 - len(set(rows)), len(rows) - len(set(rows))
    hint = {"hint": f"the ranks have the rows {rows} of 0 to 7", "line": list(line)} if missing or twice else {}
    return Reading({"rows that no rank has": missing, "rows that two ranks have": twice}, "", hint)


@measure
@failed_ranks_are_a_reading
def full_state_differing(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Count what one process cannot load of the program's full state dict: names, shapes, and tensors of other values.

    A rank that returns no state, as all but rank 0 may, is left out.
    """
    ranks = session(subject, kind, size)
    states = [answer["state"] for answer in ranks.answers("state") if answer["state"]]
    if not states:
        raise MissingAbility(f"{subject.name}'s function returns no state dict on any rank")
    module: nn.Module = build(subject, size, "float64").module
    expected = module.state_dict()
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - {
        name for name, _ in module.named_parameters()
    }
    found = {"names": 0, "shapes": 0, "values": 0}
    for state in states:
        found["names"] += len((set(expected) - tied) - set(state)) + len(set(state) - set(expected))
        common = [name for name in expected if name in state]
        shapes = [name for name in common if state[name].shape != expected[name].shape]
        found["shapes"] += len(shapes)
        found["values"] += sum(not torch.equal(state[n], expected[n]) for n in common if n not in shapes)
    line = list(ranks.subject.parallel_program.functions["state"].line)
    parts = "the tensors are one rank's parts, not whole" if found["shapes"] else "names or values differ"
    hint = {"hint": f"the full state dict is not one process's: {parts}", "line": line} if any(found.values()) else {}
    return Reading(found, "", hint)


@measure
@failed_ranks_are_a_reading
def checkpoint_across_ranks(subject: Parallelizes, *, size: str, kind: Kind, read_by: int) -> Reading:
    """Count the elements that differ after a checkpoint of two ranks is read by another number of ranks, bitwise.

    Of the weights, and of AdamW's first moment if the program's functions take the optimizer.
    """
    ranks = session(subject, kind, size)
    written, read = ranks.answers("save"), ranks.read_by(read_by)
    layout = [list(answer["numbers"]) for answer in read]
    functions = ranks.subject.parallel_program.functions
    moments = all("optimizer" in functions[role].takes.values() for role in ("save", "load"))
    found = {}
    for what in ("weights", "moments") if moments else ("weights",):
        before = ranks.whole([answer[what] for answer in written])[0]
        after = ranks.whole([answer[what] for answer in read], layout)
        found[what] = sum(int((before[n] != view[n]).sum()) for view in after for n in before)
    if not any(found.values()):
        return Reading(found, "elements")
    first = _is_first_part(read, ranks.whole([answer["weights"] for answer in written])[0])
    hint = "some weights on every rank are the first rank's part" if first else f"{read_by} ranks read something else"
    place = next(what for what, count in found.items() if count)
    details = {"hint": hint, "answers": {place: hint}, "line": list(functions["load"].line)}
    return Reading(found, "elements", details)


def _is_first_part(read: list[Mapping[str, Any]], written: Mapping[str, Tensor]) -> bool:
    """Return True if every part that was read wrongly is the one that the first rank should have."""
    flat = torch.cat([torch.zeros(1, dtype=torch.float64), *(each.flatten() for each in written.values())])
    wrong = [
        torch.equal(value.flatten(), flat[first.flatten()])
        for answer in read
        for number, value, first in zip(answer["numbers"], answer["weights"], read[0]["numbers"], strict=True)
        if not torch.equal(value.flatten(), flat[number.flatten()])
    ]
    return bool(wrong) and all(wrong)


def _said(ranks: Session, hint: str, found: dict[str, int]) -> dict[str, object]:
    if not any(found.values()):
        return {}
    return {"hint": hint, "line": list(ranks.subject.parallel_program.functions[ranks.kind].line)}
