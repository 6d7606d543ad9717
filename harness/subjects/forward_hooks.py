"""What a model's components read and answer as it runs, as (batch, time, channels) whatever its own order of axes."""

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
    """While open, collects by place what each module reads and answers; a place in `given` reads that instead.

    `shape()` is (batch, time, channels) of the pass that runs; all three hold tensors of that shape.
    """
    forced = given or {}

    def before(place: str, replace: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = None if args else next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            found: Tensor = args[0] if key is None else kwargs[key]
            if not replace:
                assert read is not None
                read[place] = arranged(found, shape())
                return None
            stream = arranged(forced[place].to(found.dtype), tuple(found.shape))
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
        if place in forced:
            # Prepended: whoever keeps the input then keeps what the module reads.
            handles.append(module.register_forward_pre_hook(before(place, True), with_kwargs=True, prepend=True))
        if answered is not None:
            handles.append(module.register_forward_hook(after(place)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def arranged(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of `tensor` in `shape`, its axes in another order, or batch and time as one; as it is where none fits.

    Lengths tell the axes: of an equal batch and time, the batch is taken to come first.
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
