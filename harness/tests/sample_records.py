"""Records as a run on a 2-core machine leaves them, made up from figures that were measured there; seeded."""

from __future__ import annotations

import math
import random
from typing import Any

Row = dict[str, Any]

ENVIRONMENT: Row = {
    "python": "3.11.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "platform": "Linux-6.1-x86_64",
    "cpu": "Intel(R) Xeon(R) Processor @ 2.10GHz",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "memory_gib": 23.5,
    "git_commit": "d3ab9a4",
    "git_dirty": False,
    "packages": {"numpy": "2.4.6", "tiktoken": "0.14.0"},
}


def run(kind: str, rows: list[Row], *, subject: str = "gpt:GPT", footer: bool = True, **header: Any) -> list[Row]:
    """Rows between a header and, where the run came to its end, a footer."""
    first = {
        "kind": "header",
        "schema": 1,
        "run": kind,
        "started": "2026-11-22T15:30:00Z",
        "subject": {"name": subject},
        "arguments": ["verifications/"],
        "environment": ENVIRONMENT,
        **header,
    }
    last = {
        "kind": "footer",
        "finished": "2026-11-22T15:31:32Z",
        "wall_seconds": 92.3,
        "peak_memory_bytes": 3_360_000_000,
        "complete": True,
    }
    return [first, *rows, *([last] if footer else [])]


def check(name: str = "shapes", *, verdict: str = "pass", suite: str = "structure", **fields: Any) -> Row:
    """One check's record."""
    return {
        "kind": "record",
        "suite": suite,
        "check": name,
        "id": f"verifications/{suite}.toml::{name}",
        "measure": name.replace("-", "_"),
        "parameters": {},
        "value": True,
        "unit": "",
        "details": {},
        "expected": {"equals": True},
        "verdict": verdict,
        "message": "",
        "where": [],
        "why": "every boundary has a shape that the paper states",
        "source": "GPT-2 paper",
        "rerun": f"pytest 'verifications/{suite}.toml::{name}'",
        "seconds": 0.25,
        "subject": "gpt:GPT",
        **fields,
    }


def verify_rows(*, wrong: bool = False) -> list[Row]:
    """A run of all suites; `wrong` puts the erf GELU into every block."""
    return [*structure(), *initialisation(), *parity(wrong=wrong), *others()]


def structure() -> list[Row]:
    """Parameter counts of the four sizes, tied and untied."""
    rows = []
    for size, layers, width in (
        ("124M", 12, 768),
        ("355M", 24, 1024),
        ("774M", 36, 1280),
        ("1558M", 48, 1600),
    ):
        for tied in (True, False):
            components = {
                "wte": 50257 * width,
                "wpe": 1024 * width,
                "blocks": layers * (12 * width**2 + 13 * width),
                "ln_f": 2 * width,
                "lm_head": 0 if tied else 50257 * width,
            }
            total = sum(components.values())
            rows.append(
                check(
                    "parameter-count",
                    id=f"verifications/structure.toml::parameter-count,size={size},tied={str(tied).lower()}",
                    measure="parameter_count",
                    parameters={"size": size, "tied": tied},
                    value=total,
                    unit="parameters",
                    details={"components": components},
                    expected={"equals": total},
                    seconds=0.4,
                )
            )
    return rows


def initialisation() -> list[Row]:
    """Activation std of four recipes in two streams, near the figures that were measured."""
    noise = random.Random(1)
    ends = {
        "embedding": (0.028, {"gpt2": 0.293, "unscaled": 1.50, "pytorch": 0.86, "kaiming": 6.6}),
        "normal": (0.80, {"gpt2": 0.84, "unscaled": 1.55, "pytorch": 1.13, "kaiming": 7.0}),
    }
    rows = []
    for stream, (entry, last) in ends.items():
        for recipe, end in last.items():
            value, predicted = {"embedding": entry}, {"embedding": entry}
            for block in range(12):
                variance = entry**2 + (end**2 - entry**2) * (block + 1) / 12
                predicted[f"block {block}"] = math.sqrt(variance)
                value[f"block {block}"] = math.sqrt(variance) * (1 + noise.gauss(0, 0.012))
            rows.append(
                check(
                    "activation-std",
                    suite="initialisation",
                    id=f"verifications/initialisation.toml::activation-std,recipe={recipe},stream={stream}",
                    measure="activation_std",
                    parameters={"size": "124M", "recipe": recipe, "stream": stream},
                    value=value,
                    unit="std",
                    details={"predicted": predicted} if recipe in {"gpt2", "unscaled"} else {},
                    expected={"between": [0.02, 8.0]},
                    seconds=1.1,
                )
            )
    return rows


def parity(*, wrong: bool) -> list[Row]:
    """The noise verdict of the blocks' outputs, of the gradients and of the two attention paths."""
    blocks = ["embedding", *(f"block {block}" for block in range(12)), "ln_f", "logits"]
    tensors = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
               "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
               "mlp.c_proj.weight", "mlp.c_proj.bias"]  # fmt: skip
    names = ["wte.weight", "wpe.weight", *(f"h.{block}.{tensor}" for block in range(12) for tensor in tensors),
             "ln_f.weight", "ln_f.bias"]  # fmt: skip
    gradients = [f"transformer.{name}" for name in names]
    return [
        noise_check("block-outputs", blocks, wrong_from=1 if wrong else None, scale=1.0),
        noise_check("gradients", gradients, wrong_from=0 if wrong else None, scale=0.02, message="gradients differ"),
        noise_check("naive-equals-flash", ["output"], suite="attention", scale=0.5),
    ]


def noise_check(
    name: str,
    places: list[str],
    *,
    suite: str = "parity",
    wrong_from: int | None = None,
    scale: float,
    message: str = "",
) -> Row:
    """A check with the noise verdict; from `wrong_from` on its components differ by what no precision mends."""
    noise = random.Random(name)
    rows = []
    for index, place in enumerate(places):
        floor32, floor64 = (scale * f * (1 + index / len(places)) for f in (2e-6, 4e-15))
        different = wrong_from is not None and index >= wrong_from
        bug = 8.2e-4 * scale * (1 + 0.2 * index / len(places)) if different else 0.0
        exact = index == 0 and not different
        float32, float64 = (0.0, 0.0) if exact else (floor * noise.uniform(0.5, 1.1) for floor in (floor32, floor64))
        rows.append({
            "where": place, "float32": float32 + bug, "float64": float64 + bug, "floor32": floor32, "floor64": floor64,
            "scale": scale, "verdict": "different" if different else "equal" if exact else "rounding",
        })  # fmt: skip
    bad = [row["where"] for row in rows if row["verdict"] == "different"]
    return check(
        name,
        suite=suite,
        measure="logit_difference",
        parameters={"size": "124M", "weights": "probe"},
        value={row["where"]: row["verdict"] for row in rows},
        details={
            "comparisons": rows,
            **({"hint": "the exact (erf) GELU where GPT-2 has the tanh form"} if bad else {}),
        },
        expected={"noise": "rounding"},
        verdict="fail" if bad else "pass",
        where=bad,
        found=f"different at {bad[0]} (float32 8.2e-4, float64 8.2e-4)" if bad else "rounding",
        expected_text="equal or rounding",
        message=(message or "outputs differ") if bad else "",
        why="a difference that does not shrink in float64 is a bug",
        seconds=9.7,
    )


def others() -> list[Row]:
    """Checks of which the report knows nothing in particular, and skipped ones."""
    why = "no pretrained weights at hand: `python -m gpt.data --weights gpt2` fetches them"
    return [
        check("no-future-leak", suite="attention", seconds=2.4),
        check("cached-equals-uncached", suite="generation", seconds=6.3),
        check("greedy-equals-huggingface", suite="generation", seconds=4.2),
        *(
            check(name, suite="pretrained", verdict="skip", message=why, value=None, seconds=0.0)
            for name in ("llm-c-first-loss", "greedy-golden-ids", "block-outputs")
        ),
    ]


def comparison(name: str, metric: str, arms: dict[str, float | None], **fields: Any) -> Row:
    """One comparison at one point: arm to median seconds, the first arm is the control; None is a failed arm."""
    noise = random.Random(f"{name} {metric} {fields.get('point')}")
    control = next(iter(arms))
    rows, ratios = [], []
    for arm, median in arms.items():
        verified: Row = {"verdict": "pass", "message": ""}
        if median is None:
            verified = {"verdict": "fail", "message": "logits differ from the reference by 0.31"}
        spread = median * noise.uniform(0.008, 0.025) if median else None
        rows.append({
            "arm": arm, "verified": verified, "seconds": [median] * 12 if median else None, "median_seconds": median,
            "spread_seconds": spread, "tokens_per_second": None, "positions": None, "peak_memory_bytes": None,
            "peak_memory_ledger": None,
        })  # fmt: skip
        if arm != control and median and arms[control]:
            ratio, half = median / float(arms[control] or 1), noise.uniform(0.01, 0.03)
            verdict = "FASTER" if ratio * (1 + half) < 1 else "SLOWER" if ratio * (1 - half) > 1 else "UNRESOLVED"
            ratios.append({
                "arm": arm, "against": control, "ratio": ratio, "low": ratio * (1 - half), "high": ratio * (1 + half),
                "verdict": verdict, "smallest_resolvable": 1.6 * half,
            })  # fmt: skip
    return {"kind": "comparison", "comparison": name, "title": None, "subject": "gpt:GPT", "axis": None, "point": None,
            "metric": metric, "control": control, "arms": rows, "ratios": ratios, **fields}  # fmt: skip


def bench_rows() -> list[Row]:
    """The comparisons that `pytest benchmarks/` makes."""
    return [*precision(), *attention(), *generation(), *peers()]


def precision() -> list[Row]:
    """fp32 against bf16; the pure bf16 arm is broken in decode."""
    title = "fp32 against bf16"
    times = {
        "forward": {"fp32": 2.02, "bf16 autocast": 1.61, "bf16": 1.44},
        "training step": {"fp32": 1.62, "bf16 autocast": 1.63},
        "decode": {"fp32": 1.778, "bf16 autocast": 2.31, "bf16": None},
    }
    tokens = {"forward": 1024, "training step": 256, "decode": 40}
    rows = [comparison("precision", metric, arms, title=title) for metric, arms in times.items()]
    for row in rows:
        for arm in row["arms"]:
            arm["tokens_per_second"] = tokens[row["metric"]] / arm["median_seconds"] if arm["median_seconds"] else None
    return rows


def attention() -> list[Row]:
    """Naive, looped and flash attention over lengths."""
    rows = []
    for tokens in (128, 256, 512, 1024, 2048, 4096):
        naive = 2e-4 + tokens * 2.2e-6 + tokens**2 * 3.1e-8
        arms = {
            "naive": naive,
            "looped": naive * 1.22,
            "flash": 1.2e-4 + tokens * 2.0e-6 + tokens**2 * 1.25e-8,
        }
        row = comparison("attention", "forward", arms, axis="tokens", point=tokens, title="Attention over lengths")
        sizes = (12 * tokens**2 * 8 + tokens * 768 * 4, 12 * tokens**2 * 8.4, tokens * 3700 + 30_000)
        for arm, size in zip(row["arms"], sizes, strict=True):
            arm |= {"peak_memory_bytes": int(size), "peak_memory_ledger": "profiler"}
        rows.append(row)
    return rows


def generation() -> list[Row]:
    """Cached and uncached generation over lengths, with the positions that were counted."""
    rows = []
    for tokens in (25, 50, 100, 200):
        uncached, cached = sum(range(10, 10 + tokens)), 10 + tokens - 1
        arms = {"uncached": 0.012 * tokens + uncached * 1.7e-3, "cached": 0.044 * tokens}
        row = comparison(
            "generation", "generate", arms, axis="new tokens", point=tokens, title="Generation with a cache"
        )
        for arm, positions in zip(row["arms"], (uncached, cached), strict=True):
            arm |= {"positions": positions, "tokens_per_second": tokens / arm["median_seconds"]}
        rows.append(row)
    return rows


def peers() -> list[Row]:
    """The reference against other implementations of the same work."""
    times = {
        "forward": {"gpt:GPT": 1.98, "Hugging Face (SDPA)": 2.02, "Hugging Face (eager)": 2.55},
        "training step": {"gpt:GPT": 1.49, "Hugging Face (SDPA)": 1.62, "Hugging Face (eager)": 1.53},
        "cached decode": {"gpt:GPT": 1.33, "Hugging Face (SDPA)": 1.92, "Hugging Face (eager)": 1.95},
    }
    return [comparison("peers", metric, arms, title="Peers at 124M, fp32") for metric, arms in times.items()]
