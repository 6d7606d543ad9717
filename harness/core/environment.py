"""The environment of a run, which its results depend on: versions, processor, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tiktoken", "numpy", "pytest", "pytest-benchmark", "gpt-harness")

# Torch's environment variable for pages of 2 MiB under large tensors, where the kernel provides them on request.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def enable_huge_pages() -> None:
    """Have torch allocate large tensors on pages of 2 MiB, unless the environment variable is already set.

    Torch reads the variable once, so call this before the first tensor is made. Each call's memory comes from the
    kernel as new pages. With huge pages, forward and backward of 64 tokens at 124M took 0.83 of the time, the median
    of 16 pairs of builds (0.66 to 1.05), on a virtual machine.
    """
    os.environ.setdefault(HUGE_PAGES, "1")


def environment(folder: Path) -> dict[str, Any]:
    """Return the machine, the versions and the git commit of `folder`, as a JSON-ready mapping.

    `git_dirty` is True if the commit is not all of the code: a tracked file has changed, or a Python file is not
    tracked. Another repository inside this one does not count. None if git does not say.
    """
    import torch  # here to save start-up time: the rest of this module does not need it

    versions = {name: _version(name) for name in PACKAGES}
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=all") if commit else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": versions["transformers"],
        "packages": versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "huge_pages": os.environ.get(HUGE_PAGES),
        "preloaded": os.environ.get("LD_PRELOAD"),  # may be another memory allocator
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "git_commit": commit,
        "git_dirty": None if changes is None else any(map(_is_change, changes.splitlines())),
    }


def _is_change(line: str) -> bool:
    return not line.startswith("?? ") or line.rstrip('"').endswith(".py")


def peak_memory_bytes() -> int:
    """Return the peak resident memory in bytes of this process, or of a finished child if that is larger."""
    import resource  # here: there is no such module on Windows

    peaks = (resource.getrusage(process).ru_maxrss for process in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)  # ru_maxrss: bytes on macOS, KiB on Linux


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        completed = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None
