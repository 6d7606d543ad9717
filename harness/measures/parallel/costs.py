"""Measures of what ranks cost: the bytes that each sends and stores, over the closed form."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch

from harness.core.errors import MissingAbility, MissingResource
from harness.core.sizes import SIZES
from harness.measures.parallel.failures import failed_ranks_are_a_reading
from harness.measures.parallel.global_batch import global_batches
from harness.measures.parallel.parity import Kind
from harness.measures.parallel.rank_model import build
from harness.measures.parallel.session import Session, session
from harness.oracle import rank_costs
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import TENSOR
from harness.suites.measure_registry import Reading, measure

FLOAT64 = 8  # bytes
WTE = "wte.weight"
# Of the first layer, as GPT-2 names them: an own model may have several matrices for one, or a gate besides.
SPLIT_BY_OUTPUTS = ("h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_gate.weight")


@measure
@failed_ranks_are_a_reading
def bytes_sent(subject: Parallelizes, *, size: str, kind: Kind, counted: Literal["ring", "wire"] = "ring") -> Reading:
    """Return the bytes that each rank sends in a step over the closed form.

    Skipped if there is an operation that no ring does, as of a parameter server.

    ring: the payload of every collective, times what a ring sends of it. wire: what the kernel has sent through the
    rank's TCP sockets, which counts the algorithms of gloo and its headers. The step has two micro-batches if the
    program has a function for gradients. Closed forms: `harness.oracle.rank_costs`.
    """
    ranks = session(subject, kind, size)
    case = ranks.trained
    traffic = [answer["float64"]["steps"][-1]["traffic"] for answer in ranks.answers(case)]
    if counted == "wire" and any(each["wire"] < 0 for each in traffic):
        raise MissingResource("the kernel does not say how many bytes a socket has sent (Linux does, since 4.19)")
    others = sorted({name for each in traffic for name in each["others"]})
    if others:
        raise MissingAbility(
            f"{subject.name} sends by {', '.join(others)}, which is no ring: what a rank sends depends on its rank, "
            "and no closed form says it"
        )
    predicted = predicted_bytes(ranks)
    found = {f"rank {number}": each[counted] / predicted for number, each in enumerate(traffic)}
    micro_batches = len(global_batches(ranks.size, case)[-1])
    details = {
        "answers": {
            place: "sent with every micro-batch"
            for place, ratio in found.items()
            if micro_batches > 1 and abs(ratio / micro_batches - 1) < 0.01
        },
        "traffic": traffic,
        "predicted bytes": predicted,
        "hint": _of_collectives(traffic[0], predicted, counted),
        "line": list(_line(ranks)),
    }
    return Reading(found, "of the closed form", details)


def predicted_bytes(ranks: Session) -> float:
    """Return the bytes that a rank sends in the step that was counted, in float64."""
    batches = global_batches(ranks.size, ranks.trained)[-1]
    positions = sum(ids.numel() for ids, _ in batches)
    rows = build(ranks.subject, ranks.size, "float64").weights.rows
    embeddings = {row.own for row in rows if row.published.endswith(WTE)}
    return rank_costs.sent_bytes(
        ranks.kind, SIZES[ranks.size], ranks=ranks.ranks, elements=ranks.elements, positions=positions,
        element_bytes=FLOAT64, micro_batches=len(batches),
        column_matrices=len({row.own for row in rows if row.published.endswith(SPLIT_BY_OUTPUTS)}),
        is_vocabulary_split=ranks.kind == TENSOR and _is_split(ranks, embeddings),
    )  # fmt: skip


def _is_split(ranks: Session, names: Collection[str]) -> bool:
    """Return True if the first rank has only a part of the elements of one of these parameters."""
    own = torch.cat([part.flatten() for part in ranks.layout[0]])
    first = 1
    for name, shape in ranks.shapes.items():
        after = first + math.prod(shape)
        if name in names and int(((own >= first) & (own < after)).sum()) < after - first:
            return True
        first = after
    return False


@measure
@failed_ranks_are_a_reading
def memory_of_a_rank(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Return the bytes of parameters, gradients and AdamW's moments of the largest rank over the closed form.

    Closed forms: `harness.oracle.rank_costs`.
    """
    ranks = session(subject, kind, size)
    memory = [answer["float64"]["steps"][-1]["memory"] for answer in ranks.answers(ranks.trained)]
    predicted = predicted_memory(ranks)
    found = {
        what: max(each[what] for each in memory) / (predicted * (2 if what == "optimizer" else 1)) for what in memory[0]
    }
    much = ", ".join(f"{what} {value:.3g} times" for what, value in found.items())
    details = {"memory": memory, "predicted bytes": predicted, "hint": f"a rank has {much} the closed form"}
    return Reading(found, "of the closed form", {**details, "line": list(_line(ranks))})


def predicted_memory(ranks: Session) -> int:
    """Return the bytes of the parameters of the largest rank, in float64; the moments are twice that."""
    shapes = list(ranks.shapes.values())
    return FLOAT64 * rank_costs.stored_elements(ranks.kind, SIZES[ranks.size], ranks=ranks.ranks, shapes=shapes)


def _line(ranks: Session) -> tuple[str, int]:
    functions = ranks.subject.parallel_program.functions
    return (functions.get("gradients") or functions[ranks.kind]).line


def _of_collectives(traffic: Mapping[str, Any], predicted: float, counted: str) -> str:
    """Return what is sent, by collective: `allreduce: 2 calls, 1,545,216 bytes`."""
    each = [f"{name}: {traffic['calls'][name]} calls, {size:,} bytes" for name, size in traffic["payload"].items()]
    return f"{traffic[counted]:,.0f} bytes a rank, predicted {predicted:,.0f}; {'; '.join(each) or 'no collective'}"
