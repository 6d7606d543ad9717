"""The measure of several sequences for each prompt: their number, their prompts, and that they are independent."""

from __future__ import annotations

import itertools

import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.options.continuation import option_of, rows_of
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.protocols import TakesOptions
from harness.suites.measure_registry import Reading, measure

SEQUENCES, COUNT = 3, 16


@measure
def several_sequences(subject: TakesOptions, *, size: str, weights: Weights = "probe", length: int = 5) -> Reading:
    """Return "right" for what is true of 3 sampled sequences for each of 2 prompts, or else a description, by place.

    Six rows come, three for each prompt, side by side or in turn; no two of a prompt are the same.
    """
    model = cached_model(subject, size, weights)
    name = option_of(subject, model, "sequences")
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    plain = rows_of(subject.generate_with(model, ids, COUNT, {}, seed=0))
    if len(plain[0]) != length + COUNT:
        raise MissingAbility(f"generate of {subject.name} returns no prompts, so '{name}' is not judged")
    rows = rows_of(subject.generate_with(model, ids, COUNT, {name: SEQUENCES}, seed=0))
    found = {f"{name}={SEQUENCES}: rows": "right" if len(rows) == len(ids) * SEQUENCES else f"{len(rows)} rows"}
    if found[f"{name}={SEQUENCES}: rows"] != "right":
        return Reading(found)
    arrangements = {
        "side by side": ids.repeat_interleave(SEQUENCES, 0),
        "in turn": ids.repeat(SEQUENCES, 1),
    }
    prompts = torch.stack([row[:length] for row in rows])
    arranged = [how for how, expected in arrangements.items() if torch.equal(prompts, expected)]
    found["the prompts"] = "right" if arranged else "are not those that were given"
    lengths = {len(row) for row in rows}
    found["the new tokens"] = "right" if lengths == {length + COUNT} else f"rows of {sorted(lengths)} ids"
    same = sum(torch.equal(one, other) for one, other in itertools.combinations(rows, 2))
    found["independent draws"] = "right" if not same else f"{same} pairs of sequences are the same"
    return Reading(found, details={"conventions": {"the sequences of a prompt": " ".join(arranged)}})
