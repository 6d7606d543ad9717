"""How a forward pass uses each parameter: in which order, as what, and which of its numbers stands where.

The parameters are filled with their own index. What reaches a matrix product, an addition or a norm then tells by its
values which entries of which parameter it is, whatever views, transposes and slices lay between.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.sizes import Size

# Operations that move numbers and do not change them.
MOVING = frozenset(
    (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "expand", "clone", "_to_copy",
        "copy_", "alias", "detach", "slice", "select", "split", "split_with_sizes", "unbind", "chunk", "cat", "stack",
        "unsqueeze", "squeeze", "as_strided", "index", "index_select", "gather", "narrow", "repeat", "contiguous",
        "lift_fresh", "flatten", "unflatten", "movedim", "flip", "roll",
    )
)  # fmt: skip
LOOKING_UP = frozenset(("embedding", "index", "index_select", "gather"))
MULTIPLYING = frozenset(("mm", "addmm", "bmm", "baddbmm", "convolution", "mv", "addmv", "linear"))
SCALING = frozenset(("mul", "mul_"))
ADDING = frozenset(("add", "add_", "sub", "sub_"))


@dataclass(eq=False)
class Use:
    """One use of parameters: `entries` are flat indices over all of them, (in, out) of a matrix, (n) of a vector."""

    kind: str  # 'matrix', 'gain', 'bias' or 'table'
    entries: Tensor
    number: int
    source: Use | None = None  # a bias: the matrix or gain to whose result it is added
    read_order: Tensor | None = None  # where each row of `entries`, kept in the order of memory, stands in what is read
    made_order: Tensor | None = None  # and each column in the result
    channels_first: bool = False  # the matrix stood on the left, or was a convolution's: (batch, channels, time)
    reads: int = 0  # a matrix: the memory of what it was multiplied with
    heads_first: tuple[int, ...] = ()  # how a batched product's result is laid out: its axes before (time, out)


@dataclass
class Parameters:
    """A module's parameters, and the index of each number in all of them."""

    module: nn.Module
    names: list[str] = field(init=False)
    starts: list[int] = field(init=False)
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.names, self.starts = [], []
        for name, parameter in self.module.named_parameters():
            self.names.append(name)
            self.starts.append(self.total)
            self.total += parameter.numel()

    def label(self) -> None:
        """Fill every parameter with the index of each of its numbers, scaled to be below one."""
        with torch.no_grad():
            for start, parameter in zip(self.starts, self.module.parameters(), strict=True):
                count = torch.arange(start + 1, start + 1 + parameter.numel(), dtype=torch.float64)
                parameter.copy_((count * self.unit).view(parameter.shape))

    @property
    def unit(self) -> float:
        """A power of two, so that no index is rounded, in float32 either while there are 2^24 of them at most."""
        return 2.0 ** -max(20, self.total.bit_length())

    def numel_of(self, entry: int) -> int:
        """How many numbers the parameter has to which the index belongs."""
        at = bisect.bisect_right(self.starts, entry) - 1
        return [*self.starts[1:], self.total][at] - self.starts[at]

    def of(self, entry: int) -> tuple[str, int]:
        """The parameter's name and the index within it."""
        at = bisect.bisect_right(self.starts, entry) - 1
        return self.names[at], entry - self.starts[at]


class Tracing(TorchDispatchMode):
    """While open, notes every use of a labelled parameter; `meddle(use, output)` may change a product's result."""

    def __init__(
        self, parameters: Parameters, size: Size, meddle: Callable[[Use, Any, Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.parameters, self.width, self.meddle = parameters, size.width, meddle
        self.tables = {size.vocab_size * size.width, size.context * size.width}
        self.uses: list[Use] = []
        self.results: dict[int, Use] = {}  # storage -> the use that made it
        self.labelled = {_storage(p) for p in parameters.module.parameters()}
        self.alive: list[Any] = []  # or a storage that is freed comes back as another tensor's

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "bernoulli_":  # a dropout, left on by mistake: everything is kept
            return args[0].fill_(1.0)
        output = function(*args, **(kwargs or {}))
        given = [t for t in _tensors((args, kwargs or {})) if t.is_floating_point()]
        if not given:
            return output
        marked = [t for t in given if _storage(t) in self.labelled]
        if len(marked) == len(given) and name in MOVING and not self._is_look_up(name, args):
            self._pass_on(output, self.labelled)
            return output
        if marked:
            output = self._note(name, args, kwargs or {}, output)
        elif name in MOVING:
            source = self.results.get(_storage(given[0]))
            if source is not None:
                for tensor in _tensors(output):
                    self.results.setdefault(_storage(tensor), source)
                    self.alive.append(tensor)
        return output

    def _pass_on(self, output: Any, to: set[int]) -> None:
        for tensor in _tensors(output):
            to.add(_storage(tensor))
            self.alive.append(tensor)

    def _is_look_up(self, name: str, args: Any) -> bool:
        """An index by token ids, not by constants: what comes out depends on what the user gave."""
        return name in LOOKING_UP and any(isinstance(a, Tensor) and not a.is_floating_point() for a in _tensors(args))

    def _entries(self, tensor: Tensor) -> Tensor:
        return (tensor.detach().double() / self.parameters.unit).round().long() - 1

    def _is_labelled(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.is_floating_point() and _storage(tensor) in self.labelled

    def _note(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        if name in LOOKING_UP:
            self._add("table", self._entries(args[0]))
        elif name == "native_layer_norm":
            weight, bias = args[2], args[3]
            gain = self._add("gain", self._entries(weight)) if self._is_labelled(weight) else None
            if self._is_labelled(bias):
                self._add("bias", self._entries(bias), source=gain)
            self._made(output[0], gain)
        elif name in MULTIPLYING:
            output = self._product(name, args, output)
        elif name in SCALING or name in ADDING:
            vector = next(t for t in args[:2] if self._is_labelled(t))
            other = next((t for t in args[:2] if isinstance(t, Tensor) and t is not vector), None)
            unique = self._entries(vector).flatten().unique_consecutive()
            entries = _distinct(self._entries(vector))
            source = None if other is None else self.results.get(_storage(other))
            if entries is None or unique.numel() == 1:
                return output
            if self.parameters.numel_of(int(unique[0])) in self.tables:
                use = self._add("table", entries)
            else:
                entries = _in_order(entries, source) if name in ADDING else entries.flatten()
                use = self._add("gain" if name in SCALING else "bias", entries, source=source)
            self._made(output, source if use.kind == "bias" and source is not None else use)
        return output

    def _product(self, name: str, args: Any, output: Any) -> Any:
        bias: Any = None
        if name in ("addmm", "baddbmm"):
            bias, left, right = args[:3]
        elif name in ("convolution", "linear"):
            left, right = args[:2]
            bias = args[2] if len(args) > 2 else None
        else:
            left, right = args[:2]
        use = None
        if self._is_labelled(right) != self._is_labelled(left):
            entries = self._entries(right if self._is_labelled(right) else left)
            if name in ("linear", "convolution"):
                entries = entries.flatten(1).mT
            elif self._is_labelled(left):
                entries = entries.mT
            matrix, before = self._matrix(entries, args)
            if matrix is not None:
                read, made = matrix[:, 0].argsort(), matrix[0].argsort()
                use = self._add("matrix", matrix[read][:, made])
                use.read_order, use.made_order, use.heads_first = read, made, before
                use.reads = _storage(left if self._is_labelled(right) else right)
                use.channels_first = name == "convolution" or self._is_labelled(left)
                if self.meddle is not None:
                    output = self.meddle(use, left if self._is_labelled(right) else right, output)
                self._made(output, use)
        if self._is_labelled(bias):
            added = _distinct(self._entries(bias))
            if added is not None:
                self._add("bias", _in_order(added, use), source=use)
        return output

    def _matrix(self, entries: Tensor, args: Any) -> tuple[Tensor | None, tuple[int, ...]]:
        """(in, out) of what was multiplied with; a batch of per-head matrices is put side by side."""
        if entries.ndim < 3:
            return (entries if entries.ndim == 2 else None), ()
        first = entries[:, 0, 0]
        heads, order = first.unique().numel(), tuple(dict.fromkeys(first.tolist()))
        kept = torch.stack([entries[first.tolist().index(value)] for value in order])
        if heads == 1:
            return kept[0], ()
        batch = entries.shape[0] // heads
        before = (batch, heads) if first[:heads].tolist() == list(order) else (heads, batch)
        if kept.shape[1] == self.width:  # (H, C, D): every head reads the whole width
            return kept.permute(1, 0, 2).flatten(1), before
        return kept.flatten(0, 1), before  # (H, D, C): every head reads its own part

    def _add(self, kind: str, entries: Tensor, source: Use | None = None) -> Use:
        use = Use(kind, entries, len(self.uses), source)
        self.uses.append(use)
        return use

    def _made(self, output: Any, use: Use | None) -> None:
        if use is not None:
            for tensor in _tensors(output):
                self.results[_storage(tensor)] = use
                self.alive.append(tensor)


def _in_order(bias: Tensor, of: Use | None) -> Tensor:
    """A vector that is added to a product, in the order in which the product's columns are kept."""
    if bias.ndim == 1 and of is not None and of.made_order is not None and len(of.made_order) == len(bias):
        return bias[of.made_order]
    return bias.flatten()


def _distinct(entries: Tensor) -> Tensor | None:
    """The entries without the axes along which they were only repeated (expand, a batch)."""
    for axis in range(entries.ndim):
        if entries.shape[axis] > 1 and bool((entries == entries.select(axis, 0).unsqueeze(axis)).all()):
            entries = entries.narrow(axis, 0, 1)
    return entries.squeeze() if entries.numel() else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for item in nest:
            yield from _tensors(item)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
