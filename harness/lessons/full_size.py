"""The lessons' own size: one run of a preset that fits a number of minutes, by its measured time of a step."""

from __future__ import annotations

import shutil
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.shipped_packages import HOME
from harness.lessons.lesson_file import LessonRun, Settings
from harness.lessons.run_folder import RunFolder
from harness.lessons.trainer_process import TrainerProcess

PRESETS = HOME / "gpt" / "training" / "presets"  # files, not an import
TRIAL_STEPS, TRIAL_WARM = 30, 10  # the first ones are slower: kernels are chosen and memory is allocated
FOR_STEPS = 0.8  # of the minutes; the rest is for starting, validations, samples and the checkpoint
FEWEST_STEPS = 200  # below this a run shows nothing, and on a CPU it is refused
WARMUP = 0.05  # of the steps, as the lessons have it
VOCABULARIES = {"gpt2": 50257, "bytes": 256, "characters": 65}  # 65: TinyShakespeare's


def preset_settings(name: str) -> dict[str, Any]:
    """Return what a preset of the trainer sets. Raises HarnessError for an unknown one."""
    known = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    if name not in known:
        raise HarnessError(f"the trainer has no preset '{name}'; {did_you_mean(name, known)}")
    return tomllib.loads(known[name].read_text(encoding="utf-8"))


def step_flops(settings: Settings) -> float:
    """Return the FLOPs of one training step: 6 for each weight and token, and 12·L·C·T for each token's attention."""
    layers, width, context = (int(settings[name]) for name in ("n_layer", "n_embd", "block_size"))
    tokens = int(settings.get("batch_size", 8)) * int(settings.get("accumulation", 1)) * context
    weights = VOCABULARIES[str(settings.get("vocabulary", "gpt2"))] * width + 12 * layers * width**2
    return float(tokens * (6 * weights + 12 * layers * width * context))


def measured_flops_per_second() -> float:
    """Return the speed of this CPU in float32 matrix products: the best of a few of 1024³."""
    import torch  # slow to import

    a = torch.ones(1024, 1024)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return float(2 * 1024**3 / min(times))


def refuse_on_cpu(preset: str, settings: Settings, minutes: float) -> None:
    """Raise HarnessError, with the expected time of a step, if the run could not do FEWEST_STEPS on this CPU."""
    rate = measured_flops_per_second()
    flops = step_flops(settings)
    seconds = flops / rate
    if 60 * minutes * FOR_STEPS < FEWEST_STEPS * seconds:
        raise HarnessError(
            f"no GPU here: a step of {preset} takes about {seconds:,.0f} s on this CPU ({flops:.3g} FLOPs "
            f"at {rate / 1e9:,.0f} GFLOP/s), so {minutes:g} minutes are {60 * minutes / seconds:,.0f} steps; "
            "expected a CUDA device, or `gpt-harness lessons` for the size that a CPU carries, or --force"
        )


def measure_step(parent: Path, run: LessonRun) -> float:
    """Return the seconds of a training step of the run on this machine, the median of a trial's.

    Raises HarnessError, with the trainer's last words, if the trial fails.
    """
    off = {"eval_every": 0, "eval_batches": 1, "sample_every": 0, "save_every": 0}
    trial = replace(run, arm=f"{run.arm}-trial", settings={**run.settings, **off, "steps": TRIAL_STEPS, "warmup": 1})
    folder = RunFolder(parent, trial, "trial")
    shutil.rmtree(folder.path, ignore_errors=True)
    process = TrainerProcess(folder, minutes=0, threads=None)
    try:
        while process.status is None:
            time.sleep(0.2)
    except BaseException:
        process.kill()
        raise
    seconds = [float(event["seconds"]) for event in folder.log.steps[TRIAL_WARM:]]
    if process.status != 0 or not seconds:
        raise HarnessError(f"the trial of {run.name} failed: {folder.last_words()}")
    shutil.rmtree(folder.path)
    return median(seconds)


def with_steps(run: LessonRun, minutes: float, step_seconds: float) -> LessonRun:
    """Return the run with as many steps as the minutes carry, and warm-up, validations and samples to match."""
    steps = max(1, int(60 * minutes * FOR_STEPS / step_seconds))
    chosen: dict[str, Any] = {
        "steps": steps,
        "eval_every": max(1, steps // 40),
        "sample_every": max(1, steps // 100),
        "save_every": max(1, steps // 2),
    }
    if run.settings.get("schedule", "cosine") != "constant":
        chosen["warmup"] = max(1, round(WARMUP * steps))
    return replace(run, settings={**run.settings, **chosen})
