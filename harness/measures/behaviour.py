"""Measures of behaviour: what a subject does besides answering, to the process, to its input and to itself."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from harness.core import global_state
from harness.core.captured_output import Output, captured_output, cut
from harness.core.errors import MissingAbility
from harness.core.global_state import NUMERICS, PROCESS, RANDOM
from harness.core.limits import resident_bytes
from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights
from harness.suites.measure_registry import Reading, measure

WARM_UP = 3  # passes before memory is counted: caches fill, and allocators take their share


@measure
def answers(subject: Subject, *, size: str) -> Reading:
    """Whether the subject can be built, called and trained a step at all: what every other check takes for granted."""
    model = subject.build(SIZES[size])
    ids, targets = _batch(model)
    model.logits(ids)
    return Reading({"built": True, "answers": bool(torch.isfinite(model.loss(ids, targets)))})


@measure
def changes_to_the_process(subject: Subject, *, size: str) -> Reading:
    """What importing, building, calling or training the subject changes that is global, setting by setting.

    The default dtype and device, gradients, threads, seeds, torch's own functions, the folder, signal handlers ...
    Done once before it is judged, so that what is imported on the way is not laid at the subject's door.
    """
    settings = (*NUMERICS, *PROCESS)
    found = {setting.name: "unchanged" for setting in (*settings, *RANDOM)}

    def note(changed: dict[str, str], when: str) -> None:
        for name, how in changed.items():
            if found[name] == "unchanged":
                found[name] = f"{how}, {when}"

    note(global_state.changed_on_import(subject), "on import")
    before = global_state.snapshot(settings)
    _pass(subject.build(SIZES[size]))
    global_state.restore(before, settings)
    model = subject.build(SIZES[size])
    note(global_state.restore(before, settings), "on construction")
    reseeded = [name for name, is_so in _reseeded(subject, size).items() if is_so]
    note(dict.fromkeys(reseeded, "seeded anew"), "on construction")
    drawn = global_state.snapshot(RANDOM)
    model.logits(_batch(model)[0])
    note(global_state.restore(before, settings), "in a forward pass")
    note(dict.fromkeys(global_state.restore(drawn, RANDOM), "drawn from or seeded"), "in an eval forward pass")
    _pass(model)
    note(global_state.restore(before, settings), "in a training pass")
    return Reading(found)


def _reseeded(subject: Subject, size: str) -> dict[str, bool]:
    """Generators that come out of construction in one and the same state, whatever state they went in with."""
    after: list[dict[str, Any]] = []
    before = global_state.snapshot(RANDOM)
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        subject.build(SIZES[size], seed=seed)
        after.append(global_state.snapshot(RANDOM))
    global_state.restore(before, RANDOM)
    return {name: after[0][name] == after[1][name] for name in before}


@measure
def writes_to_its_input(subject: Subject, *, size: str) -> Reading:
    """Whether ids and targets are what they were after a forward and a backward pass, handed over as they are."""
    model = subject.build(SIZES[size])
    ids, targets = _batch(model)
    given, wanted = ids.clone(), targets.clone()
    model.loss(ids, targets).backward()
    with torch.no_grad():
        model.logits(ids)
    return Reading({"ids": not torch.equal(ids, given), "targets": not torch.equal(targets, wanted)})


@measure
def answers_differing(subject: Subject, *, size: str, times: int = 4) -> Reading:
    """Repetitions whose logits are not bit for bit the first ones: the same model again, and built again.

    Eval mode; the second build has the same seed, and the weights of the first where it can be loaded.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=min(24, SIZES[size].context))
    models = [_loaded(subject, size) for _ in range(2)]
    with torch.no_grad():
        first = models[0].logits(ids).clone()
        again = [models[0].logits(ids) for _ in range(times - 1)]
        rebuilt = models[1].logits(ids)
        seeded = [subject.build(SIZES[size], seed=7).logits(ids) for _ in range(2)]
    return Reading(
        {
            "the same model again": sum(not torch.equal(answer, first) for answer in again),
            "the same weights in a new model": int(not torch.equal(rebuilt, first)),
            "a new model of the same seed": int(not torch.equal(*seeded)),
        },
        "answers",
    )


@measure
def printed(subject: Subject, *, size: str, calls: int = 10) -> Reading:
    """Bytes that building the subject and calling it so many times prints, by each."""
    found: dict[str, int] = {}
    begins = ""

    def count(what: str, action: Callable[[], Any]) -> Any:
        nonlocal begins
        output = Output()
        with captured_output(output):
            answer = action()
        found[what] = output.size
        begins = begins or output.begins
        return answer

    model: Model = count("construction", lambda: subject.build(SIZES[size]))
    ids, _ = _batch(model)
    count(f"{calls} forward passes", lambda: [model.logits(ids) for _ in range(calls)])
    return Reading(found, "bytes", {"hint": f"it begins: {cut(begins, 120)!r}"} if begins else {})


@measure
def growth(
    subject: Subject, *, size: str, of: Literal["tensors", "Python objects", "the process"], calls: int = 4
) -> Reading:
    """Memory that each further forward pass, and each training pass, leaves behind, in bytes.

    `tensors`: those that garbage collection knows, by their storages. `Python objects`: as tracemalloc traces them.
    `the process`: resident memory, which sees a graph that is kept in C++ too. Counted twice over `calls` passes each
    after a warm-up, and the smaller of the two growths taken: a cache that fills is in one of them, a leak in both.
    """
    model = subject.build(SIZES[size])
    ids, targets = _batch(model)

    def forward() -> None:
        model.logits(ids)  # with gradients on: a graph that is kept is the leak that is met most often

    def train() -> None:
        model.loss(ids, targets).backward()
        model.module.zero_grad(set_to_none=True)

    found: dict[str, float] = {}
    with _from_here(traced=of == "Python objects"):
        for name, action in (("a forward pass", forward), ("a training pass", train)):
            sizes = []
            for passes in (WARM_UP, calls, calls):
                for _ in range(passes):
                    action()
                sizes.append(_held(of))
            first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
            found[name] = max(0.0, min(first, second) / calls)
    return Reading(found, "bytes a pass")


@contextlib.contextmanager
def _from_here(*, traced: bool) -> Iterator[None]:
    """While open, collections look only at what is made from now on: a hundred times less than all of torch."""
    gc.collect()
    gc.freeze()
    if traced:
        tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        if not model_cache.frozen:
            gc.unfreeze()


def _held(of: str) -> int:
    gc.collect()
    if of == "Python objects":
        return tracemalloc.get_traced_memory()[0]
    if of == "the process":
        _return_free_memory()
        return resident_bytes(os.getpid())
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type != "meta":
            with contextlib.suppress(NotImplementedError, RuntimeError):  # a tensor without a storage of its own
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _return_free_memory() -> None:
    """Have the C library give back what it keeps of freed memory: a leak that fits into that would not show."""
    with contextlib.suppress(AttributeError, OSError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _batch(model: Model) -> tuple[Tensor, Tensor]:
    return batch(model.size, "random", rows=2, length=min(24, model.size.context))


def _pass(model: Model) -> None:
    """A forward and a backward pass; that the one or the other breaks is another check's affair."""
    with contextlib.suppress(Exception):
        model.loss(*_batch(model)).backward()


def _loaded(subject: Subject, size: str) -> Model:
    """With probe weights, or as it starts where it cannot be loaded."""
    try:
        return build_with_weights(subject, SIZES[size], state(size, "probe"))
    except MissingAbility:
        return subject.build(SIZES[size], seed=7)
