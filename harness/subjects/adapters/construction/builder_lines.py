"""The lines that a user pastes where a GPT cannot be built or called: with its own names, as far as they are known."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from harness.core.errors import SubjectError
from harness.subjects.adapters.construction.config_class import config_classes, settings_of
from harness.subjects.adapters.construction.find_constructor import find_constructor, takes_config
from harness.subjects.adapters.construction.prototype import prototypes
from harness.subjects.adapters.construction.setting_names import quantity_of
from harness.subjects.adapters.construction.signature import modules_of, parameters_of

VALUES = {
    "vocab_size": "size.vocab_size",
    "context": "size.context",
    "layers": "size.layers",
    "heads": "size.heads",
    "width": "size.width",
    "head_width": "size.head_width",
    "feed_forward_width": "4 * size.width",
    "feed_forward_factor": "4",
}
FILL_IN = "..."


def builder_lines(target: Any, name: str, module: ModuleType) -> str:
    """Return `def build(size): return GPT(...)`. What is not known is `...`, for the user to fill in."""
    known = ", ".join(list(VALUES.values())[:5])
    return f"def build(size):  # it has {known}\n    return {construction(target, name, module)}\n"


def adapter_lines(target: Any, name: str, module: ModuleType, forward: Iterable[str]) -> str:
    """Return an adapter that passes the further arguments of `forward`, which the user fills in."""
    arguments = ", ".join(["ids", *(f"{word}={FILL_IN}" for word in forward)])
    return (
        "from harness.subjects.model import Model\n\n\n"
        "class Mine:\n"
        "    def build(self, size):\n"
        f"        model = {construction(target, name, module)}\n"
        "        # logits (batch, time, vocabulary), and the loss or None\n"
        f"        return Model(model, size, lambda model, ids, targets: (model({arguments}), None))\n"
    )


def construction(target: Any, name: str, module: ModuleType) -> str:
    """Return the call that builds the subject, as text."""
    try:
        own = parameters_of(target)
    except SubjectError:
        return f"{name}({FILL_IN})"
    if (parameter := takes_config(target, module)) is not None:
        others = [p for p in own.values() if p.default is p.empty and p.name != parameter.name]
        return f"{name}({', '.join([_config(parameter, target, module), *map(_keyword, others)])})"
    shown = [p for p in own.values() if p.default is p.empty or quantity_of(p.name, own) in VALUES]
    shown += [p for p in own.values() if isinstance(p.default, int) and p.default > 1 and p not in shown]
    if not shown and not own:
        words = sorted(word for word in find_constructor(target, module).words if quantity_of(word, ()) in VALUES)
        return f"{name}({', '.join(f'{word}={VALUES[str(quantity_of(word, ()))]}' for word in words)})"
    return f"{name}({', '.join(_keyword(p) for p in own.values() if p in shown)})"


def _keyword(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}={VALUES.get(str(quantity_of(parameter.name, ())), FILL_IN)}"


def _config(parameter: inspect.Parameter, target: Any, module: ModuleType) -> str:
    modules = modules_of(target, module)
    for kind in config_classes(parameter, target, modules):
        words = [word for word in settings_of(kind, 1) if quantity_of(word, ()) in VALUES]
        return f"{kind.__name__}({', '.join(f'{word}={VALUES[str(quantity_of(word, ()))]}' for word in words)})"
    for name, prototype in prototypes(parameter, target, modules):
        if name.isidentifier() and isinstance(prototype, dict):
            words = [word for word in prototype if quantity_of(word, ()) in VALUES]
            items = ", ".join(f'"{word}": {VALUES[str(quantity_of(word, ()))]}' for word in words)
            return f"{{**{name}, {items}}}"
    return FILL_IN
