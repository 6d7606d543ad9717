"""Made-up records of a verification run, near figures that were measured on a 2-core machine; seeded."""

from __future__ import annotations

import math
import random
from typing import Any

from harness.core.record_files import Row


def check(name: str = "shapes", *, verdict: str = "pass", suite: str = "structure", **fields: Any) -> Row:
    """Return the record of a check."""
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
    """Return the checks of all suites; `wrong` puts the erf GELU into every block."""
    return [*structure(), *initialisation(), *parity(wrong=wrong), *others()]


def structure() -> list[Row]:
    """Return parameter counts of the four sizes, tied and untied."""
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
    """Return activation std of four recipes in two streams, near the figures that were measured."""
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
                    details={"predicted": predicted},
                    expected={"near_predicted": {"rel": 0.05 if stream == "normal" else 0.08}},
                    seconds=1.1,
                )
            )
    return rows


def parity(*, wrong: bool) -> list[Row]:
    """Return the noise verdicts of the blocks' outputs, of the gradients and of the two attention paths."""
    blocks = ["embedding", *(f"block {block}" for block in range(12)), "ln_f", "logits"]
    tensors = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
               "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
               "mlp.c_proj.weight", "mlp.c_proj.bias"]  # fmt: skip
    names = ["wte.weight", "wpe.weight", *(f"h.{block}.{tensor}" for block in range(12) for tensor in tensors),
             "ln_f.weight", "ln_f.bias"]  # fmt: skip
    gradients = [f"transformer.{name}" for name in names]
    return [
        noise_check("full-size-on-text", blocks, compare="blocks", wrong_from=1 if wrong else None, scale=1.0),
        noise_check("full-size-on-text", gradients, compare="gradients", wrong_from=0 if wrong else None, scale=0.02),
        noise_check("naive-equals-flash", ["logits"], compare="logits", suite="attention", scale=0.5),
    ]


def noise_check(
    name: str, places: list[str], *, compare: str, suite: str = "parity", wrong_from: int | None = None, scale: float
) -> Row:
    """Return a check with a noise verdict; from `wrong_from` on, its components differ in float64 as well."""
    noise = random.Random(f"{name} {compare}")
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
    identity = f"verifications/{suite}.toml::{name},compare={compare}"
    return check(
        name,
        suite=suite,
        id=identity,
        rerun=f"pytest '{identity}'",
        measure="parity",
        parameters={"size": "124M", "weights": "probe", "compare": compare},
        value={row["where"]: row["verdict"] for row in rows},
        details={"comparisons": rows, **({"hint": "the exact (erf) GELU in place of the tanh form"} if bad else {})},
        expected={"noise": "rounding"},
        expected_text="at most rounding",
        verdict="fail" if bad else "pass",
        where=bad,
        found=f"{bad[0]}: different (float32 8.2e-04, float64 8.2e-04)" if bad else "",
        message=f"found {bad[0]}: different; expected at most rounding" if bad else "",
        why="A difference that does not shrink in float64 is a bug.",
        source="transformers GPT2LMHeadModel, attn_implementation='eager'",
        seconds=9.7,
    )


def others() -> list[Row]:
    """Return checks without a section of their own, and skipped ones."""
    why = "no pretrained weights: `python -m gpt.data --weights gpt2` fetches them"
    return [
        check("no-future-leak", suite="attention", seconds=2.4),
        check("cached-equals-uncached", suite="generation", seconds=6.3),
        check("greedy-equals-huggingface", suite="generation", seconds=4.2),
        *(
            check(name, suite="pretrained", verdict="skip", message=why, value=None, seconds=0.0)
            for name in ("llm-c-first-loss", "greedy-golden-ids", "block-outputs")
        ),
    ]
