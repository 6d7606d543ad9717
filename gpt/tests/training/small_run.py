"""A run of a fraction of a second, started as a user starts it, and what it wrote."""

import json
import random
from pathlib import Path
from typing import Any

from gpt.train import main
from gpt.training.run_log import read_log

FLAGS = [
    *("--vocabulary=characters", "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4"),
    *("--steps=8", "--warmup=2", "--lr=1e-2", "--min-lr=1e-3", "--eval-every=3", "--eval-batches=2"),
    *("--sample-every=4", "--sample-tokens=8", "--save-every=4", "--device=cpu"),
]
"""8 steps: validation after 0, 3, 6 and 8, samples after 0, 4 and 8, checkpoints after 4 and 8."""


def write_text(folder: Path, words: int = 300) -> Path:
    """Write a text of random words, about 3 characters each, and return its path."""
    path = folder / "text.txt"
    path.write_text("".join(random.Random(0).choices(("bad ", "ace ", "fed\n", "a "), k=words)))
    return path


def train(out: Path, *flags: object) -> int:
    """Start a new run in a folder and return the exit status. The text is beside the folder."""
    text = out.parent / "text.txt"
    if not text.exists():
        write_text(out.parent)
    return main([*FLAGS, "--text", str(text), "--out", str(out), *map(str, flags)])


def resume(out: Path, *flags: object) -> int:
    """Resume the run in a folder and return the exit status."""
    return main(["--resume", str(out), *map(str, flags)])


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a run's log."""
    return [event for event in read_log(out / "log.jsonl") if event["event"] == kind]


def losses(out: Path) -> list[tuple[int, float, float, float]]:
    """Return what the log says about each step and does not depend on the clock."""
    return [(event["step"], event["loss"], event["lr"], event["norm"]) for event in events(out, "step")]


def manifest(out: Path, name: str) -> dict[str, Any]:
    """Return the manifest of a checkpoint."""
    return json.loads((out / "checkpoints" / name / "manifest.json").read_text())


def saved(out: Path) -> list[str]:
    """Return the names of what is in the folder of checkpoints."""
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def shown_steps(out: Path) -> list[list[int]]:
    """Return the steps of all best checkpoints, validations and samples in a log."""
    best = [event["step"] for event in events(out, "checkpoint") if event["name"] == "best"]
    return [best, *([event["step"] for event in events(out, kind)] for kind in ("validation", "sample"))]


def same_weights(one: Path, other: Path, name: str = "step-00000008") -> bool:
    """Return True if two runs have the same bytes of weights in a checkpoint."""
    sums = [manifest(out, name)["files"]["weights.safetensors"] for out in (one, other)]
    return bool(sums[0] == sums[1])
