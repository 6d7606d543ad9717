"""Proof of the engine on this machine: how often it calls identical arms different, and finds a known slowdown."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bench.comparison import Arm, Comparison, arms_with_twin
from harness.bench.measurement import measure
from harness.bench.statistics import Ratio, describe_ratio, median, wilson_interval
from harness.bench.work import Verification, Work
from harness.core.environment import cores, enable_huge_pages, environment
from harness.core.errors import HarnessError
from harness.core.record_files import RecordWriter

if TYPE_CHECKING:  # torch takes seconds to import, and the command line reads this module: functions import it
    from torch import Tensor

# The rate of false alarms that an interval at 95% allows, and the share of changes that the engine should find.
FALSE_ALARMS_AT_MOST = 0.05
FOUND_AT_LEAST = 0.90
# GPT-2's attention in float32, at a length at which twenty calls take about three milliseconds on one thread. That is
# less than the time slice of a scheduler, so that some calls run undisturbed on a busy machine.
HEADS, HEAD_WIDTH, TOKENS = 12, 64, 64
# The peak memory by closed form at 1024 tokens. Naive: two (H, T, T) and an output. Flash: an output, a logarithm a
# row, and one tile a thread (FlashAttentionKernel.cpp), with one thread here.
KNOWN_TOKENS = 1024
KNOWN_MIB = {"naive": 99.00, "flash": 3.61}
BYTES_WITHIN = 0.01


@dataclass(frozen=True)
class Tally:
    """The comparisons of one kind that were flagged: called different, or for a change, found slower."""

    flagged: int
    runs: int

    @property
    def share(self) -> float:
        """The share of flagged comparisons; NaN without any comparison."""
        return self.flagged / self.runs if self.runs else math.nan

    def __str__(self) -> str:
        low, high = wilson_interval(self.flagged, self.runs)
        return f"{self.flagged} of {self.runs} ({self.share:.0%}; 95% interval {low:.0%} to {high:.0%})"


def prove(*, runs: int, seconds: float, change: float, threads: int, output: Path) -> int:
    """Measure comparisons of both kinds in turn, print and record each, and return the exit status.

    runs: comparisons of each kind.
    seconds: the time limit of one comparison.
    change: the work that is added to the changed arm, in percent.
    threads: the number of threads of torch.
    output: the folder whose `records` folder gets the record file.

    Raises HarnessError for a number outside its range.
    """
    import torch

    if runs < 1 or threads < 1 or not 1 <= change <= 100:
        raise HarnessError("expected --runs and --threads of at least 1 and a --change between 1 and 100 percent")
    torch.set_num_threads(threads)
    enable_huge_pages()
    times = round(100 / change)
    kinds = {"identical": times, "changed": times + 1}
    path = output / "records" / f"proof-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}.jsonl"
    recorder = RecordWriter(path, {"run": "proof", "environment": environment(Path.cwd()), "change": 1 / times})
    ratios: dict[str, list[Ratio]] = {kind: [] for kind in kinds}
    started = time.perf_counter()
    print(f"{runs} comparisons of each kind, at most {seconds:g} s each; records: {path}", flush=True)
    try:
        memory_right = [_check_memory(kind, recorder) for kind in KNOWN_MIB]
        for run in range(runs):
            for kind, repeats in kinds.items():
                ratios[kind].append(_compare(kind, times, repeats, run=run, seconds=seconds, recorder=recorder))
    except KeyboardInterrupt:
        print(f"interrupted; the comparisons so far are in {path}")
        return 130
    tallies = {kind: _tally(kind, found) for kind, found in ratios.items()}
    passed = all(memory_right) and _good(tallies)
    recorder.close({"seconds": time.perf_counter() - started, "passed": passed})
    print(_conclusion(tallies, change=1 / times, middle=median([ratio.ratio for ratio in ratios["changed"]])))
    if (load := _load()) is not None and load > cores():
        print(f"load average {load:.1f} on {cores()} cores: with less other work, this machine would resolve more")
    return 0 if passed else 1


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _compare(kind: str, times: int, repeats: int, *, run: int, seconds: float, recorder: RecordWriter) -> Ratio:
    """Measure one comparison with the engine, record it, print it in a line, and return its ratio."""
    measured = measure(_comparison(kind, times, repeats), seconds=seconds, seed=run)
    ((_, ratio),) = measured.ratios.items()
    row = {
        "kind": "proof",
        "of": kind,
        "run": run,
        "true": repeats / times,
        "stopped": measured.stopped,
        "load": _load(),
    }
    recorder.write({**row, **asdict(ratio), "seconds": list(measured.seconds.values())})
    print(f"{run + 1:3} {kind:9} {describe_ratio(ratio)}", flush=True)
    return ratio


def _comparison(kind: str, times: int, repeats: int) -> Comparison:
    """Return a comparison of `repeats` attentions a call with `times`: real work of the same kind, not a sleep."""
    control = functools.partial(_attentions, times)
    arms = arms_with_twin({"control": control}, of="control")
    if repeats != times:
        arms = (arms[0], Arm("more work", functools.partial(_attentions, repeats, 0)))
    answers: dict[str, Any] = {}

    def verify(name: str, work: Work) -> Verification:
        answers[name] = work.answer()
        same = bool((answers[name] == answers["control"]).all())
        return Verification("pass" if same else "fail", "compared with the control's answer, bit by bit")

    return Comparison("proof", "Arms whose ratio is known", kind, "control", arms, verify)


def _attentions(repeats: int, copy: int) -> Work:
    """Return a call that computes attention `repeats` times, each time with a new result."""
    attend = attention("flash", tokens=TOKENS)

    def call() -> Tensor:
        for _ in range(repeats - 1):
            attend()
        return attend()

    return Work(call=call, answer=call, tokens=TOKENS * repeats)


def attention(kind: str, *, tokens: int) -> Callable[[], Tensor]:
    """Return a call of GPT-2's causal attention on seeded q, k and v of (1, H, T, D), without gradients."""
    import torch
    import torch.nn.functional as F

    q, k, v = torch.randn(3, 1, HEADS, tokens, HEAD_WIDTH, generator=torch.Generator().manual_seed(0))
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)

    def naive() -> Tensor:
        scores = (q @ k.mT).mul_(1 / math.sqrt(HEAD_WIDTH)).masked_fill_(future, -math.inf)  # (1, H, T, T)
        return torch.matmul(scores.softmax(-1), v)

    calls = {"naive": naive, "flash": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    return torch.no_grad()(calls[kind])


def _check_memory(kind: str, recorder: RecordWriter) -> bool:
    """Return True if the memory ledger gives the known bytes, with one thread."""
    import torch

    from harness.bench.memory import peak_bytes

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = peak_bytes(attention(kind, tokens=KNOWN_TOKENS))["profiler"] / 2**20
    finally:
        torch.set_num_threads(threads)
    known = KNOWN_MIB[kind]
    right = abs(found / known - 1) <= BYTES_WITHIN
    recorder.write({"kind": "proof memory", "of": kind, "found_mib": found, "known_mib": known, "right": right})
    verdict = f"within {BYTES_WITHIN:.0%}" if right else f"more than {BYTES_WITHIN:.0%} off"
    print(f"memory of {kind} attention at {KNOWN_TOKENS} tokens: {found:.2f} MiB, known {known:.2f} MiB, {verdict}")
    return right


def _tally(kind: str, ratios: Sequence[Ratio]) -> Tally:
    counted = ("SLOWER",) if kind == "changed" else ("FASTER", "SLOWER")
    return Tally(sum(ratio.verdict in counted for ratio in ratios), len(ratios))


def _good(tallies: dict[str, Tally]) -> bool:
    return tallies["identical"].share <= FALSE_ALARMS_AT_MOST and tallies["changed"].share >= FOUND_AT_LEAST


def _conclusion(tallies: dict[str, Tally], *, change: float, middle: float) -> str:
    """Return both figures with their intervals, and a line about their precision if the comparisons were too few."""
    lines = [
        f"identical arms called different: {tallies['identical']}; expected at most {FALSE_ALARMS_AT_MOST:.0%}",
        f"{change:.1%} more work found slower: {tallies['changed']}, by {middle - 1:.1%} (median); "
        f"expected at least {FOUND_AT_LEAST:.0%}",
    ]
    most = wilson_interval(tallies["identical"].flagged, tallies["identical"].runs)[1]
    least = wilson_interval(tallies["changed"].flagged, tallies["changed"].runs)[0]
    if most > FALSE_ALARMS_AT_MOST or least < FOUND_AT_LEAST:
        runs = next(n for n in range(1, 1000) if wilson_interval(0, n)[1] <= FALSE_ALARMS_AT_MOST)
        lines.append(
            f"{tallies['identical'].runs} comparisons of each kind do not show it: false alarms could be up to "
            f"{most:.0%}, and found as few as {least:.0%}; {runs} without a false alarm would show 5% (--runs {runs})"
        )
    return "\n".join(lines)
