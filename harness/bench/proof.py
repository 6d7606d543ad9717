"""`gpt-harness proof`: how often, on this machine, equal arms are told apart and a known slowdown is found."""

from __future__ import annotations

import argparse
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bench.comparison import Arm, Comparison, Verification, Work, measure, with_twin
from harness.bench.statistics import Ratio, describe_ratio, median, share_interval
from harness.core.environment import ask_for_huge_pages, cores, environment
from harness.core.errors import HarnessError
from harness.core.record_files import RecordWriter

if TYPE_CHECKING:
    from torch import Tensor

# What an interval at 95% allows, and the share of changes that a comparison should find.
FALSE_ALARMS_AT_MOST = 0.05
FOUND_AT_LEAST = 0.90
# GPT-2's attention, in float32, at a length of which twenty take some three milliseconds on one thread: less than the
# time slice of a scheduler, so that a busy machine leaves some calls alone.
HEADS, HEAD_WIDTH, TOKENS = 12, 64, 64
# By closed form at 1024 tokens: naive, two (H, T, T) and an output; flash, an output, a logarithm a row, and one tile
# a thread (FlashAttentionKernel.cpp), of which there is one here.
KNOWN_TOKENS = 1024
KNOWN_MIB = {"naive": 99.00, "flash": 3.61}
BYTES_WITHIN = 0.01


@dataclass(frozen=True)
class Tally:
    """Of the comparisons of one kind, how many told their arms apart; for a change, how many found it slower."""

    flagged: int
    runs: int

    @property
    def share(self) -> float:
        """The share seen; NaN before the first comparison."""
        return self.flagged / self.runs if self.runs else math.nan

    def __str__(self) -> str:
        low, high = share_interval(self.flagged, self.runs)
        return f"{self.flagged} of {self.runs} ({self.share:.0%}; 95% interval {low:.0%} to {high:.0%})"


def add_proof(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`gpt-harness proof [--runs N] [--seconds S] [--change PERCENT] [--threads N] [--output DIR]`."""
    command = commands.add_parser(
        "proof",
        help="put the comparing engine to the proof on this machine",
        description="Compare equal arms, and arms of which one does a known part more, through the engine that the "
        "benchmarks use; weigh attention whose bytes are known. Exit status 1 if more than 5% of the equal arms were "
        "told apart, fewer than 90% of the changes found, or the bytes are more than 1% off.",
    )
    command.add_argument("--runs", type=int, default=20, metavar="N", help="comparisons of each kind (%(default)s)")
    command.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="that one comparison may take (%(default)s)"
    )
    command.add_argument(
        "--change", type=float, default=5.0, metavar="PERCENT", help="how much work is added (%(default)s)"
    )
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of torch (%(default)s: with more, a busy machine makes each wait for the others)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where it is recorded (%(default)s)"
    )
    command.set_defaults(run=run_proof)


def run_proof(options: argparse.Namespace) -> int:
    """Run both kinds in turn, record each as it is done, weigh, and print what it came to."""
    import torch

    if options.runs < 1 or options.threads < 1 or not 1 <= options.change <= 100:
        raise HarnessError("expected --runs and --threads of at least 1 and a --change between 1 and 100 percent")
    torch.set_num_threads(options.threads)
    ask_for_huge_pages()
    times = round(100 / options.change)
    kinds = {"identical": times, "changed": times + 1}
    path = options.output / "records" / f"proof-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}.jsonl"
    recorder = RecordWriter(path, {"run": "proof", "environment": environment(Path.cwd()), "change": 1 / times})
    ratios: dict[str, list[Ratio]] = {kind: [] for kind in kinds}
    started = time.perf_counter()
    print(f"{options.runs} comparisons of each kind, at most {options.seconds:g} s each; records: {path}", flush=True)
    try:
        weighed = [_weigh(kind, recorder) for kind in KNOWN_MIB]
        for run in range(options.runs):
            for kind, repeats in kinds.items():
                ratios[kind].append(_compare(kind, times, repeats, run=run, seconds=options.seconds, recorder=recorder))
    except KeyboardInterrupt:
        print(f"interrupted; what was done is in {path}")
        return 130
    tallies = {kind: _tally(kind, found) for kind, found in ratios.items()}
    passed = all(weighed) and _good(tallies)
    recorder.close({"seconds": time.perf_counter() - started, "passed": passed})
    print(_conclusion(tallies, change=1 / times, middle=median([ratio.ratio for ratio in ratios["changed"]])))
    if (load := _load()) is not None and load > cores():
        print(f"load average {load:.1f} on {cores()} cores: with less to do beside it, this machine would resolve more")
    return 0 if passed else 1


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _compare(kind: str, times: int, repeats: int, *, run: int, seconds: float, recorder: RecordWriter) -> Ratio:
    """One comparison through the engine, recorded and told in a line."""
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
    """`times` attentions a call against `repeats`: real work of the arm's own kind, not a sleep."""
    control = functools.partial(_attentions, times)
    arms = with_twin({"control": control}, of="control")
    if repeats != times:
        arms = (arms[0], Arm("more work", functools.partial(_attentions, repeats, 0)))
    answers: dict[str, Any] = {}

    def verify(name: str, work: Work) -> Verification:
        answers[name] = work.answer()
        same = bool((answers[name] == answers["control"]).all())
        return Verification("pass" if same else "fail", "compared with the control's answer, bit by bit")

    return Comparison("proof", "Arms whose ratio is known", kind, "control", arms, verify)


def _attentions(repeats: int, copy: int) -> Work:
    """A call of that many attentions, one after the other, each with an answer of its own."""
    attend = attention("flash", tokens=TOKENS)

    def call() -> Tensor:
        for _ in range(repeats - 1):
            attend()
        return attend()

    return Work(call=call, answer=call, tokens=TOKENS * repeats)


def attention(kind: str, *, tokens: int) -> Callable[[], Tensor]:
    """GPT-2's causal attention on seeded queries, keys and values (1, H, T, D): a call without gradients."""
    import torch
    import torch.nn.functional as F

    q, k, v = torch.randn(3, 1, HEADS, tokens, HEAD_WIDTH, generator=torch.Generator().manual_seed(0))
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)

    def naive() -> Tensor:
        scores = (q @ k.mT).mul_(1 / math.sqrt(HEAD_WIDTH)).masked_fill_(future, -math.inf)  # (1, H, T, T)
        return torch.matmul(scores.softmax(-1), v)

    calls = {"naive": naive, "flash": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    return torch.no_grad()(calls[kind])


def _weigh(kind: str, recorder: RecordWriter) -> bool:
    """Whether the ledger sees the bytes that are known, at one thread."""
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
    told = f"within {BYTES_WITHIN:.0%}" if right else f"more than {BYTES_WITHIN:.0%} off"
    print(f"memory of {kind} attention at {KNOWN_TOKENS} tokens: {found:.2f} MiB, known {known:.2f} MiB, {told}")
    return right


def _tally(kind: str, ratios: Sequence[Ratio]) -> Tally:
    counted = ("SLOWER",) if kind == "changed" else ("FASTER", "SLOWER")
    return Tally(sum(ratio.verdict in counted for ratio in ratios), len(ratios))


def _good(tallies: dict[str, Tally]) -> bool:
    return tallies["identical"].share <= FALSE_ALARMS_AT_MOST and tallies["changed"].share >= FOUND_AT_LEAST


def _conclusion(tallies: dict[str, Tally], *, change: float, middle: float) -> str:
    """Both figures with their intervals, and how much so many comparisons can say."""
    lines = [
        f"identical arms told apart: {tallies['identical']}; at most {FALSE_ALARMS_AT_MOST:.0%} is right",
        f"{change:.1%} more work found slower: {tallies['changed']}, by {middle - 1:.1%} in the middle; "
        f"at least {FOUND_AT_LEAST:.0%} is right",
    ]
    most = share_interval(tallies["identical"].flagged, tallies["identical"].runs)[1]
    least = share_interval(tallies["changed"].flagged, tallies["changed"].runs)[0]
    if most > FALSE_ALARMS_AT_MOST or least < FOUND_AT_LEAST:
        runs = next(n for n in range(1, 1000) if share_interval(0, n)[1] <= FALSE_ALARMS_AT_MOST)
        lines.append(
            f"{tallies['identical'].runs} comparisons of each kind do not show it: false alarms could be up to "
            f"{most:.0%}, and found as few as {least:.0%}; {runs} without a false alarm would show 5% (--runs {runs})"
        )
    return "\n".join(lines)
