"""A subject on another device than the CPU: its models live there, and the ids and tensors of a caller need not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.core.devices import CPU, has_float64, moved, moved_nest
from harness.core.sizes import Size
from harness.subjects.model import Model
from harness.subjects.protocols import Subject

# The abilities `(model, ids, ...) -> ids or logits`.
CALLS = ("generate", "generate_with", "at_temperature_zero", "step")


def on_device(subject: Subject, device: str) -> Subject:
    """Return a copy of the subject whose models are built on the CPU and moved to `device`, as programs do it.

    What it is called with is moved there, and answers are moved back, here and in `Model`: no measure needs to know.
    A float64 model of a device without float64 (mps) stays on the CPU.
    """
    if device == CPU:
        return subject
    placed: Any = copy.copy(subject)

    def build(size: Size, *, seed: int = 0, dtype: str = "float32", device: str = device, **options: Any) -> Model:
        where = CPU if dtype == "float64" and not has_float64(device) else device
        return subject.build(size, seed=seed, dtype=dtype, device=where, **options)

    placed.build = build
    for name in CALLS:
        if (call := getattr(subject, name, None)) is not None:
            setattr(placed, name, _moving(call))
    if (make := getattr(subject, "build_experts", None)) is not None:
        where = device if has_float64(device) else CPU
        placed.build_experts = lambda size, **options: make(size, **{"device": where, **options})
    if (load := getattr(subject, "load_checkpoint", None)) is not None:
        placed.load_checkpoint = lambda directory: _placed(load(directory), device)
    return placed  # type: ignore[no-any-return]


def _placed(model: Model, device: str) -> Model:
    model.module.to(device)
    return model


def _moving(call: Callable[..., Any]) -> Callable[..., Any]:
    def moving(model: Model, ids: Tensor, *args: Any, **options: Any) -> Any:
        answer = call(model, moved(ids, model.device), *args, **moved_nest(options, model.device))
        return moved_nest(answer, ids.device)

    return moving
