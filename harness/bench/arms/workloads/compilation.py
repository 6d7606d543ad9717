"""Calls that are compiled or captured: the time of a compiling first call, and a call as a CUDA graph."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from harness.bench.arms.registry import ArmSpec


def first_call_figures(arm: ArmSpec, call: Callable[[], object]) -> Callable[[], Mapping[str, float]]:
    """Make a compiled arm's first call, which compiles, and return a function that returns its time as a figure.

    For an arm that is not compiled, nothing is called and there are no figures.
    """
    if not arm.compiled:
        return dict
    with tempfile.TemporaryDirectory() as folder, _inductor_cache(folder):
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
    return lambda: {"first_call_seconds": seconds}


@contextlib.contextmanager
def _inductor_cache(folder: str) -> Iterator[None]:
    """Use `folder` as Inductor's cache inside the block, so that code that another run compiled is compiled again."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def as_cuda_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture the call's kernels in one CUDA graph, and return a call that launches them together, without Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries make their plans and workspaces here, before anything is captured
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
