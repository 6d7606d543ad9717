"""Random numbers of a pass: the same in every dtype, and followed to the values that they drop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.core.source_lines import SourceLine, user_line

IN_PLACE = frozenset(("bernoulli_", "uniform_", "normal_", "exponential_", "geometric_", "log_normal_", "cauchy_"))
LIKE = frozenset(("rand_like", "randn_like"))
OF_PROBABILITIES = frozenset(("bernoulli", "normal"))
BY_SIZE = frozenset(("rand", "randn"))
INTEGERS = frozenset(("randint", "randint_like", "random_", "randperm", "multinomial"))
RANDOM = IN_PLACE | LIKE | OF_PROBABILITIES | BY_SIZE | INTEGERS
NATIVE = "native_dropout"
SCALINGS = frozenset(("mul", "mul_", "div", "div_"))
SAME = 1e-9  # relative, in float64


@dataclass(frozen=True)
class Draw:
    """One call that draws random numbers: its name in PyTorch, the shape of what it draws, and the user's line."""

    operation: str
    shape: tuple[int, ...]
    line: SourceLine | None

    def __str__(self) -> str:
        """Return it as a message has it: `bernoulli_ (2, 24, 48) at my_gpt.py:12`."""
        return f"{self.operation} {self.shape}" + (f" at {self.line}" if self.line is not None else "")


@dataclass
class Drop:
    """One operation in which random numbers meet a value: `before` becomes `after`, both float64, of one shape.

    `draws` are the numbers of the draws. `before` is None if no value is multiplied or replaced by them element by
    element. `used`: something is computed from the result.
    """

    draws: frozenset[int]
    line: SourceLine | None
    before: Tensor | None
    after: Tensor
    used: bool = False

    def multiple(self) -> tuple[Tensor, float, float] | None:
        """Return what is kept (bool), the factor of what is kept, and the value of what is dropped; None if neither."""
        return None if self.before is None else multiple(self.before, self.after)


def multiple(before: Tensor, after: Tensor) -> tuple[Tensor, float, float] | None:
    """Return (kept, factor, fill) if `after` is `factor` · `before` where kept and `fill` elsewhere; None if not.

    One value has always a factor, and the smaller of two could be a fill. A sampler multiplies one number a row by a
    random one: so the factor counts if two values have it, and a fill other than 0 and -inf likewise.
    """
    finite = before.isfinite()
    for fill in dict.fromkeys((0.0, -math.inf, float(after.min()))):
        kept = after != fill
        sure = kept & finite & (before != 0)
        if int(sure.sum()) == 1 or (fill not in (0.0, -math.inf) and int((~kept).sum()) < 2):
            continue
        if not bool(sure.any()):
            if fill == 0.0 and not bool(kept.any()):
                return kept, 1.0, 0.0  # everything is dropped
            continue
        x, z = before[sure], after[sure]
        factor = float((x * z).sum() / (x * x).sum())
        if bool((z - factor * x).abs().max() <= SAME * z.abs().max()):
            return kept | (before == 0), factor, fill
    return None


class RandomDraws(TorchDispatchMode):
    """Draw random numbers in float64 whatever the dtype inside the block, and follow them inside `following`.

    After one seed a float32 and a float64 pass then drop the same values. PyTorch's dropouts, those of its attention
    too, come down to such draws on a CPU. A tensor is noise if it depends on draws alone, a constant if it depends on
    nothing, and otherwise a value: an operation on noise and a value is a drop. Storages are followed, not tensors, so
    that views are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.drops: list[Drop] = []
        self._following = False
        self._noise: dict[int, frozenset[int]] = {}  # storage -> the numbers of the draws
        self._constants: set[int] = set()
        self._results: dict[int, Drop] = {}
        self._alive: list[Tensor] = []  # a storage that is freed would be another tensor's

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Record draws and drops inside the block."""
        self._following = True
        try:
            with self:
                yield
        finally:
            self._following = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, PyTorch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = function.overloadpacket.__name__
        if name in RANDOM:
            answer = _drawn(name, function, args, given)
            if self._following and not _writes_parameter(answer):
                self._note_draw(name, answer)
            return answer
        if name == NATIVE:
            return self._native_dropout(*args)
        if not self._following:
            return function(*args, **given)
        return self._follow(name, function, args, given)

    def _note_draw(self, name: str, answer: Tensor) -> None:
        self.draws.append(Draw(name, tuple(answer.shape), user_line()))
        self._label(answer, noise=frozenset((len(self.draws) - 1,)))

    def _native_dropout(self, value: Tensor, rate: float, train: bool | None) -> tuple[Tensor, Tensor]:
        kept = torch.ones_like(value, dtype=torch.bool)
        if train is False or rate == 0:
            return value.clone(), kept
        kept = (torch.rand(value.shape, dtype=torch.float64) >= rate).to(value.device)
        answer = value * kept / (1 - rate) if rate < 1 else torch.zeros_like(value)
        if self._following:
            self._note_draw(NATIVE, kept)
            self._note_drop(frozenset((len(self.draws) - 1,)), _copied(value), answer)
        return answer, kept

    def _follow(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        noise = frozenset().union(*(self._noise.get(_storage(tensor), ()) for tensor in tensors))
        values = [] if name.endswith("_like") or name.startswith("new_") else [t for t in tensors if self._is_value(t)]
        before = [_copied(tensor) for tensor in values if tensor.is_floating_point()] if noise else []
        scaled = self._scaled(name, values) if not noise else None
        answer = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
        if scaled is not None and outputs and self._extends(scaled, outputs[0]):
            return answer
        for tensor in tensors:
            if (drop := self._results.get(_storage(tensor))) is not None:
                drop.used = True
        for output in outputs:
            if noise and not values:
                self._label(output, noise=noise)
            elif not values:
                self._label(output)
            else:
                self._noise.pop(_storage(output), None)
                self._constants.discard(_storage(output))
        if noise and values and outputs and outputs[0].is_floating_point():
            self._note_drop(noise, _dropped(before, outputs[0]), outputs[0])
        return answer

    def _note_drop(self, noise: frozenset[int], before: Tensor | None, output: Tensor) -> None:
        drop = Drop(noise, user_line(), before, _copied(output))
        self.drops.append(drop)
        self._results[_storage(output)] = drop
        self._alive.append(output)

    def _scaled(self, name: str, values: Sequence[Tensor]) -> Drop | None:
        """Return the drop whose result this operation may multiply by a number."""
        found = self._results.get(_storage(values[0])) if len(values) == 1 and name in SCALINGS else None
        return found if found is not None and found.before is not None and not found.used else None

    def _extends(self, drop: Drop, output: Tensor) -> bool:
        """Add to the drop that its result is scaled, as in `x * mask / (1 - p)`; return False if it is not."""
        assert drop.before is not None
        if output.shape != drop.after.shape:
            return False
        after = _copied(output)
        if multiple(drop.before, after) is None:
            return False
        drop.after = after
        self._results[_storage(output)] = drop
        self._alive.append(output)
        return True

    def _is_value(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return tensor.numel() > 1 and storage not in self._noise and storage not in self._constants

    def _label(self, tensor: Tensor, noise: frozenset[int] | None = None) -> None:
        storage = _storage(tensor)
        if noise is None:
            self._noise.pop(storage, None)
            self._constants.add(storage)
        else:
            self._constants.discard(storage)
            self._noise[storage] = noise
        self._alive.append(tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _writes_parameter(answer: Any) -> bool:
    return isinstance(answer, torch.nn.Parameter)


def _dropped(values: Sequence[Tensor], output: Tensor) -> Tensor | None:
    """Return the value that becomes `output` by dropping some of it, in the shape of `output`; None if none does."""
    after = _copied(output)
    for value in values:
        with contextlib.suppress(RuntimeError):
            before = value.broadcast_to(output.shape)
            if multiple(before, after) is not None:
                return before
    return None


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy in float64 on the CPU, where the formula is."""
    return tensor.detach().to("cpu", copy=True).double()  # in two steps: mps has no float64


def _drawn(name: str, function: Any, args: Any, kwargs: Any) -> Tensor:
    """Draw in float64, and return the numbers in the dtype that was asked for.

    They are drawn on the CPU, so that all devices drop the same; by a generator of another device, there.
    """
    if name in INTEGERS:
        return function(*args, **kwargs)  # type: ignore[no-any-return]
    like = next((arg for arg in args if isinstance(arg, Tensor)), None)
    device = torch.device(kwargs.get("device") or "cpu") if like is None else like.device
    generator = kwargs.get("generator")
    drawn_on = torch.device("cpu") if generator is None else generator.device
    if name in IN_PLACE:
        wide = torch.empty(args[0].shape, dtype=torch.float64, device=drawn_on)
        return args[0].copy_(function(wide, *args[1:], **kwargs))  # type: ignore[no-any-return]
    dtype = kwargs.get("dtype") or (torch.get_default_dtype() if name in BY_SIZE else args[0].dtype)
    if name in OF_PROBABILITIES:
        args = tuple(arg.to(drawn_on).double() if isinstance(arg, Tensor) else arg for arg in args)
        return function(*args, **kwargs).to(dtype).to(device)  # type: ignore[no-any-return]
    given = {**kwargs, "dtype": torch.float64, "device": drawn_on}
    return function(*args, **given).to(dtype).to(device)  # type: ignore[no-any-return]
