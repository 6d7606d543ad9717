"""The environment of a run as data: versions, device, processor and revision."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Return what the numbers of a run depend on beside its configuration."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "platform": platform.platform(),
        "revision": revision(),
    }


def cpu_model() -> str:
    """Return the processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def revision() -> str | None:
    """Return the git revision of this program, with "+changes" if files differ from it.

    None without git, and for a program that is installed in the folder of another project.
    """
    here = Path(__file__).resolve().parents[1] / "__init__.py"
    commands = (
        ["ls-files", "--error-unmatch", here.name],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, head, changes = (
            subprocess.run(
                ["git", *words], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changes else "")
