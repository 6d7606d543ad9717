"""Made-up records of a benchmark run, near figures that were measured on a 2-core machine; seeded."""

from __future__ import annotations

import math
import random
from typing import Any

from harness.core.record_files import Row


def comparison(
    name: str,
    metric: str,
    arms: dict[str, float | None],
    *,
    twin: bool = False,
    control: str | None = None,
    **fields: Any,
) -> Row:
    """Return a comparison at one point. `arms` has median seconds, None for a failed arm; the first is the control."""
    noise = random.Random(f"{name} {metric} {fields.get('point')}")
    control = control or next(iter(arms))
    if twin:
        arms = {**arms, f"{control}-again": float(arms[control] or 1) * noise.uniform(0.99, 1.01)}
    rows, ratios = [], []
    for arm, median in arms.items():
        verified: Row = {"verdict": "pass", "message": ""}
        if median is None:
            verified = {"verdict": "fail", "message": "logits differ from the truth by 0.31, allowed is 0.02"}
        rows.append({
            "arm": arm, "twin_of": control if arm == f"{control}-again" else None, "verified": verified,
            "seconds": [median] * 12 if median else None, "median_seconds": median,
            "spread_seconds": median * noise.uniform(0.008, 0.025) if median else None,
            "tokens_per_second": None, "positions": None, "positions_closed_form": None, "peak_memory_bytes": None,
            "peak_memory_ledger": None, "ledgers": {},
        })  # fmt: skip
        if arm != control and median and arms[control]:
            ratio, half = median / float(arms[control] or 1), noise.uniform(0.01, 0.03)
            verdict = "FASTER" if ratio * (1 + half) < 1 else "SLOWER" if ratio * (1 - half) > 1 else "UNRESOLVED"
            ratios.append({
                "arm": arm, "against": control, "ratio": ratio, "low": ratio * (1 - half), "high": ratio * (1 + half),
                "verdict": verdict, "smallest_resolvable": 1.6 * half, "rounds": 12,
                "p": math.erfc(abs(math.log(ratio)) / (half / 1.96) / math.sqrt(2)),
            })  # fmt: skip
    return {
        "kind": "comparison", "comparison": name, "title": None, "subject": "gpt:GPT", "axis": None, "point": None,
        "metric": metric, "effect": 0.05, "control": control, "arms": rows, "ratios": ratios, **fields,
    }  # fmt: skip


def bench_rows() -> list[Row]:
    """Return the comparisons that `pytest benchmarks/` makes, and its expected metrics."""
    return [
        *precision(),
        *attention(),
        *generation(),
        *decode(),
        *compiling(),
        *loading(),
        *peers(),
        *expected_metric_rows(),
    ]


def bench_footer(rows: list[Row]) -> Row:
    """Return what the footer of a benchmark run adds: p adjusted over all ratios (Holm, 1979), and the false alarms."""
    ratios = [
        ({key: row[key] for key in ("comparison", "metric", "point")} | {"arm": ratio["arm"]}, ratio)
        for row in rows
        if row["kind"] == "comparison"
        for ratio in row["ratios"]
    ]
    judged = sorted((pair for pair in ratios if not pair[0]["arm"].endswith("-again")), key=lambda pair: pair[1]["p"])
    adjusted, highest = [], 0.0
    for rank, (where, ratio) in enumerate(judged):
        highest = min(1.0, max(highest, (len(judged) - rank) * ratio["p"]))
        adjusted.append({**where, "p": ratio["p"], "adjusted": highest})
    twins = [ratio["verdict"] for where, ratio in ratios if where["arm"].endswith("-again")]
    flagged = sum(verdict in {"FASTER", "SLOWER"} for verdict in twins)
    share = flagged / max(1, len(twins))
    false_alarms = {"pairs": len(twins), "flagged": flagged, "share": share, "evidence": share <= 0.10}
    return {"adjusted": adjusted, "false_alarms": false_alarms}


# What a machine allows: FLOP/s, byte/s, seconds a launch. The first is of two cores, the second of one accelerator.
CPU = {"gemm float32": 143e9, "gemm bfloat16": 206e9, "read": 21.4e9, "copy": 15.2e9, "launch": 4.1e-6}


CUDA = {"gemm float32": 51e12, "gemm bfloat16": 790e12, "read": 3.1e12, "copy": 2.7e12, "launch": 5.2e-6}


PARAMETERS = 124_439_808


def costed(
    row: Row,
    *,
    flops: float,
    moved: float | dict[str, float],
    products: dict[str, str] | None = None,
    machine: dict[str, float] = CPU,
    operations: int = 300,
) -> Row:
    """Return the comparison as the current version records it, with ceilings, work, regime, witness and error."""
    noise = random.Random(f"{row['comparison']} {row['metric']} {row['point']} costs")
    for arm in row["arms"]:
        name = arm["arm"].removesuffix("-again")
        kind = (products or {}).get(name, "float32")
        traffic = moved[name] if isinstance(moved, dict) else moved
        arm |= {
            "flops": flops, "moved_bytes": traffic, "warm": {"reached": True, "calls": 5}, "extras": {},
            "error": {"float32": 3.1e-7, "bfloat16": 4.4e-3}[kind] * noise.uniform(0.8, 1.2),
            "witness": {"products": {kind: 0.98, "float64": 0.02},
                        "attention": [name] if name in {"naive", "flash"} else [], "kernels": ["aten::addmm"],
                        "compiled": name == "compiled", "busy_threads": 1.9, "operations": operations},
        }  # fmt: skip
        if arm["median_seconds"]:
            least = [
                (flops / machine[f"gemm {kind}"], "compute", f"gemm {kind}"),
                (traffic / machine["read"], "bandwidth", "read"),
                (operations * machine["launch"], "launch", "launch"),
            ]
            fraction, regime, name = max(least)
            fraction /= arm["median_seconds"]
            arm["ceiling"] = {"name": name, "regime": regime, "fraction": fraction, "low": fraction * 0.98,
                              "high": fraction * 1.02}  # fmt: skip
    return {**row, "size": "124M", "device": "cuda" if machine is CUDA else "cpu", "threads": 2, "load": 0.3,
            "quick": False, "stopped": "interval", "calls_per_block": 3, "notes": [],
            "ceilings": [ceiling_row(name, rate, noise) for name, rate in machine.items()]}  # fmt: skip


def ceiling_row(name: str, rate: float, noise: random.Random) -> Row:
    """Return a ceiling as it is measured in turn with the arms of a comparison."""
    flops = 2.0 * 1024**3 if name.startswith("gemm") else None
    moved = None if flops or name == "launch" else 2.0**28
    rate *= noise.uniform(0.98, 1.02)
    seconds = rate if name == "launch" else (flops or moved or 1.0) / rate
    blocks = [seconds * noise.uniform(1.0, 1.04) for _ in range(12)]
    return {"name": name, "seconds": blocks, "flops": flops, "moved_bytes": moved, "rate": rate}


def expected_metric_rows() -> list[Row]:
    """Return exponents of the attention comparison; one is wrong, one is inconclusive."""
    points = [512, 1024, 2048, 4096]
    return [
        expected_metric("naive", "exponent of memory over tokens", 1.98, 1.96, 2.00, "2 by closed form", points=points),
        expected_metric("flash", "exponent of memory over tokens", 1.00, 0.99, 1.01, "1 by closed form", points=points),
        expected_metric("naive", "exponent of time over tokens", 1.94, 1.91, 1.98, 2.0, verdict="fail", points=points),
        expected_metric(
            "flash", "exponent of time over tokens", 1.87, 1.55, 2.19, 2.0, verdict="unresolved", points=points
        ),
    ]


def expected_metric(arm: str, what: str, found: float, low: float, high: float, expected: Any, **fields: Any) -> Row:
    """Return a metric that is compared with its expected value."""
    return {
        "kind": "held", "comparison": "attention", "metric": "forward", "arm": arm, "what": what, "found": found,
        "low": low, "high": high, "expected": expected, "verdict": "pass", "points": [], **fields,
    }  # fmt: skip


def precision() -> list[Row]:
    """fp32 against bf16; the pure bf16 arm is broken in decode."""
    times: dict[str, dict[str, float | None]] = {
        "forward": {"fp32": 2.02, "bf16": 1.44, "bf16-autocast": 1.61},
        "training step": {"fp32": 1.62, "bf16": 1.12, "bf16-autocast": 1.63},
        "decode": {"fp32": 1.778, "bf16": None, "bf16-autocast": 2.31},
    }
    points = {"forward": 512, "training step": 256, "decode": None}
    products = {"bf16": "bfloat16", "bf16-autocast": "bfloat16"}
    rows = []
    for metric, arms in times.items():
        point = points[metric]
        axis = "tokens" if point else None
        row = comparison("precision", metric, arms, twin=True, axis=axis, point=point, title="fp32 against bf16")
        for arm in row["arms"]:
            arm["tokens_per_second"] = (point or 64) / arm["median_seconds"] if arm["median_seconds"] else None
        passes, calls = 3 if metric == "training step" else 1, 64 if metric == "decode" else 1
        moved = {name: PARAMETERS * calls * passes * (2.0 if name == "bf16" else 4.0) for name in arms}
        flops = 2.0 * PARAMETERS * (point or 64) * passes
        rows.append(costed(row, flops=flops, moved=moved, products=products, operations=300 * calls))
    rows[1]["arms"][2]["warm"] = {"reached": False, "calls": 50}
    rows[1]["notes"] = ["bf16-autocast casts 148 weights at every step, which costs what its products save"]
    return rows


def attention() -> list[Row]:
    """Naive and flash attention over lengths; a layer's own attention, looped too; the whole model at one length."""
    rows = []
    for tokens in (128, 256, 512, 1024, 2048, 4096):
        naive = 2e-4 + tokens * 2.2e-6 + tokens**2 * 4.1e-8
        flash = 1.2e-4 + tokens * 2.0e-6 + tokens**2 * 2.5e-8
        sizes = {"naive": 12 * tokens**2 * 8 + tokens * 3072, "flash": tokens * 3700 + 30_000}
        flops = 4.0 * tokens**2 * 768
        moved = {"naive": 12.0 * tokens**2 * 16 + tokens * 12288, "flash": tokens * 12288.0}
        moved["looped"] = moved["naive"]
        row = over_length("forward", tokens, {"naive": naive, "flash": flash}, sizes)
        rows.append(costed(row, flops=flops, moved=moved, operations=9))
        if tokens < 4096:
            projections = tokens * 8.0 * 768**2
            arms = {"naive": 1.1 * naive, "looped": 1.6 * naive, "flash": 1.1 * flash}
            arms = {name: seconds + projections / 110e9 for name, seconds in arms.items()}
            sizes = {name: size + tokens * 12288 for name, size in {**sizes, "looped": 9 * tokens**2}.items()}
            row = over_length("layer forward", tokens, arms, sizes)
            rows.append(costed(row, flops=flops + projections, moved=moved, operations=14))
    rows.append(over_length("model forward", 1024, {"naive": 2.51, "flash": 2.02}, {"naive": 4.1e8, "flash": 2.2e8}))
    return rows


def decode() -> list[Row]:
    """One step with a cache over the length of the context, and what the bandwidth allows."""
    rows = []
    for context in (64, 128, 256, 512, 1000):
        arms = {"cached": 0.0289 + context * 5.1e-6, "static-cache": 0.0267 + context * 3.2e-6}
        row = comparison("generation", "decode", arms, twin=True, axis="context", point=context)
        for arm in row["arms"]:
            arm |= {"tokens_per_call": 1, "tokens_per_second": 1 / arm["median_seconds"]}
        moved = PARAMETERS * 4.0 + 2 * 12 * 768 * 4.0 * context
        rows.append(costed(row, flops=2.0 * PARAMETERS + 48.0 * 768 * context, moved=moved))
    return rows


def compiling() -> list[Row]:
    """Eager against compiled, with what compiling costs; and an arm that claims more than the machine can do."""
    arms: dict[str, float | None] = {"eager": 2.02, "compiled": 1.985, "impossible": None}
    row = comparison("compile", "forward", arms, twin=True, axis="tokens", point=512, title="Compiled against eager")
    row = costed(row, flops=2.0 * PARAMETERS * 512, moved=PARAMETERS * 4.0)
    row["ratios"][0] |= {"ratio": 0.983, "low": 0.969, "high": 0.997, "verdict": "FASTER", "p": 0.02}
    eager, compiled, impossible, _ = row["arms"]
    for arm, seconds in ((eager, 0.0), (compiled, 41.8)):
        arm["extras"] = {"compile_seconds": seconds, "graph_breaks": 0}
    compiled["extras"] |= {"break_even_calls": 1195, "cache_bytes": 3_785_359}
    impossible["verified"] = {"verdict": "fail", "message": "131% [129, 133] of gemm float32: it skipped the work"}
    impossible["ceiling"] = {**eager["ceiling"], "fraction": 1.31, "low": 1.29, "high": 1.33}
    return [row]


def loading() -> list[Row]:
    """Return a comparison of one arm, which has no control."""
    row = comparison("loading", "load", {"safetensors": 0.83}, title="Loading a checkpoint")
    return [costed(row, flops=0.0, moved=4.0 * PARAMETERS, operations=148)]


def cuda() -> list[Row]:
    """Attention on an accelerator, limited by launches if it is short."""
    rows = []
    for tokens in (128, 1024, 4096):
        flops, moved = 4.0 * tokens**2 * 768, {"naive": 12.0 * tokens**2 * 8, "flash": tokens * 6144.0}
        arms = {"naive": 7e-5 + moved["naive"] / 2.4e12, "flash": 5e-5 + flops / 2.9e14}
        row = comparison("attention", "forward", arms, twin=True, axis="tokens", point=tokens, title="Attention")
        products = dict.fromkeys(arms, "bfloat16")
        rows.append(costed(row, flops=flops, moved=moved, products=products, machine=CUDA, operations=9))
    return rows


def over_length(metric: str, tokens: int, arms: dict[str, Any], sizes: dict[str, float]) -> Row:
    """One point of the attention comparison, with the memory of each arm by two ledgers."""
    title = "Attention over sequence lengths"
    row = comparison("attention", metric, arms, twin=True, axis="tokens", point=tokens, title=title)
    for arm in row["arms"]:
        size = int(sizes[arm["arm"].removesuffix("-again")])
        arm |= {"peak_memory_bytes": size, "peak_memory_ledger": "allocator", "tokens_per_second": tokens}
        arm |= {"ledgers": {"allocator": size, "closed form": int(size * (0.98 if tokens > 128 else 0.85))}}
        arm["tokens_per_second"] = tokens / arm["median_seconds"]
    return row


def generation() -> list[Row]:
    """Cached and uncached generation over lengths, with the positions that were counted."""
    rows = []
    for tokens in (8, 16, 32, 64, 100):
        uncached, cached = sum(range(10, 10 + tokens)), 10 + tokens - 1
        arms = {"uncached": 0.012 * tokens + uncached * 1.7e-3, "cached": 0.044 * tokens}
        title = "Generation with a cache and without"
        row = comparison("generation", "generate", arms, twin=True, axis="new tokens", point=tokens, title=title)
        for arm in row["arms"]:
            positions = cached if arm["arm"] == "cached" else uncached
            arm |= {"positions": positions, "positions_closed_form": positions}
            arm["tokens_per_second"] = tokens / arm["median_seconds"]
        rows.append(row)
    return rows


def peers() -> list[Row]:
    """The subject against Hugging Face's GPT-2, eager and SDPA."""
    times: dict[str, dict[str, float | None]] = {
        "forward": {"hf-sdpa": 2.02, "hf-eager": 2.55, "subject": 1.95},
        "training step": {"hf-sdpa": 1.62, "hf-eager": 1.53, "subject": 1.49},
        "cached decode": {"hf-sdpa": 1.92, "hf-eager": 1.95, "subject": 1.33},
    }
    title = "The subject and Hugging Face's GPT-2, fp32"
    return [comparison("peers", metric, arms, twin=True, title=title) for metric, arms in times.items()]
