"""A comparison in the terminal as soon as it is measured: one line an arm, and a time only for a verified answer."""

from __future__ import annotations

import contextlib

import pytest

from harness.bench.memory import disagreement
from harness.bench.statistics import Ratio, describe_ratio, describe_seconds
from harness.core.record_files import Row, comparison_label
from harness.report.formatting import memory

ROUNDING_IN_FLOAT32 = 1e-4  # a relative error beyond it is the price of fewer bits, and stands beside the time


def show(config: pytest.Config, row: Row) -> None:
    """Print the comparison's lines, also while pytest captures output."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is None:  # -p no:terminal
        return
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        terminal.ensure_newline()
        origin = f", from the interrupted run {row['resumed_from']}" if "resumed_from" in row else ""
        terminal.write_line(f"{label(row)} ({_rounds(row)}, {row['wall_seconds']:.0f} s{origin})", bold=True)
        for arm in row["arms"]:
            terminal.write_line(f"  {arm['arm']:<16} {arm_line(row, arm)}")
        for note in row["notes"]:
            terminal.write_line(f"  {note}")


def label(row: Row) -> str:
    """Return the name of a comparison at its point: `attention forward, tokens=512`."""
    return comparison_label(row["comparison"], row["metric"], row["axis"], row["point"])


def ratio_of(row: Row) -> Ratio:
    """Return the Ratio that a ratio's row was made from."""
    return Ratio(**{key: value for key, value in row.items() if key not in ("arm", "against")})


def _rounds(row: Row) -> str:
    rounds, calls = max((len(arm["seconds"] or []) for arm in row["arms"]), default=0), row["calls_per_block"]
    if not rounds:
        return "not timed"
    return f"{rounds} rounds of {calls} calls each" if calls > 1 else f"{rounds} long calls each"


def arm_line(row: Row, arm: Row) -> str:
    """Return an arm's figures, or why it has no time.

    `12.34 ± 0.21 ms  81 tokens/s  3.00x faster [2.91, 3.09]  81% of compute  peak 4.18 MiB`
    """
    verified = arm["verified"]
    if not arm["seconds"]:
        return f"{'unverified' if verified['verdict'] == 'fail' else verified['verdict']}: {verified['message']}"
    parts = [f"{describe_seconds(arm['median_seconds'], arm['spread_seconds']):<18}"]
    if rate := arm["tokens_per_second"]:
        parts.append(f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.1f} tokens/s")
    for found in row["ratios"]:
        if found["arm"] == arm["arm"]:
            parts.append(describe_ratio(ratio_of(found)))
    if arm["arm"] == row["control"]:
        parts.append("the control")
    if (ceiling := arm.get("ceiling")) is not None:
        parts.append(f"{ceiling['fraction']:.0%} of {ceiling['regime']}")
    if (error := arm.get("error") or 0.0) > ROUNDING_IN_FLOAT32:
        parts.append(f"error {error:.1e}")
    if arm["positions"] is not None:
        parts.append(f"{arm['positions']:,} positions")
    if arm["ledgers"]:
        parts.append(peaks(arm["ledgers"]))
    parts += [_extra(name, value) for name, value in (arm.get("extras") or {}).items()]
    return "  ".join(parts)


def _extra(name: str, value: float) -> str:
    """Return an extra with its unit, which ends its name: `cache 72.00 MiB`, `first call 11.4 s`, `mfu 0.46`."""
    words = name.replace("_", " ")
    if name.endswith("_bytes"):
        return f"{words.removesuffix(' bytes')} {memory(value)}"
    if name.endswith("_seconds"):
        return f"{words.removesuffix(' seconds')} {value:.3g} s"
    return f"{words} {value:,.3g}"


def peaks(ledgers: dict[str, int]) -> str:
    """Return the exact peak, and the other ledgers if they disagree."""
    text = f"peak {memory(next(iter(ledgers.values())))}"
    differ = disagreement(ledgers)
    return f"{text} ({differ})" if differ else text
