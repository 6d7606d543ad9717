"""The rows of a record file of the lessons' runs, made by hand: curves that look as curves do."""

import math

from harness.tests.report.sample_run import run as records

STEPS = 200
LESSONS = [
    {"name": name, "title": f"The title of {name}", "claim": f"The claim of {name}.", "about": "What is done here.",
     "runs": runs}
    for name, runs in {
        "schedule": [f"schedule-{arm}-seed-{seed}" for arm in ("cosine", "constant-6e-4") for seed in (0, 1)]
        + ["schedule-constant-1e-1-seed-0", "schedule-cosine-1e-1-seed-0"],
        "loss-and-text": ["loss-and-text-gpt2-seed-0"],
        "clipping": ["clipping-clipped-seed-0", "clipping-unclipped-seed-0"],
        "masters": [f"masters-{arm}-seed-0" for arm in ("float32", "pure-bfloat16")],
        "experts": [f"experts-{arm}-seed-0" for arm in ("balanced", "unbalanced", "dense")],
    }.items()
]  # fmt: skip


def loss_at(step, *, start=4.2, end=2.0, speed=30.0, seed=0):
    noise = 0.05 * math.sin(7.0 * step + seed)
    return end + (start - end) * math.exp(-step / speed) + noise


def row(lesson, arm, seed=0, *, lr=6e-4, losses=None, validation=None, samples=(), spike=None, lost=None, **more):
    """Return the row of a run, with the keys that a run has."""
    losses = losses or [loss_at(step, seed=seed) for step in range(STEPS)]
    norms = [12.3 if step == spike else 0.8 + 0.2 * math.sin(step) for step in range(len(losses))]
    limit = more.get("settings", {}).get("clip", 1.0)
    after = [min(norm, limit) if limit else norm for norm in norms]
    cosines = [1.0 if a < b else None for a, b in zip(after, norms, strict=True)]
    return {
        "kind": "run",
        "name": f"{lesson}-{arm}-seed-{seed}",
        "lesson": lesson,
        "arm": arm,
        "seed": seed,
        "settings": {
            "n_layer": 3,
            "n_embd": 96,
            "block_size": 64,
            "vocabulary": "characters",
            **more.pop("settings", {}),
        },
        "text_characters": 0,
        "vocabulary_size": 65,
        "parameters": 348_096,
        "train_tokens": 1_003_854,
        "tokens_per_step": 1024,
        "device": "cpu",
        "steps": len(losses),
        "tokens": 1024 * len(losses),
        "first_loss": losses[0],
        "last_loss": sum(losses[-20:]) / 20,
        "best_validation": min((loss for _, loss in validation or []), default=None),
        "exploded_at": None,
        "curve": [[step, loss, lr, norm] for step, (loss, norm) in enumerate(zip(losses, norms, strict=True))],
        "validation": validation or [],
        "samples": list(samples),
        "clipping": [[s, n, a, c] for s, (n, a, c) in enumerate(zip(norms, after, cosines, strict=True))],
        "lost_updates": [[step, lost] for step in range(len(losses))] if lost is not None else [],
        "speed": [[step, 9000.0 + 300 * math.sin(step)] for step in range(len(losses))],
        "tokens_per_second": 9000.0,
        "seconds": 61.5,
        "ended": "finished",
        "made": {"date": "2026-11-22T15:30:00Z", "git_commit": "d3ab9a4"},
        **more,
    }


def story():
    losses = [loss_at(step, start=10.83, end=1.9, speed=40) for step in range(STEPS)]
    validation = [[s, loss_at(s, start=10.8, end=5.0, speed=30) + s / 150] for s in range(0, STEPS, 10)]
    texts = {
        0: "industrial Total/?repre",
        60: "the the\nand, I",
        84: "First Citizen:\nWe are",
        110: "We are accounted poor",
    }
    samples = [{"step": step, "loss": losses[step], "text": text} for step, text in texts.items()]
    return row("loss-and-text", "gpt2", losses=losses, validation=validation, samples=samples, vocabulary_size=50257)


def schedule():
    every = [row("schedule", "cosine", seed, validation=[[100, 2.1], [200, 2.0]]) for seed in (0, 1)]
    every += [row("schedule", "constant-6e-4", seed) for seed in (0, 1)]
    exploded = [4.2, 3.5, 3.3, *[9.0] * 40, *[3.4] * 40]
    every.append(row("schedule", "constant-1e-1", lr=0.1, losses=exploded, exploded_at=8))
    every.append(row("schedule", "cosine-1e-1", lr=0.1))
    return every


def clipping():
    return [
        row("clipping", "clipped", spike=100, settings={"clip": 1.0, "inject_spike_at": 100}),
        row("clipping", "unclipped", spike=100, settings={"clip": 0.0, "inject_spike_at": 100}),
    ]


def masters():
    return [row("masters", "float32", lost=0.0001), row("masters", "pure-bfloat16", seed=0, lost=0.62)]


def shares(step, crowded):
    """Return the shares of four experts in two layers: the first one's grows to `crowded`."""
    first = 0.25 + (crowded - 0.25) * min(1.0, step / 60)
    return [[first, *[(1 - first) / 3] * 3], [0.25] * 4]


def experts():
    crowded = {"balanced": 0.3, "unbalanced": 0.97}
    every = [
        row("experts", arm, expert_shares=[[s, shares(s, most), 4 * most**2] for s in range(0, STEPS, 5)],
            parameters=2_300_000, active_parameters=360_000)
        for arm, most in crowded.items()
    ]  # fmt: skip
    return [*every, row("experts", "dense", active_parameters=348_096)]


def lesson_rows(rows=None, **more):
    """Return the rows of a record file, by default of every lesson."""
    rows = [*schedule(), story(), *clipping(), *masters(), *experts()] if rows is None else rows
    more = {"lessons": LESSONS, "definitions": {"exploded_at": "A run explodes when it does."}, **more}
    return records("lessons", rows, subject="gpt.train", **more)
