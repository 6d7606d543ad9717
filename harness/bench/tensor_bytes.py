"""The bytes of the tensors that an object or a model keeps in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensor_bytes(holder: object) -> int:
    """Return the bytes of all tensors that `holder` refers to, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def walk(value: object) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor) and value.layout is torch._mkldnn:  # type: ignore[attr-defined]  # no stub has it
            storages[id(value)] = torch.ops.mkldnn._nbytes(value)  # it is opaque, so it has no storage
        elif isinstance(value, Tensor) and value.is_meta:
            return  # it has a shape and no memory
        elif isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
            walk(vars(value))

    walk(holder)
    return sum(storages.values())


def weight_figures(module: nn.Module) -> dict[str, float]:
    """Return the bytes of a model's parameters, buffers and packed weights; nothing if they are not torch's."""
    parts = [vars(part) for part in module.modules()]
    tensors = [[value for value in part.values() if isinstance(value, Tensor)] for part in parts]
    found = tensor_bytes([tensors, [[part["_parameters"], part["_buffers"]] for part in parts]])
    return {"weights_bytes": found} if found else {}
