"""The most memory that one call needs beyond what stood before it, by ledgers that do not share their mistakes."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.core.environment import HUGE_PAGES
from harness.core.errors import MissingResource

# In a child with this setting glibc gives every larger block its own pages and returns them at once, so that the
# kernel's high-water mark follows the tensors instead of the heap's habits. Nor are its pages huge, or the mark would
# move by 2 MiB.
MMAP_THRESHOLD_BYTES = 65536
# A child imports torch (seconds), builds the work and does it twice.
CHILD_SECONDS = 300.0
# Two accounts of the same bytes should agree to 5%, or to a megabyte: the kernel counts pages, and does not count
# what the heap held already.
LEDGER_TOLERANCE, LEDGER_SLACK_BYTES = 0.05, 2**20
# What a CUDA allocator keeps, and what the whole device gives out, are other questions than what the call needs.
OTHER_ACCOUNTS = ("reserved", "device")
_DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # c10::DeviceType
_ANSWER = "gpt-harness peak bytes:"


@dataclass(frozen=True)
class Trace:
    """One call as torch.profiler saw it: the exported trace's events, and the peaks in bytes by ledger.

    `seconds` is how long it took under the profiler, which is longer than by itself; 0 on CUDA, where that includes
    emptying the allocator.
    """

    events: list[dict[str, Any]]
    ledgers: dict[str, int]
    seconds: float = 0.0


def peak_bytes(call: Callable[[], object], *, device: str = "cpu") -> dict[str, int]:
    """The exact peak of one call by the allocator's own ledger, under that ledger's name.

    On the CPU every allocation and release of torch's allocator, scratch space inside kernels included: {"profiler"}.
    On CUDA the caching allocator's counters and the driver's: {"allocator", "reserved", "device"}; the first is exact.
    """
    if torch.device(device).type == "cuda":
        return _counted(call, device)
    return trace(call, device=device, shapes=False).ledgers


def trace(call: Callable[[], object], *, device: str = "cpu", shapes: bool = True) -> Trace:
    """Run `call` once under torch.profiler; with `shapes`, each operation's event says what it worked on.

    The exported trace is read because it is the public form of the memory events, and nine times as quick to come by
    as `profiler.events()`. A profiler, unlike a dispatch mode, leaves compiled code compiled.
    """
    # Kineto greets on stderr unless told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_cuda = torch.device(device).type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_cuda
    counted: dict[str, int] = {}
    with torch.profiler.profile(activities=activities, record_shapes=shapes, profile_memory=True) as profiler:
        begun = time.perf_counter()
        if on_cuda:
            counted = _counted(call, device)
        else:
            call()
        seconds = 0.0 if on_cuda else time.perf_counter() - begun
    events = _exported(profiler)
    return Trace(events, counted or {"profiler": _peak(allocations(events, "cpu"))}, seconds)


def _exported(profiler: torch.profiler.profile) -> list[dict[str, Any]]:
    collecting = gc.isenabled()
    gc.disable()  # looking for garbage among a million new events makes reading them four times as slow
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
            return events
    finally:
        if collecting:
            gc.enable()


def allocations(events: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """A trace's accounts of each allocation and release on that kind of device, in the order they happened."""
    kind = _DEVICE_TYPES[torch.device(device).type]
    accounts = (event["args"] for event in events if event.get("name") == "[memory]")
    return [account for account in accounts if account.get("Device Type", 0) == kind]


def _peak(accounts: list[dict[str, Any]]) -> int:
    """The maximum of "Total Allocated", less where it stood before the first.

    Dispatch modes miss what kernels allocate inside, polling misses short peaks, and tracemalloc sees no tensor.
    """
    if not accounts:
        return 0
    before = int(accounts[0]["Total Allocated"]) - int(accounts[0]["Bytes"])
    return max(0, *(int(account["Total Allocated"]) - before for account in accounts))


def _counted(call: Callable[[], object], device: str) -> dict[str, int]:
    """CUDA's three accounts of one call: tensors, what the allocator took for them, what the driver gave out.

    The third is read when the call is over, while the allocator still keeps what it took: it counts the memory that
    libraries take past the allocator, and other processes on the same device.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free = torch.cuda.mem_get_info(device)[0]
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    left = torch.cuda.mem_get_info(device)[0]
    del result
    return {
        "allocator": torch.cuda.max_memory_allocated(device) - allocated,
        "reserved": torch.cuda.max_memory_reserved(device) - reserved,
        "device": max(0, free - left),
    }


def disagreement(ledgers: Mapping[str, int]) -> str | None:
    """What to print when two accounts of the same bytes differ by more than 5% and more than 1 MiB."""
    same = {name: count for name, count in ledgers.items() if name not in OTHER_ACCOUNTS}
    if len(same) < 2:
        return None
    exact = next(iter(same.values()))
    if max(same.values()) - min(same.values()) <= max(LEDGER_TOLERANCE * exact, LEDGER_SLACK_BYTES):
        return None
    told = ", ".join(f"{name} {count / 2**20:.2f} MiB" for name, count in same.items())
    return f"the memory ledgers disagree: {told}"


def peak_bytes_in_child(recipe: str, /, *, limit_seconds: float = CHILD_SECONDS, **arguments: Any) -> int:
    """A second account, by the kernel: a fresh process builds the call that `recipe` names and measures its growth.

    `recipe` is `package.module:function`; the function takes `arguments` (JSON data) and returns the call, which is
    made twice. `threads` among the arguments is the child's own: how many it computes on. Linux only: raises
    MissingResource elsewhere, and RuntimeError with the child's last words when it dies or takes too long.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise MissingResource("the child-process memory ledger needs Linux's /proc/self/clear_refs")
    try:
        # Whatever ends this call early, Ctrl-C included, subprocess.run kills the child on its way out.
        answer = subprocess.run(
            [sys.executable, "-m", "harness.bench.memory", recipe, json.dumps(arguments)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES), HUGE_PAGES: "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the child that measures {recipe} was still busy after {limit_seconds:g} s") from None
    for line in answer.stdout.splitlines():
        if line.startswith(_ANSWER):
            return int(line.removeprefix(_ANSWER))
    last_words = answer.stderr.strip()[-500:] or "no word"
    raise RuntimeError(f"the child that measures {recipe} died with status {answer.returncode}: {last_words}")


def _resident_growth(call: Callable[[], object]) -> int:
    """The peak of one call's resident memory over what was resident before, in bytes."""
    call()  # the first call's kernels and thread pools are not the call's memory
    Path("/proc/self/clear_refs").write_text("5")  # 5: reset the high-water mark to what is resident now
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


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
