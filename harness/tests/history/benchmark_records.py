"""Records of benchmark runs with known times, for the tests of everything that compares runs."""

import json
import math
from pathlib import Path

from harness.history.benchmark_runs import run_from_rows

FOOTER = {"kind": "footer", "complete": True}
ARMS = ("naive", "flash", "naive-again")


def comparison(rng, factors, *, machine=1.0, noise=0.01, bias=0.0, ceilings=("gemm",), rounds=24, point=512, **fields):
    """Return a row: arms whose times are `factors` of the machine's, and ceilings of the machine alone.

    `bias` is the standard deviation of an error of the logarithm of each time, shared by all rounds of the run.
    """

    def times(factor):
        factor *= machine * math.exp(rng.gauss(0, bias))
        return [factor * math.exp(rng.gauss(0, noise)) for _ in range(rounds)]

    return {
        "kind": "comparison", "comparison": "attention", "metric": "forward", "axis": "tokens", "point": point,
        "control": "naive", "size": "124M", "device": "cpu", "threads": 2, "quick": False, "subject": "gpt:GPT",
        "arms": [
            {
                "arm": name, "twin_of": "naive" if name.endswith("-again") else None, "seconds": times(factor),
                "verified": {"verdict": "pass", "message": ""}, "tokens_per_call": 512,
                "peak_memory_bytes": 1000, "error": 1e-6,
            }
            for name, factor in factors.items()
        ],
        "ceilings": [{"name": name, "seconds": times(1.0)} for name in ceilings],
        **fields,
    }  # fmt: skip


def header(cpu="one", **environment):
    return {"kind": "header", "schema": 1, "run": "bench", "environment": {"cpu": cpu, **environment}}


def record(folder, stamp, rows, *, footer=FOOTER, cpu="one"):
    path = folder / f"bench-{stamp}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [header(cpu), *rows, *([footer] if footer else [])]))
    return path


def run(rng, factor=1.0, points=(512,), **options):
    factors = dict.fromkeys(ARMS, factor)
    return run_from_rows(
        Path(f"{rng.random()}"), [header(), *(comparison(rng, factors, point=p, **options) for p in points)]
    )
