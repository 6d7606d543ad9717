"""Measures of side effects: on the process, on the input, on memory and on the terminal."""

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
from harness.core.captured_output import CapturedOutput, captured_output, shorten
from harness.core.errors import MissingAbility
from harness.core.global_state import NUMERICS, PROCESS, RANDOM
from harness.core.limits import resident_bytes
from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

# Passes in a block, over which growth is measured. Caches fill and allocators reserve memory in the first blocks, less
# and less. Growth counts once no block has been a tenth below the smallest for PATIENCE blocks, or after the last one.
PASSES, PATIENCE, BLOCKS = 8, 4, 24


@measure
def answers(subject: Subject, *, size: str, loss: bool = True) -> Reading:
    """Return True if the subject can be built and called, and its loss is finite: all other checks rely on it.

    Without `loss`, the subject is called for its logits alone.
    """
    model = subject.build(SIZES[size])
    ids, targets = _batch(model)
    model.logits(ids)
    return Reading({"built": True, "answers": not loss or bool(torch.isfinite(model.loss(ids, targets)))})


@measure
def changes_to_the_process(subject: Subject, *, size: str) -> Reading:
    """Return the changes to global state by importing, building, calling or training the subject, by setting.

    The settings are the default dtype and device, gradients, threads, seeds, torch's own functions, the working
    directory, signal handlers and others. One pass runs before the measurement, so that changes by lazy imports of
    libraries are not attributed to the subject.
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
    reseeded = [name for name, is_reseeded in _reseeded(subject, size).items() if is_reseeded]
    note(dict.fromkeys(reseeded, "seeded anew"), "on construction")
    drawn = global_state.snapshot(RANDOM)
    model.logits(_batch(model)[0])
    note(global_state.restore(before, settings), "in a forward pass")
    note(dict.fromkeys(global_state.restore(drawn, RANDOM), "drawn from or seeded"), "in an eval forward pass")
    _pass(model)
    note(global_state.restore(before, settings), "in a training pass")
    return Reading(found)


def _reseeded(subject: Subject, size: str) -> dict[str, bool]:
    """Return True for each random generator that has the same state after construction, for different seeds before."""
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
    """Return True for each of ids and targets that a forward or a backward pass changes."""
    model = subject.build(SIZES[size])
    ids, targets = (each.to(model.device) for each in _batch(model))  # the model gets these, no copies
    given, wanted = ids.clone(), targets.clone()
    model.loss(ids, targets).backward()
    with torch.no_grad():
        model.logits(ids)
    return Reading({"ids": not torch.equal(ids, given), "targets": not torch.equal(targets, wanted)})


@measure
def answers_differing(subject: Subject, *, size: str, times: int = 4) -> Reading:
    """Count the repetitions whose logits are not bitwise equal to the first ones, in eval mode.

    Repeats the same model, a second model with the same weights (or, without a weight map, the same seed), and two
    models built with the same seed.
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
    """Return the bytes that are printed by building the subject, and by `calls` forward passes."""
    found: dict[str, int] = {}
    begins = ""

    def count(what: str, action: Callable[[], Any]) -> Any:
        nonlocal begins
        output = CapturedOutput()
        with captured_output(output):
            answer = action()
        found[what] = output.size
        begins = begins or output.begins
        return answer

    model: Model = count("construction", lambda: subject.build(SIZES[size]))
    ids, _ = _batch(model)
    count(f"{calls} forward passes", lambda: [model.logits(ids) for _ in range(calls)])
    return Reading(found, "bytes", {"hint": f"it begins: {shorten(begins, 120)!r}"} if begins else {})


@measure
def growth(subject: Subject, *, size: str, of: Literal["tensors", "Python objects", "the process"]) -> Reading:
    """Return the memory in bytes that each further forward pass, and each training pass, leaves allocated.

    "tensors": the storages of tensors that the garbage collector knows. "Python objects": the memory that tracemalloc
    traces. "the process": resident memory, which includes a graph that is referenced from C++ alone.

    A leak is growth that stays: the smallest of many blocks of passes. What fills up grows less and less.
    """
    model = subject.build(SIZES[size])
    ids, targets = _batch(model)

    def forward() -> None:
        model.logits(ids)  # with gradients enabled: a graph that stays referenced is the most frequent leak

    def train() -> None:
        model.loss(ids, targets).backward()
        model.module.zero_grad(set_to_none=True)

    with _only_new_objects(traced=of == "Python objects"):
        return Reading(
            {"a forward pass": _lasting_growth(forward, of), "a training pass": _lasting_growth(train, of)},
            "bytes a pass",
        )


def _lasting_growth(action: Callable[[], None], of: str) -> float:
    """Return the growth in bytes a call that does not go away with more calls."""
    smallest, since, before = float("inf"), 0, None
    for _ in range(BLOCKS + 1):
        for _ in range(PASSES):
            action()
        now = _allocated(of)
        grown, before = (float("inf") if before is None else (now - before) / PASSES), now
        since = 0 if grown < 0.9 * smallest else since + 1
        smallest = min(smallest, grown)
        if smallest <= 0 or since == PATIENCE:
            break
    return max(0.0, smallest)


@contextlib.contextmanager
def _only_new_objects(*, traced: bool) -> Iterator[None]:
    """Limit garbage collection to objects that are created inside the block: a hundredth of all that torch creates."""
    model_cache.clear()  # the last check's model is not to stay
    gc.collect()
    gc.freeze()
    if traced:
        tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _allocated(of: str) -> int:
    """Return the bytes that are allocated now; see `growth` for the three kinds."""
    gc.collect()
    if of == "Python objects":
        return tracemalloc.get_traced_memory()[0]
    if of == "the process":
        _return_free_memory()
        return resident_bytes(os.getpid())
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type != "meta":
            with contextlib.suppress(NotImplementedError, RuntimeError):  # a tensor without a storage, as a sparse one
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _return_free_memory() -> None:
    """Return freed memory from the C library to the system: a leak that fits into its reserve would not show."""
    with contextlib.suppress(AttributeError, OSError):  # malloc_trim is a function of glibc
        ctypes.CDLL(None).malloc_trim(0)


def _batch(model: Model) -> tuple[Tensor, Tensor]:
    return batch(model.size, "random", rows=2, length=min(24, model.size.context))


def _pass(model: Model) -> None:
    """Run a forward and a backward pass. Errors are ignored here: `answers` reports them."""
    with contextlib.suppress(Exception):
        model.loss(*_batch(model)).backward()


def _loaded(subject: Subject, size: str) -> Model:
    """Build the subject with probe weights, or with its own initial ones if it has no weight map."""
    try:
        return build_with_weights(subject, SIZES[size], state(size, "probe"))
    except MissingAbility:
        return subject.build(SIZES[size], seed=7)
