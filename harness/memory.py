"""The most memory that one call needs beyond what stood before it, by ledgers that do not share their mistakes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.errors import MissingResource

# In a child with this setting glibc gives every larger block its own pages and returns them at once, so that the
# kernel's high-water mark follows the tensors instead of the heap's habits.
MMAP_THRESHOLD_BYTES = 65536
_ANSWER = "gpt-harness peak bytes:"


def peak_bytes(call: Callable[[], object], *, device: str = "cpu") -> dict[str, int]:
    """The exact peak of one call by the allocator's own ledger, under that ledger's name.

    On the CPU every allocation and release of torch's allocator, scratch space inside kernels included: {"profiler"}.
    On CUDA the caching allocator's counters: {"allocator", "reserved"}; the first is the exact one.
    """
    if torch.device(device).type == "cuda":
        return _cuda_peak(call, device)
    return {"profiler": _profiled_peak(call)}


def _profiled_peak(call: Callable[[], object]) -> int:
    """The maximum of "Total Allocated" over the trace's memory events, less where it stood before the first.

    The exported trace is read because it is the public form of these events; dispatch modes miss what kernels
    allocate inside, polling misses short peaks, and tracemalloc sees no tensor at all.
    """
    # Kineto greets on stderr unless told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    events = [event["args"] for event in events if event["args"].get("Device Type", 0) == 0]
    if not events:
        return 0
    before = int(events[0]["Total Allocated"]) - int(events[0]["Bytes"])
    return max(0, *(int(event["Total Allocated"]) - before for event in events))


def _cuda_peak(call: Callable[[], object], device: str) -> dict[str, int]:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return {
        "allocator": torch.cuda.max_memory_allocated(device) - allocated,
        "reserved": torch.cuda.max_memory_reserved(device) - reserved,
    }


def peak_bytes_in_child(recipe: str, /, **arguments: Any) -> int:
    """A second account, by the kernel: a fresh process builds the call that `recipe` names and measures its growth.

    `recipe` is `package.module:function`; the function takes `arguments` (JSON data) and returns the call. Linux
    only: raises MissingResource elsewhere, and RuntimeError with the child's last words when it dies.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise MissingResource("the child-process memory ledger needs Linux's /proc/self/clear_refs")
    answer = subprocess.run(
        [sys.executable, "-m", "harness.memory", recipe, json.dumps(arguments)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES)},
        capture_output=True,
        text=True,
        check=False,
    )
    for line in answer.stdout.splitlines():
        if line.startswith(_ANSWER):
            return int(line.removeprefix(_ANSWER))
    raise RuntimeError(f"the child that measures {recipe} died: {answer.stderr.strip()[-500:]}")


def _resident_growth(call: Callable[[], object]) -> int:
    """The peak of one call's resident memory over what was resident before, in bytes."""
    call()  # the first call's kernels and thread pools are not the call's memory
    Path("/proc/self/clear_refs").write_text("5")  # 5: reset the high-water mark to what is resident now
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return peak - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise MissingResource(f"/proc/self/status has no {field}")


def _main(recipe: str, arguments: str) -> None:
    module, function = recipe.split(":")
    given = json.loads(arguments)
    torch.set_num_threads(given.pop("threads", torch.get_num_threads()))
    call = getattr(importlib.import_module(module), function)(**given)
    print(_ANSWER, _resident_growth(call))


if __name__ == "__main__":
    _main(*sys.argv[1:])
