"""The measure of TF32: how much less precise the logits are where it is allowed."""

from __future__ import annotations

from harness.core.devices import TF32, arithmetic_of, why_no_tf32
from harness.core.errors import MissingResource
from harness.core.resources import Resources
from harness.core.sizes import SIZES
from harness.measures.device.errors_in_floors import float32_model, in_floors, outputs_and_gradients, reference_run
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure


@measure
def tf32_error(subject: Subject, *, size: str) -> Reading:
    """Return the error with TF32 of the logits, the loss and the largest of the gradients, in float32 floors.

    All other checks run without TF32. Raises MissingResource on a device that does not have it.
    """
    device = Resources.current.device
    if why := why_no_tf32(device):
        raise MissingResource(f"TF32: {why}")
    target = SIZES[size]
    reference = reference_run(target)
    with arithmetic_of(device, TF32):
        found = outputs_and_gradients(float32_model(subject, target), target)
    errors = in_floors(found, {**reference.outputs, **reference.gradients}, reference)
    gradients = [error for place, error in errors.items() if place not in ("logits", "loss")]
    found_errors = {"logits": errors["logits"], "loss": errors["loss"]}
    if gradients:
        found_errors["gradients"] = max(gradients)
    floors = ", ".join(f"the {place} {error:.0f}x" for place, error in found_errors.items())
    return Reading(found_errors, "float32 floors", {"says": f"with TF32 the errors are, in float32 floors: {floors}"})
