"""The seam of means of the weights, which a program keeps beside them (EMA): a second model, or tensors by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from harness.training.child.recorder import Recorder
from harness.training.child.user_lines import values_in_frames

CALLED = re.compile(r"ema|average|avg|shadow|swa|polyak", re.IGNORECASE)
MOST_SEARCHES = 3  # steps in which a mean may be built


class Averages:
    """Finds the mean of the weights among the values in the program's functions, by its name and its shapes."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._path = ""
        self._searches = 0

    def values(self) -> dict[str, Tensor]:
        """Return the mean of each parameter, by the parameter's name; {} if there is none."""
        if not self._path and self._searches == MOST_SEARCHES:
            return {}
        self._searches += not self._path
        for name, value in values_in_frames():
            if (name == self._path) if self._path else CALLED.search(name):
                found = self._of(value)
                if found:
                    self._path = name
                    return found
        return {}

    def _of(self, value: Any) -> dict[str, Tensor]:
        """Return the tensors of a value by the model's parameters, if it has most of them, and is not the model."""
        model = self.recorder.names.model
        if model is None or value is model:
            return {}
        own = {name: each for name, each in model.named_parameters() if each.requires_grad}
        if isinstance(value, nn.Module):
            given: Mapping[str, Any] = dict(value.named_parameters()) | dict(value.named_buffers())
        elif isinstance(value, dict):
            given = {str(name): each for name, each in value.items()}
        elif isinstance(value, list | tuple) and len(value) == len(own):
            given = dict(zip(own, value, strict=True))
        else:
            return {}
        plain = {name.removeprefix("module.").removeprefix("_orig_mod."): each for name, each in given.items()}
        found = {name: plain[name] for name, each in own.items() if _is_like(plain.get(name), each)}
        places = {each.data_ptr() for each in own.values()}
        apart = {name: each for name, each in found.items() if each.data_ptr() not in places}
        return apart if 2 * len(apart) > len(own) else {}


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
