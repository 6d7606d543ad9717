"""`gpt-harness triage CHECKPOINT`: why does a trained GPT generate nonsense? The cause, and the evidence."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

from harness.core.waiting import said_if_slow

if TYPE_CHECKING:  # it imports torch, which takes seconds that other subcommands need not wait for
    from harness.diagnosis.triage import Triage
    from harness.diagnosis.triage.evidence import Evidence

REFERENCE = "gpt:GPT"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness triage CHECKPOINT [--text FILE] [--subject FILE.py:GPT]`."""
    command = commands.add_parser(
        "triage",
        help="why does a trained GPT generate nonsense? the cause, with the evidence",
        description="Decide why a trained GPT babbles: weights that are not loaded, another vocabulary, too little "
        "training, a wrong sampler or cache, shifted targets, a missing mask, or positions that were never trained. "
        "Each line has the number, its spread and its threshold. Exit status 0 if nothing is wrong, 1 if a cause is "
        "found, 2 for a mistake on the command line or a file that cannot be read.",
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="the folder of a run of gpt.train or of its checkpoint, a Hugging Face directory, a .safetensors file, or "
        "one that torch.load(weights_only=True) reads; nothing is unpickled",
    )
    command.add_argument(
        "--text", metavar="FILE", help="text like that of the training (default: TinyShakespeare, where it is at hand)"
    )
    command.add_argument(
        "--subject",
        metavar="FILE.py:GPT",
        help="the GPT, as for pytest verifications/ --subject (default: the reference; for a Hugging Face directory, "
        "the class that it names)",
    )
    command.add_argument(
        "--vocabulary", choices=("gpt2", "bytes", "characters"), help="the tokens (default: as stored or as they fit)"
    )
    command.add_argument("--heads", type=int, metavar="N", help="attention heads, where the checkpoint does not say")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the verdict and the evidence; 1 if a cause is found."""
    from harness.core.captured_output import CapturedOutput, captured_output
    from harness.diagnosis.triage import read_checkpoint, triage
    from harness.subjects.adapters import adapt

    stored = read_checkpoint(options.checkpoint)
    spec = options.subject or (stored.name if stored.is_huggingface else REFERENCE)
    # What the GPT prints is no part of the answer.
    with said_if_slow(spec, doing="in triage"), captured_output(CapturedOutput()):
        found = triage(
            stored,
            adapt(spec, own=spec != REFERENCE or options.subject is not None),
            text=options.text,
            vocabulary=options.vocabulary,
            heads=options.heads,
            named=options.subject is not None,
        )
    print(json.dumps(found.as_dict(), indent=2) if options.json else format_triage(found))
    return 1 if found.causes else 0


def format_triage(found: Triage, width: int = 118) -> str:
    """Return the triage as text for a terminal: the verdict, a line of numbers for each cause, what is not decided."""
    decided = [each for each in found.evidence if each.verdict != "undecided"]
    left = [each for each in found.evidence if each.verdict == "undecided"]
    lines = [f"{found.checkpoint}, {found.subject}", ""]
    for each in found.causes:
        babbles = "may babble" if each.verdict == "possible" else "babbles"
        lines += _wrapped(f"your GPT {babbles} because of: {each.cause}. {_sentence(each.says)}", "", width)
    if not found.causes:
        lines.append(f"no cause found: {len(decided)} are excluded, {len(left)} are not decided")
    sources = list(dict.fromkeys(each.source for each in decided))
    rows = [("", "cause", "measured", "", "expected", "from")]
    rows += [
        (each.verdict, each.cause, each.measured, _number(each), each.threshold, f"[{sources.index(each.source) + 1}]")
        for each in decided
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines += ["", *("  ".join(map(str.ljust, row, widths)) for row in rows)]
    if left:
        lines += ["", "not decided"]
        for why, causes in _by_reason(left).items():
            lines += _wrapped(f"{', '.join(causes)}: {why}", "  ", width)
    lines += ["", *(f"[{number}] {source}" for number, source in enumerate(sources, 1))]
    return "\n".join(line.rstrip() for line in lines)


def _number(each: Evidence) -> str:
    if each.value is None:
        return ""
    spread = f" ± {each.spread:.2g}" if each.spread is not None else ""
    return f"{each.value:.3g}{spread} {each.unit}".rstrip()


def _by_reason(left: list[Evidence]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in left:
        found.setdefault(each.says, []).append(each.cause)
    return found


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
