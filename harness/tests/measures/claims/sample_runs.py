"""Made-up records of `make lessons` and `make bench`, near figures that were measured."""

from __future__ import annotations

import json
from pathlib import Path

from harness.core.record_files import Row, encode
from harness.tests.report.sample_benchmark import comparison
from harness.tests.report.sample_run import run


def lesson_row(lesson: str, arm: str, seed: int = 0, **fields: object) -> Row:
    """Return the row of a run of 1000 steps whose loss falls from ln 65 to 2 without anything unusual."""
    steps = int(str(fields.get("steps", 1000)))
    curve = [[step, 4.2 - 2.2 * step / steps, 6e-4 * min(1.0, (step + 1) / 50), 0.7] for step in range(0, steps, 10)]
    return {
        "kind": "run",
        "name": f"{lesson}-{arm}-seed-{seed}",
        "lesson": lesson,
        "arm": arm,
        "seed": seed,
        "settings": {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
        "vocabulary_size": 65,
        "parameters": 345_000,
        "steps": steps,
        "first_loss": 4.19,
        "last_loss": 2.0 + 0.01 * seed,
        "best_validation": 2.1 + 0.01 * seed,
        "exploded_at": None,
        "curve": curve,
        "validation": [[0, 4.2], [500, 2.3], [1000, 2.1]],
        "samples": [],
        "clipping": [[step, 0.7, 0.7, None] for step in range(0, steps, 10)],
        "lost_updates": [],
        **fields,
    }


def lesson_rows() -> list[Row]:
    """Return the runs of every lesson, with everything that a claim reads."""
    seeds = range(3)
    spiked = [[step, 0.7, 0.7, None] for step in range(0, 300, 10)] + [[200, 12.3, 0.99999992, 0.9999999]]
    words = "the king and the queen of my heart will not go to him"
    return [
        *(lesson_row("schedule", "cosine", seed) for seed in seeds),
        *(lesson_row("schedule", "constant-6e-4", seed, best_validation=2.3, last_loss=2.2) for seed in seeds),
        *(lesson_row("schedule", "constant-1e-5", seed, last_loss=3.3) for seed in seeds),
        lesson_row(
            "loss-and-text", "gpt2", vocabulary_size=50257, parameters=5_000_000, first_loss=10.83,
            validation=[[0, 10.8], [500, 5.1], [1100, 6.0]],
            samples=[
                {"step": 0, "loss": 10.83, "text": "gnome Zurich pixels leukemia raided spectrometer"},
                {"step": 400, "loss": 4.1, "text": words},
            ],
        ),
        lesson_row("clipping", "clipped", steps=300, settings={"inject_spike_at": 200}, clipping=spiked),
        *(lesson_row("masters", "bfloat16", seed, lost_updates=[[0, 0.0], [10, 0.001]]) for seed in seeds),
        *(
            lesson_row("masters", "pure-bfloat16", seed, best_validation=2.4, lost_updates=[[0, 0.3], [10, 0.5]])
            for seed in seeds
        ),
    ]  # fmt: skip


def full_size_rows() -> list[Row]:
    """Return the runs of the lessons' own size as the lessons claim them."""
    big = {"vocabulary_size": 50257, "parameters": 124_439_808}
    return [
        lesson_row("full-size", "cosine", last_loss=2.01, **big),
        lesson_row("full-size", "constant-6e-4", exploded_at=310, **big),
        lesson_row("full-size", "constant-1e-5", last_loss=4.31, steps=10_000, **big),
    ]


def bench_rows(*, flash: float = 0.02, compiled: float = 0.8) -> list[Row]:
    """Return comparisons of attention and of torch.compile, with ceilings; the controls take 0.06 s and 1 s."""
    ceilings = [{"name": "gemm float32 square", "rate": 143e9}, {"name": "read", "rate": 20e9}]
    return [
        comparison(
            "attention", "forward", {"naive": 0.06, "flash": flash}, axis="tokens", point=4096, ceilings=ceilings
        ),
        comparison("compile", "forward", {"eager": 1.0, "compiled": compiled}, axis="tokens", point=256),
    ]


def save(
    folder: Path, kind: str, rows: list[Row], *, subject: str, stamp: str = "20261127T100000Z", **header: object
) -> None:
    """Write a record file of a run into `folder`/records."""
    folder = folder / "records"
    folder.mkdir(exist_ok=True)
    lines = (json.dumps(encode(row)) for row in run(kind, rows, subject=subject, **header))
    (folder / f"{kind}-{stamp}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
