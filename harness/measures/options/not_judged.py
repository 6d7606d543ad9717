"""What the signatures of forward and generate offer, and no check judges."""

from __future__ import annotations

from collections.abc import Mapping

from harness.measures.cached_model import cached_model
from harness.subjects.adapters.generation import CONTEXTS, GREEDY, SETTINGS
from harness.subjects.adapters.key_value_cache import PASTS
from harness.subjects.forward_style import TARGETS, forward_parameters, ids_parameter, style_of
from harness.subjects.option_names import FORWARD_OPTIONS, GENERATE_OPTIONS, PADDING_MASKS
from harness.subjects.protocols import Caches, Subject, TakesOptions


def not_judged(subject: Subject, size: str) -> Mapping[str, list[str]]:
    """Return the parameters of `forward` and of `generate` that no check judges, by function."""
    model = cached_model(subject, size, "probe")
    parameters, style = forward_parameters(model.module), style_of(model.module)
    known = {name for names in FORWARD_OPTIONS.values() for name in names}
    known |= {ids_parameter(parameters), style.targets, *TARGETS, *PADDING_MASKS, *style.arguments, *style.loss_needs}
    known |= set(PASTS) if isinstance(subject, Caches) else set()
    found = {"forward": [name for name in parameters if name not in known]}
    if isinstance(subject, TakesOptions):
        known = {name for names in (*SETTINGS.values(), *GENERATE_OPTIONS.values()) for name in names}
        known |= {*GREEDY, *CONTEXTS}
        found["generate"] = [word for word in subject.generate_options(model) if word not in known]
    return found


def describe(found: Mapping[str, list[str]]) -> str:
    """Return the parameters in words, `forward(router), generate(beams)`; "" if there are none."""
    return ", ".join(f"{function}({', '.join(names)})" for function, names in found.items() if names)
