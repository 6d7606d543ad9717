"""The measure of what the model looks at: not at later tokens than those that a target follows."""

from __future__ import annotations

from harness.core.errors import MissingAbility
from harness.suites.measure_registry import Reading, measure
from harness.training.protocols import Trains

NOISE = 1e-9  # see the bound of the check


@measure
def change_by_later_tokens(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the largest change of a logit in the first half of a row when the tokens of its second half are others.

    It is relative to the largest logit; the model is the trained one, in float64 and eval mode.
    """
    recording = program.record(rehearsal)
    if not recording.look_aheads:
        raise MissingAbility(f"the model of {program.name} could not be called again with other token ids")
    looked = recording.look_aheads[-1]
    hint = {"hint": "the logits change with later tokens", "line": looked.line}
    return Reading(looked.change, "of the largest logit", hint if not looked.change <= NOISE else {})
