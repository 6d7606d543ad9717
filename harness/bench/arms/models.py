"""Work of the whole model without gradients: a forward pass, a step of decoding."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.bench import costs
from harness.bench.arms.model_pool import ModelPool, autocast
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.truth import Closeness, float32_bound
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.comparison import Work
from harness.core.errors import MissingAbility
from harness.subjects.model import Caches, ChoosesCache, Model, Subject

VERIFIED_STEPS = 8  # of decoding; each is a row of logits
WINDOW = 64  # positions that a cache is decoded over before it is filled anew


def near_truth(
    pool: ModelPool,
    control: str,
    arm_specs: Mapping[str, ArmSpec],
    answer: Callable[[Model], Tensor],
    *,
    bound: float,
    stored: Callable[[Model, torch.dtype], Tensor] | None = None,
) -> Verifier:
    """Judges by the distance from what `answer` gives of the truth's model, in float64.

    Of an arm in 16 bits, by what rounding the weights alone makes; `stored` is that answer where they are written.
    """
    dtypes = {name: getattr(torch, way.computes) for name, way in arm_specs.items() if way.computes not in FULL}

    def coarse(dtype: torch.dtype) -> Tensor:
        model = pool.truth(stored_in=dtype)
        return answer(model) if stored is None else stored(model, dtype)

    return Closeness(
        truth=lambda: answer(pool.truth()),
        control=control,
        bound=bound,
        coarse=coarse,
        dtypes=dtypes,
        of=pool.called,
    )


FULL = ("float32", "float64")


def element_bytes(way: ArmSpec) -> int:
    """The bytes of one weight as it is read."""
    return int(getattr(torch, way.dtype).itemsize)


def _judge_forward(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int, batch: int = 1
) -> Verifier:
    ids, _ = pool.ids(rows=batch, length=tokens)

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids)

    return near_truth(pool, control, arm_specs, answer, bound=float32_bound(pool.size))


@work_kind("forward", judge=_judge_forward)
def forward(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Logits of every position of (batch, tokens) ids, without gradients."""
    ids, _ = pool.ids(rows=batch, length=tokens)
    model = pool.model(way, copy)

    @torch.no_grad()
    def call() -> Tensor:
        with autocast(pool.device, way.autocast):
            return model.logits(ids)

    if way.options.get("graph"):
        call = replayed(call)
    cost = costs.forward(
        pool.size,
        batch=batch,
        tokens=tokens,
        attention=counted_as(way.attention),
        element_bytes=element_bytes(way),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        tokens=ids.numel(),
        extras=first_call(way, call),
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=way.computes,
    )


def counted_as(attention: str | None) -> Any:
    """The kind of attention whose products are counted: every pair where the scores are stored, else the past's."""
    return {"naive": "naive", "looped": "looped", "sdpa-math": "naive"}.get(attention or "flash", "flash")


def first_call(way: ArmSpec, call: Callable[[], object]) -> Callable[[], Mapping[str, float]]:
    """The further figure of a compiled arm: its first call, made now, which is the one that compiles."""
    if not way.compiled:
        return dict
    with tempfile.TemporaryDirectory() as folder, _inductor_in(folder):
        begun = time.perf_counter()
        call()
        seconds = time.perf_counter() - begun
    return lambda: {"first_call_seconds": seconds}


@contextlib.contextmanager
def _inductor_in(folder: str) -> Iterator[None]:
    """While open, Inductor's cache is `folder`: what another run has compiled is compiled again."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def replayed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call's kernels as one CUDA graph: launched together, with nothing of Python between them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # where libraries make their plans and workspaces, before anything is captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


def caching(who: Subject) -> Caches:
    """`who`, if it decodes step by step with a cache; MissingAbility otherwise."""
    if isinstance(who, Caches):
        return who
    raise MissingAbility(f"{who.name} has no ability 'Caches': it does not decode step by step with a cache")


def new_cache(who: Subject, model: Model, way: ArmSpec, rows: int) -> Any:
    """An empty cache, of the kind that the way names, where it names one."""
    cacher, wanted = caching(who), way.options.get("cache")
    if wanted is None:
        return cacher.new_cache(model, rows)
    if not isinstance(who, ChoosesCache) or wanted not in who.caches:
        raise MissingAbility(f"{who.name} offers no choice of a {wanted} cache: new_cache(batch_size, growing=True)")
    return who.new_cache(model, rows, kind=wanted)


def _judge_decode(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, context: int, batch: int = 1
) -> Verifier:
    ids, _ = pool.ids(rows=batch, length=_end(pool, context))

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids[:, : context + VERIFIED_STEPS])[:, context:]

    return near_truth(pool, control, arm_specs, answer, bound=float32_bound(pool.size))


def _end(pool: ModelPool, context: int) -> int:
    end = min(pool.size.context, context + WINDOW)
    if end - context < VERIFIED_STEPS:
        most = pool.size.context - VERIFIED_STEPS
        raise MissingAbility(f"a context of {context} leaves no room to decode in; at most {most} are compared")
    return end


@work_kind("decode", judge=_judge_decode)
def decode(pool: ModelPool, way: ArmSpec, copy: int, *, context: int, batch: int = 1) -> Work:
    """One cached step: the logits of the next position, after `context` positions and up to WINDOW more.

    Arms stand within WINDOW positions of each other. The cache is filled anew between blocks.
    """
    who, model = pool.who(way), pool.model(way, copy)
    end = _end(pool, context)
    ids, _ = pool.ids(rows=batch, length=end)
    cacher = caching(who)
    cache: Any = None
    position, filled = end, 0

    @torch.no_grad()
    def fill() -> None:
        nonlocal cache, position, filled
        with autocast(pool.device, way.autocast):
            cache = new_cache(who, model, way, batch)
            cacher.step(model, ids[:, :context], cache)
        position, filled = context, tensor_bytes(cache)

    def prepare() -> None:
        if end - position < VERIFIED_STEPS:
            fill()

    @torch.no_grad()
    def call() -> Tensor:
        nonlocal position
        if position == end:
            fill()
        with autocast(pool.device, way.autocast):
            logits = cacher.step(model, ids[:, position : position + 1], cache)
        position += 1
        return logits

    def answer() -> Tensor:
        fill()
        return torch.cat([call() for _ in range(VERIFIED_STEPS)], dim=1)  # (B, steps, V)

    def extras() -> dict[str, float]:
        if cache is None:
            fill()
        held = costs.cache_bytes(pool.size, tokens=context, batch=batch, element_bytes=element_bytes(way))
        return {"cache_bytes": filled, "held_cache_bytes": held}

    middle = (context + end) // 2
    cost = costs.decode_step(pool.size, batch=batch, context=middle, element_bytes=element_bytes(way))
    return Work(
        call=call,
        answer=answer,
        prepare=prepare,
        tokens=batch,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=way.computes,
        extras=extras,
    )


def tensor_bytes(holder: object) -> int:
    """The bytes of all tensors that `holder` refers to, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def walk(found: object) -> None:
        if id(found) in seen:
            return
        seen.add(id(found))
        if isinstance(found, Tensor):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        elif isinstance(found, Mapping):
            for value in found.values():
                walk(value)
        elif isinstance(found, (list, tuple)):
            for value in found:
                walk(value)
        elif hasattr(found, "__dict__") and not isinstance(found, (type, torch.nn.Module)):
            walk(vars(found))

    walk(holder)
    return sum(storages.values())
