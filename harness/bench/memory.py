"""The peak memory of one call beyond what was allocated before it, by independent ledgers."""

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

# With this setting glibc gives every larger block its own pages and returns them at once, so that the kernel's
# high-water mark in the child follows the tensors instead of the heap. The child also has no huge pages: with them the
# mark would move by 2 MiB.
MMAP_THRESHOLD_BYTES = 65536
# A child imports torch (seconds), builds the work and does it twice.
CHILD_SECONDS = 300.0
# Two ledgers of the same bytes should agree to 5%, or to a megabyte: the kernel counts pages, and does not count memory
# that the heap had already.
LEDGER_TOLERANCE, LEDGER_SLACK_BYTES = 0.05, 2**20
# These ledgers count other things than the tensors of a call: the memory that CUDA's allocator reserved, and that of
# the whole device.
OTHER_LEDGERS = ("reserved", "device")
_DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # c10::DeviceType
_ANSWER = "gpt-harness peak bytes:"


@dataclass(frozen=True)
class Trace:
    """One call under torch.profiler: the events of the exported trace, and the peaks in bytes by ledger.

    `seconds` is the duration under the profiler, which is longer than without; 0 on CUDA, where it would include
    emptying the allocator.
    """

    events: list[dict[str, Any]]
    ledgers: dict[str, int]
    seconds: float = 0.0


def peak_bytes(call: Callable[[], object], *, device: str = "cpu") -> dict[str, int]:
    """Return the peak memory of one call in bytes, by ledger; the first ledger is exact.

    On the CPU: {"profiler"}, every allocation and release of torch's allocator, with scratch space inside kernels. On
    CUDA: {"allocator", "reserved", "device"}, the counters of the caching allocator and of the driver.
    """
    if torch.device(device).type == "cuda":
        return _cuda_ledgers(call, device)
    return trace(call, device=device, shapes=False).ledgers


def trace(call: Callable[[], object], *, device: str = "cpu", shapes: bool = True) -> Trace:
    """Run `call` once under torch.profiler and return its trace; with `shapes`, events have the sizes of arguments.

    The exported trace is the public form of the memory events, and nine times as fast to get as `profiler.events()`. A
    profiler, unlike a dispatch mode, leaves compiled code compiled.
    """
    # Otherwise Kineto prints a greeting on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_cuda = torch.device(device).type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_cuda
    ledgers: dict[str, int] = {}
    with torch.profiler.profile(activities=activities, record_shapes=shapes, profile_memory=True) as profiler:
        started = time.perf_counter()
        if on_cuda:
            ledgers = _cuda_ledgers(call, device)
        else:
            call()
        seconds = 0.0 if on_cuda else time.perf_counter() - started
    events = _exported(profiler)
    return Trace(events, ledgers or {"profiler": _peak(allocations(events, "cpu"))}, seconds)


def _exported(profiler: torch.profiler.profile) -> list[dict[str, Any]]:
    collecting = gc.isenabled()
    gc.disable()  # collecting garbage among a million new events makes reading them four times as slow
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
    """Return the records of each allocation and release on that type of device, in order."""
    kind = _DEVICE_TYPES[torch.device(device).type]
    accounts = (event["args"] for event in events if event.get("name") == "[memory]")
    return [account for account in accounts if account.get("Device Type", 0) == kind]


def _peak(accounts: list[dict[str, Any]]) -> int:
    """Return the maximum of "Total Allocated", less its value before the first record.

    Other methods do not work: dispatch modes miss allocations inside kernels, polling misses short peaks, and
    tracemalloc sees no tensor.
    """
    if not accounts:
        return 0
    before = int(accounts[0]["Total Allocated"]) - int(accounts[0]["Bytes"])
    return max(0, *(int(account["Total Allocated"]) - before for account in accounts))


def _cuda_ledgers(call: Callable[[], object], device: str) -> dict[str, int]:
    """Return CUDA's three ledgers of one call: tensors, memory that the allocator reserved, memory of the device.

    The third is read after the call, while the allocator still has what it reserved. It includes memory that libraries
    allocate outside the allocator, and other processes on the same device.
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
    """Return a message if two ledgers of the same bytes differ by more than 5% and more than 1 MiB, else None."""
    same = {name: count for name, count in ledgers.items() if name not in OTHER_LEDGERS}
    if len(same) < 2:
        return None
    exact = next(iter(same.values()))
    if max(same.values()) - min(same.values()) <= max(LEDGER_TOLERANCE * exact, LEDGER_SLACK_BYTES):
        return None
    figures = ", ".join(f"{name} {count / 2**20:.2f} MiB" for name, count in same.items())
    return f"the memory ledgers disagree: {figures}"


def peak_bytes_in_child(recipe: str, /, *, limit_seconds: float = CHILD_SECONDS, **arguments: Any) -> int:
    """Return the peak memory of a call in bytes as the kernel counts it, in a child process that builds the call.

    recipe: `package.module:function`; the function takes `arguments` (JSON data) and returns the call, which is made
        twice.
    threads, among the arguments: the threads that the child computes on; not passed to the function.

    Raises MissingResource except on Linux, and RuntimeError with the end of the child's stderr if the child fails or
    exceeds `limit_seconds`.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise MissingResource("the child-process memory ledger needs Linux's /proc/self/clear_refs")
    try:
        # subprocess.run kills the child if this call ends early, by Ctrl-C too.
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
    last_words = answer.stderr.strip()[-500:] or "no message on stderr"
    raise RuntimeError(f"the child that measures {recipe} died with status {answer.returncode}: {last_words}")


def _resident_growth(call: Callable[[], object]) -> int:
    """Return the peak of one call's resident memory over what was resident before, in bytes."""
    call()  # the first call also starts thread pools and loads kernels
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
