"""Measures of what ranks cost: the bytes that each sends and stores, over the closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from harness.core.errors import MissingResource
from harness.core.sizes import SIZES
from harness.measures.parallel.failures import failed_ranks_are_a_reading
from harness.measures.parallel.global_batch import ACCUMULATED, PLAIN, global_batches
from harness.measures.parallel.parity import Kind
from harness.measures.parallel.session import Session, session
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import DATA, SHARDED
from harness.suites.measure_registry import Reading, measure

FLOAT64 = 8  # bytes


@measure
@failed_ranks_are_a_reading
def bytes_sent(subject: Parallelizes, *, size: str, kind: Kind, counted: Literal["ring", "wire"] = "ring") -> Reading:
    """Return the bytes that each rank sends in a step over the closed form.

    ring: the payload of every collective, times what a ring sends of it. wire: what the kernel has sent through the
    rank's TCP sockets, which counts the algorithms of gloo and its headers. The step has two micro-batches if the
    program has a function for gradients. Closed forms: `predicted_bytes`.
    """
    ranks = session(subject, kind, size)
    case = case_of(ranks)
    traffic = [answer["float64"]["steps"][-1]["traffic"] for answer in ranks.answers(case)]
    if counted == "wire" and any(each["wire"] < 0 for each in traffic):
        raise MissingResource("the kernel does not say how many bytes a socket has sent (Linux does, since 4.19)")
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


def case_of(ranks: Session) -> str:
    """Return the case in which a whole step is done."""
    return ACCUMULATED if "gradients" in ranks.subject.parallel_program.functions else PLAIN


def predicted_bytes(ranks: Session) -> float:
    """Return the bytes that a rank sends in a step by the closed form, with rings over n ranks, in float64.

    data: the gradient is averaged once, 2 (n-1)/n of its bytes. sharded: every micro-batch gathers all parameters
    forward and backward, and the gradient is scattered once: (2 m + 1) (n-1)/n of them (ZeRO-3, Rajbhandari et al.
    2020, section 7). tensor: every micro-batch sums each of two branches of a layer forward and backward, 2 (n-1)/n of
    B T C each (Megatron-LM, Shoeybi et al. 2019, section 3).
    """
    n, size = ranks.ranks, SIZES[ranks.size]
    batches = global_batches(ranks.size, case_of(ranks))[-1]
    gradient = FLOAT64 * ranks.elements
    if ranks.kind == DATA:
        return 2 * (n - 1) / n * gradient
    if ranks.kind == SHARDED:
        return (2 * len(batches) + 1) * (n - 1) / n * gradient
    positions = sum(ids.numel() for ids, _ in batches)
    return 4 * size.layers * 2 * (n - 1) / n * FLOAT64 * positions * size.width


@measure
@failed_ranks_are_a_reading
def memory_of_a_rank(subject: Parallelizes, *, size: str, kind: Kind) -> Reading:
    """Return the bytes of parameters, gradients and AdamW's moments of the largest rank over the closed form.

    data: everything, on each rank. sharded: the rows of every parameter are shared, the first rank has the most.
    tensor: a part of what Megatron splits, and all of the rest.
    """
    ranks = session(subject, kind, size)
    memory = [answer["float64"]["steps"][-1]["memory"] for answer in ranks.answers(case_of(ranks))]
    predicted = predicted_memory(ranks)
    found = {
        what: max(each[what] for each in memory) / (predicted * (2 if what == "optimizer" else 1)) for what in memory[0]
    }
    much = ", ".join(f"{what} {value:.3g} times" for what, value in found.items())
    details = {"memory": memory, "predicted bytes": predicted, "hint": f"a rank has {much} the closed form"}
    return Reading(found, "of the closed form", {**details, "line": list(_line(ranks))})


def predicted_memory(ranks: Session) -> int:
    """Return the bytes of the parameters of the largest rank by the closed form, in float64; moments are twice that."""
    n = ranks.ranks
    if ranks.kind == DATA:
        return FLOAT64 * ranks.elements
    if ranks.kind == SHARDED:
        return FLOAT64 * sum(math.ceil(shape[0] / n) * math.prod(shape[1:]) for shape in ranks.shapes.values())
    split = SIZES[ranks.size].layers * _split_elements(SIZES[ranks.size].width)
    return FLOAT64 * (ranks.elements - split + split // n)


def _split_elements(C: int) -> int:
    """Return the elements of one layer that are split: all but the norms and the biases of both c_proj."""
    return (3 * C * C + 3 * C) + C * C + (4 * C * C + 4 * C) + 4 * C * C


def _line(ranks: Session) -> tuple[str, int]:
    functions = ranks.subject.parallel_program.functions
    return (functions.get("gradients") or functions[ranks.kind]).line


def _of_collectives(traffic: Mapping[str, Any], predicted: float, counted: str) -> str:
    """Return what is sent, by collective: `allreduce: 2 calls, 1,545,216 bytes`."""
    each = [f"{name}: {traffic['calls'][name]} calls, {size:,} bytes" for name, size in traffic["payload"].items()]
    return f"{traffic[counted]:,.0f} bytes a rank, predicted {predicted:,.0f}; {'; '.join(each) or 'no collective'}"
