"""Record or replace the inputs and outputs of a model's components, as (batch, time, channels)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Tensors = dict[str, Tensor]


@contextlib.contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    shape: Callable[[], tuple[int, ...]],
    *,
    read: Tensors | None = None,
    given: Mapping[str, Tensor] | None = None,
    answered: Tensors | None = None,
) -> Iterator[None]:
    """Collect the input (`read`) and the output (`answered`) of each module inside the block, by place.

    A place in `given` reads that tensor instead of its input. `shape()` returns (batch, time, channels) of the pass
    that runs. The tensors of all three mappings have that shape, whatever the order of axes in the module.
    """
    replaced = given or {}

    def before(place: str, replace: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = None if args else next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            found: Tensor = args[0] if key is None else kwargs[key]
            if not replace:
                assert read is not None
                read[place] = arranged(found, shape())
                return None
            stream = arranged(replaced[place].to(found), tuple(found.shape))
            return ((stream, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: stream})

        return hook

    def after(place: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            assert answered is not None
            answered[place] = arranged(output if isinstance(output, Tensor) else output[0], shape())

        return hook

    handles = []
    for place, module in modules.items():
        if read is not None:
            handles.append(module.register_forward_pre_hook(before(place, False), with_kwargs=True))
        if place in replaced:
            # Prepended, so that other hooks see the replaced input, which is the one that the module reads.
            handles.append(module.register_forward_pre_hook(before(place, True), with_kwargs=True, prepend=True))
        if answered is not None:
            handles.append(module.register_forward_hook(after(place)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def arranged(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a view of `tensor` in `shape`: its axes in another order, or batch and time as one axis.

    Axes are identified by their lengths; if batch and time are equal, the batch comes first. A tensor that does not
    fit is returned unchanged.
    """
    if tuple(tensor.shape) == shape:
        return tensor
    if {tensor.ndim, len(shape)} == {2, 3} and tensor.shape[-1] == shape[-1]:
        return tensor.reshape(shape) if tensor.numel() == math.prod(shape) else tensor
    if tensor.ndim == len(shape) == 3:
        for axes in itertools.permutations(range(3)):
            if tuple(tensor.shape[axis] for axis in axes) == shape:
                return tensor.permute(axes)
    return tensor
