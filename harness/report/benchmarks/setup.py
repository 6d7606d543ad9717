"""The head of the part on benchmarks: what was timed on which machine, and what the words of its tables mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms, by_comparison
from harness.report.blocks import Details
from harness.report.formatting import plain, plural
from harness.report.json_values import as_float, as_list, mappings
from harness.report.markdown import escape
from harness.report.run_records import RunRecords

ANCHOR = "words"
LINK = f"[what the words mean](#{ANCHOR})"
FEWEST_COMMON = 0.5  # a dtype of a larger share of the arms is the one that is not named beside each
WORDS = {
    "arm": "one way to do the work of a comparison: an implementation, a dtype, a kind of attention. `fp32-again` is "
    "the arm `fp32`, built and timed a second time.",
    "control": "the arm that the others of a comparison are compared with.",
    "peer": "an implementation other than the subject, with the same weights: Hugging Face (`hf-...`), nanoGPT, "
    "CTranslate2.",
    "round": "one turn of every arm and every ceiling, in random order. An arm's time is the median of its rounds, ± "
    "their spread (the median absolute deviation, scaled to a standard deviation).",
    "ratio, interval": "`1.31x slower [1.28, 1.34]`: the time over the control's, taken round by round, in which the "
    "machine's slow rounds count less, so it may differ from the quotient of two medians; in brackets its 95% "
    "interval. `same`: the whole interval is within 5% of 1, or 10% for calls longer than a quarter of a second.",
    f"inconclusive, {formatting.DAGGER}": "the interval does not decide between the two. "
    f"`(inconclusive {formatting.DAGGER})`: it would by itself, but the run's identical arms scatter as much, or the "
    "difference is not significant after Holm's adjustment, because of many ratios some differ by chance.",
    "A/A pair": "an arm and its twin, which is the same built again: its true ratio is 1. A pair that is called "
    "different is a false alarm.",
    "memory in all": "the weights, the cache of keys and values as it lies in memory, and the peak of a call beyond "
    "them, each measured.",
    "in products": "the share of the time in matrix products and fused attention. The rest is small operations, "
    "copies, Python, and waiting for memory.",
    "error, allowed": "the relative error of the output against the same work in float64, and the largest that "
    "rounding in the arm's dtype explains. Of weights in fewer bits, it includes what storing them so makes. An arm "
    "above it is wrong, and has no time.",
    "what ran": "the dtype of most products, the kind of attention, and `compiled`, as observed while the arm ran.",
}


def lines(run: RunRecords) -> Iterator[str]:
    """Yield the setup of a benchmark run, and the glossary."""
    yield (f"{setup(run)} A time is shown only if the arm's output was verified ({LINK}).")
    yield ""
    terms = [
        f"- **{word}**: {meaning}" for word, meaning in {**WORDS, "share of ceiling": share_of_ceiling(run)}.items()
    ]
    yield from (Details("What the words mean", [*terms, ""], id=ANCHOR), "")


def setup(run: RunRecords) -> str:
    """Return the model, its dtype, the machine and the number of rounds in two sentences, as far as they are known."""
    sizes = {}  # the parameters are known once a comparison has built the model
    for comparison in sorted(run.comparisons, key=lambda each: isinstance(each.get("parameters"), int)):
        if comparison.get("size"):
            sizes[plain(comparison["size"], 40)] = size_of(comparison)
    size = f"at the size {', '.join(sizes.values())}" if sizes else ""
    parts = [f"`{escape(run.subject, 60)}`", size, common_dtype(run)]
    environment = run.environment
    memory = as_float(environment.get("memory_gib"))
    threads = dict.fromkeys(plural(comparison.get("threads"), "thread") for comparison in run.comparisons)
    machine = [
        escape(environment.get("gpu") or environment.get("cpu") or "an unknown processor", 60),
        plural(environment.get("cores"), "core"),
        ", ".join(filter(None, threads)),
        f"{memory:g} GiB" if memory else None,
        f"torch {escape(environment['torch'], 40)}" if environment.get("torch") else None,
    ]
    timed = f"Timed: {', '.join(filter(None, parts))}; on {', '.join(filter(None, machine))}."
    return f"{timed} {amounts(run)}"


def size_of(comparison: Row) -> str:
    """Return `124M (124,439,808 parameters)`."""
    counted = comparison.get("parameters")
    return escape(comparison.get("size"), 40) + (f" ({counted:,} parameters)" if isinstance(counted, int) else "")


def common_dtype(run: RunRecords) -> str:
    """Return the dtype of most arms, which are not named after it."""
    found = Counter(plain(arm["computes"], 20) for arm in every_arm(run) if arm.get("computes"))
    dtype, count = (found.most_common(1) or [("", 0)])[0]
    return f"{escape(dtype)} unless an arm's name says otherwise" if count > FEWEST_COMMON * found.total() else ""


def every_arm(run: RunRecords) -> list[Row]:
    """Return the arms of all comparisons as they are in the records."""
    return [arm for comparison in run.comparisons for arm in mappings(comparison.get("arms"))]


def amounts(run: RunRecords) -> str:
    """Return how many topics, comparisons and rounds there are, and what these are."""
    rounds = [count for arm in every_arm(run) if (count := len(as_list(arm.get("seconds"))))]
    span = " to ".join(dict.fromkeys(map(str, (min(rounds), max(rounds))))) if rounds else ""
    turns = f" The arms of a comparison took turns, in {span} rounds." if rounds else ""
    return f"{tally(run)}: a topic is a file of `benchmarks/`, a comparison one kind of work at one size.{turns}"


def tally(run: RunRecords) -> str:
    """Return `50 comparisons in 12 topics`."""
    compared, topics = plural(len(run.comparisons), "comparison"), plural(len(by_comparison(run)), "topic")
    return f"{compared} in {topics}"


def share_of_ceiling(run: RunRecords) -> str:
    """Return what a share of a ceiling is a share of, and why it differs between comparisons."""
    rates = reading_rates(run.comparisons)
    span = (
        " to ".join(dict.fromkeys(formatting.si_prefixed(rate, "B/s") for rate in (min(rates), max(rates))))
        if rates
        else ""
    )
    seen = f", here {span}" if rates else ""
    return (
        "`38% of bandwidth [36, 40]`: the least time that the arm's work can take, over the time that it took. The "
        "work is a closed form (FLOP, bytes, launched operations), and the least time is that of the slowest of the "
        "three at the rates that this machine reached in the same rounds: multiplying matrices of that dtype "
        "(*compute*), reading about as many bytes as one pass of the arm reads, of which a cache may contain a part "
        f"(*bandwidth*{seen}), launching (*launch*). So a share is one of the ceiling of its own comparison: within a "
        "comparison shares may be compared, between two of them only times. An arm without a share has no closed form, "
        "or is limited by so few bytes that a cache may contain them all."
    )


def reading_rates(comparisons: Sequence[Row]) -> list[float]:
    """Return the bandwidths of reading that were measured, in bytes a second."""
    found = [each for comparison in comparisons for each in mappings(comparison.get("ceilings"))]
    rates = [as_float(each.get("rate")) for each in found if str(each.get("name")).startswith("read")]
    return [rate for rate in rates if rate and rate > 0]


def arm_descriptions(comparisons: Sequence[Row]) -> Iterator[str]:
    """Yield why the comparisons of a topic are made, and what each of their arms is, if the records say so."""
    whys = {plain(c.get("metric"), 60): plain(c["why"]) for c in comparisons if c.get("why")}
    yield from (f"- **{escape(metric)}**: {escape(why)}" for metric, why in whys.items())
    described = {row["arm"]: row["description"] for c in comparisons for row in arms(c) if row["description"]}
    if described:
        yield (
            "- Arms: " + "; ".join(f"*{escape(arm, 60)}* {escape(text, 200)}" for arm, text in described.items()) + "."
        )
    if whys or described:
        yield ""
