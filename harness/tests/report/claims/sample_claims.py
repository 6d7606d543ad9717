"""Made-up records of a ledger: one claim of each finding, one that broke, and one that the ledger states wrongly."""

from __future__ import annotations

from typing import Any

from harness.core.record_files import Row
from harness.tests.report.sample_verification import check


def claim(
    name: str,
    *,
    lesson: str,
    figure: str,
    found: str,
    value: Any = None,
    unit: str = "",
    ledger: str | None = None,
    says: str = "It is so.",
    derived: str = "a closed form",
    expected: Row | None = None,
    setting: str = "",
    by: str = "here",
    level: str = "",
    at: str = "",
    places: Row | None = None,
    other: Any = None,
    details: Row | None = None,
    **fields: Any,
) -> Row:
    """Return the record of a claim; `found` is a finding, or the message of a skip if `value` is None."""
    skipped = value is None
    readings = [
        {"setting": "", "at": at, "value": value, "unit": unit, "places": places or {}, "details": details or {}}
    ]
    if other is not None:
        readings.append({**readings[0], "setting": setting, "value": other, "places": {}, "details": {}})
    ledger = ledger or ("not measurable here" if skipped else found)
    right = ledger in (found, "as the run finds")
    words = {"claimed": figure, **({"corrected": "corrected"} if "corrected" in (expected or {}) else {})}
    return check(
        name,
        suite="claims",
        verdict="skip" if skipped else "pass" if right else "fail",
        message=found if skipped else "" if right else f"found {found}; expected {ledger}",
        value=None if skipped else found,
        expected={"equals": ledger},
        details={} if skipped else {"readings": readings},
        claim={
            "lesson": lesson, "figure": figure, "says": says, "derived": derived, "finding": ledger, "by": by,
            "level": level, "setting": setting, "expected": expected or {}, "expected_text": words,
        },
        why=f"Why {name} matters.",
        source="a paper",
        **fields,
    )  # fmt: skip


def claim_rows() -> list[Row]:
    """Return a small ledger of all four lessons."""
    stds = {"embedding": 0.8, **{f"block {block}": 0.8 + 0.003 * block for block in range(12)}}
    wild = {"embedding": 0.8, **{f"block {block}": 0.8 + 0.028 * block for block in range(12)}}
    kaiming = {"embedding": 0.8, **{f"block {block}": 1.9 + 0.45 * block for block in range(12)}}
    growth = claim(
        "growth-with-default-init", lesson="building", figure="6.55", found="holds for another setting",
        says="With the default initialisation the std grows to 6.55.", derived="7.1 with Kaiming-normal weights",
        expected={"claimed": {"close_to": {"value": 6.55, "rel": 0.1}}}, setting="Kaiming-normal weights",
        at="block 11", value=1.13, other=6.87, unit="std", places=wild, level="training behaviour",
        measure="activation_std", parameters={"size": "124M", "recipe": "pytorch"},
    )  # fmt: skip
    growth["details"]["readings"][1]["places"] = kaiming
    positions = [[1, 10, 10], [10, 145, 19], [100, 5950, 109]]
    broken = claim("tokens", lesson="pretraining", figure="6 tokens", found="holds", value=6)
    broken |= {"verdict": "error", "value": None, "message": "ValueError: no such token", "details": {}}
    return [
        claim(
            "parameters", lesson="building", figure="124.4M", found="holds", value=124_439_808, unit="parameters",
            expected={"claimed": {"close_to": {"value": 124_400_000, "abs": 50_000}}}, level="shapes and counts",
        ),
        claim(
            "initial-loss", lesson="building", figure="10.82", found="holds with a correction", value=10.9951,
            unit="nats", derived="ln V + s²/2 = 10.978", level="training behaviour",
            details={"spread": {"low": 10.957, "high": 11.057, "over": "4 batches"}},
            expected={
                "claimed": {"close_to": {"value": 10.82, "abs": 0.05}},
                "corrected": {"close_to": {"value": 10.978, "abs": 0.08}},
            },
        ),
        claim(
            "scaled-init", lesson="building", figure="0.80 to 0.85", found="holds", value=stds, unit="std",
            places=stds, measure="activation_std", parameters={"size": "124M", "recipe": "gpt2"},
        ),
        growth,
        broken,
        claim(
            "one-plus", lesson="pretraining", figure="1.0", found="holds", value=1.0,
            expected={"claimed": {"equals": 1.0}}, details={"dtype": "bfloat16", "step": 1e-4, "spacing": 0.0078125},
        ),
        claim(
            "usual-norms", lesson="pretraining", figure="0.6 to 0.9", found="does not hold", by="lessons",
            ledger="as the run finds", value={"10th percentile": 1.2, "90th percentile": 2.4},
            details={
                "run": {"file": "lessons-20261127T100000Z.jsonl", "machine": "Intel Xeon, 2 cores"},
                "about": {"parameters": 345_000},
            },
        ),
        claim(
            "text", lesson="pretraining", figure="4.0: common words", found="holds", by="lessons", value=0.42,
            ledger="as the run finds", unit="of the words", details={"text": "the king\n`and` his men", "loss": 4.1},
        ),
        claim("cosine-reaches-2-0", lesson="pretraining", figure="2.0", found="`make lessons` has not run"),
        claim(
            "positions-cached", lesson="scaling", figure="100", found="holds with a correction", at="cached",
            expected={"claimed": {"equals": 100}, "corrected": {"equals": 109}}, value=109, unit="positions",
            details={"curve": positions, "size": "one layer"}, parameters={"prompt_length": 10, "new_tokens": 100},
        ),
        claim(
            "attention-matrix", lesson="scaling", figure="384 MB", found="does not hold", ledger="holds",
            value=402_653_184, unit="bytes", expected={"claimed": {"equals": 384_000_000}},
        ),
        claim("exponent", lesson="scaling", figure="0.05", found="a grid of training runs"),
        claim(
            "logits-allclose", lesson="weights", figure="1e-5", found="holds", value=1.6e-6,
            level="outputs against a reference", expected={"claimed": {"at_most": 1e-5}},
        ),
    ]  # fmt: skip
