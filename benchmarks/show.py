"""A comparison in the terminal, as soon as it is measured: an arm a line, a time only where the answer was right."""

from __future__ import annotations

import contextlib

import pytest

from harness.compare import Measured
from harness.statistics import describe_ratio, describe_seconds, median, spread

# Two accounts of the same bytes should agree to 5%, or to a megabyte: the kernel counts pages, and does not count
# what the heap held already.
LEDGER_TOLERANCE, LEDGER_SLACK_BYTES = 0.05, 2**20


def show(config: pytest.Config, measured: Measured, wall_seconds: float) -> None:
    """Write the comparison's lines, whatever pytest captures."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is None:  # -p no:terminal
        return
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        terminal.ensure_newline()
        terminal.write_line(f"{measured.comparison.label} ({_rounds(measured)}, {wall_seconds:.0f} s)", bold=True)
        for name in measured.findings:
            terminal.write_line(f"  {name:<15} {arm_line(measured, name)}")
        for note in measured.notes:
            terminal.write_line(f"  {note}")


def _rounds(measured: Measured) -> str:
    rounds, calls = len(next(iter(measured.seconds.values()), [])), measured.calls_per_block
    if not rounds:
        return "not timed"
    return f"{rounds} rounds of {calls} calls each" if calls > 1 else f"{rounds} long calls each"


def arm_line(measured: Measured, name: str) -> str:
    """`12.34 ± 0.21 ms  81 tokens/s  3.00x faster [2.91, 3.09]  peak 4.18 MiB`, or why there is no time."""
    finding, seconds = measured.findings[name], measured.seconds.get(name)
    if not seconds:
        return f"{'unverified' if finding.verdict == 'fail' else finding.verdict}: {finding.message}"
    rate = measured.tokens[name] / median(seconds)
    parts = [
        f"{describe_seconds(median(seconds), spread(seconds)):<18}",
        f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.1f} tokens/s",
    ]
    if name in measured.ratios:
        parts.append(describe_ratio(measured.ratios[name]))
    elif name == measured.comparison.control:
        parts.append("the control")
    if "positions" in finding.witness:
        parts.append(f"{finding.witness['positions']:,} positions")
    if ledgers := measured.ledgers.get(name):
        parts.append(peaks(ledgers))
    return "  ".join(parts)


def peaks(ledgers: dict[str, int]) -> str:
    """The exact peak, and every other ledger that says something else."""
    exact = next(iter(ledgers.values()))
    others = [
        f"{name} says {count / 2**20:.2f}"
        for name, count in list(ledgers.items())[1:]
        if name != "reserved" and abs(count - exact) > max(LEDGER_TOLERANCE * exact, LEDGER_SLACK_BYTES)
    ]
    return f"peak {exact / 2**20:.2f} MiB" + (f" ({', '.join(others)})" if others else "")
