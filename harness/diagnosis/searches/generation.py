"""Generation explained: what the subject draws from, and what it takes greedily, held against the arm_specs to get it wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.errors import Missing, SubjectError
from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import SourceLine, users_line
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Generates, Model, Subject, build_with_weights

SIZE = "debug"
STEPS, ROWS, PROMPT = 3, 16, 5
SAME = 1e-5  # of probability; float32 rounds at 1e-6, a wrong setting moves it by 1e-2


@dataclass(frozen=True)
class SamplingSettings:
    """What `generate` is asked for."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __str__(self) -> str:
        words = [f"temperature {self.temperature:g}"]
        words += [f"top_k {self.top_k}"] if self.top_k else []
        words += [f"top_p {self.top_p:g}"] if self.top_p else []
        return ", ".join(words)


SETTINGS = (
    SamplingSettings(),
    SamplingSettings(temperature=0.5),
    SamplingSettings(temperature=2.0),
    SamplingSettings(top_k=5),
    SamplingSettings(top_k=1),
    SamplingSettings(temperature=2.0, top_k=7),
    SamplingSettings(top_p=0.6),
    SamplingSettings(temperature=1.5, top_p=0.8),
    SamplingSettings(temperature=1.5, top_k=20, top_p=0.8),
)
# (logits (N, T, V), what was asked for, number of the step) -> probabilities (N, V)
Distribution = Callable[[Tensor, SamplingSettings, int], Tensor]


@dataclass(frozen=True)
class RecordedGeneration:
    """One setting's run: the probabilities that were drawn from, and the logits (N, T, V) of each step's context."""

    setting: SamplingSettings
    drawn_from: list[Tensor]
    taken: list[Tensor]  # (N): the probability, in what was drawn from, of what was drawn
    tokens: list[Tensor]  # (N): the token that came out
    logits: list[Tensor]


class Draws(TorchFunctionMode):
    """While open, keeps the probabilities (N, V) that reach `torch.multinomial`, and the line that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.probabilities: list[Tensor] = []
        self.taken: list[Tensor] = []
        self.line: SourceLine | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function in (torch.multinomial, torch.Tensor.multinomial):
            weights = (args[0] if args else given["input"]).detach().double()
            weights = (weights / weights.sum(-1, keepdim=True)).reshape(-1, weights.shape[-1])
            self.probabilities.append(weights)
            self.line = self.line or users_line()
            drawn: Tensor = function(*args, **given)
            self.taken.append(weights.gather(1, drawn.reshape(len(weights), -1)[:, :1])[:, 0])
            return drawn
        return function(*args, **given)


@torch.no_grad()
def explain(subject: Subject) -> list[Finding]:
    """Findings about the subject's own `generate`; none where it has none."""
    if not isinstance(subject, Generates):
        return []
    model = build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"))
    found = _greedy(subject, model)
    if found:
        return found
    seeded = _seeds(subject, model)
    return [*_distributions(subject, model), *seeded]


def _greedy(subject: Generates, model: Model) -> list[Finding]:
    """Temperature 0, within the context and beyond it."""
    context = SIZES[SIZE].context
    prompt, _ = batch(SIZES[SIZE], "random", rows=8, length=PROMPT)
    full, _ = batch(SIZES[SIZE], "random", rows=8, length=context)
    try:
        short = subject.generate(model, prompt, 6, temperature=0.0)
    except Missing:
        return []
    except SubjectError:
        return []  # not the tokens that were asked for: what the lengths are is told elsewhere
    except Exception as error:
        told = f"{type(error).__name__}: {error}"[:200]
        return [
            Finding(
                "generation.temperature",
                "gen-temperature-zero",
                "temperature 0 is an error, not the likeliest token",
                told,
            )
        ]
    try:
        # Random tokens fill the context: greedy ones soon repeat, and any window of them looks alike.
        long = subject.generate(model, full, 5, temperature=0.0)
    except SubjectError:
        return []
    except Exception as error:
        told = f"{type(error).__name__}: {error}"[:200]
        return [Finding("generation.crop", "gen-crop-missing", "generation past the context is an error", told)]
    arm_specs: list[tuple[str, str, str, Callable[[Tensor], Tensor]]] = [
        ("", "", "", lambda ids: model.logits(ids[:, -context:])[:, -1]),
        ("generation.position", "gen-wrong-position", "the next token is drawn from the first position's logits", lambda ids: model.logits(ids[:, -context:])[:, 0]),
        ("generation.position", "gen-last-but-one-position", "the next token is drawn from the last position but one", lambda ids: model.logits(ids[:, -context:])[:, -2]),
        ("generation.position", "gen-wrong-position", "the next token is drawn from the first position's logits, of what the cache does not hold", lambda ids: _of_new(model, ids, 0)),
        ("generation.position", "gen-last-but-one-position", "the next token is drawn from the last position but one, of what the cache does not hold", lambda ids: _of_new(model, ids, -2)),
        ("generation.crop", "gen-crop-wrong-side", "past the context the first tokens are kept, not the last", lambda ids: model.logits(ids[:, :context])[:, -1]),
        ("generation.crop", "gen-crop-one-too-short", "one token fewer is kept than fits", lambda ids: model.logits(_last(ids, context - 1))[:, -1]),
        ("generation.crop", "gen-crop-too-short", "half the context is kept", lambda ids: model.logits(_last(ids, context // 2))[:, -1]),
        ("generation.crop", "gen-crop-to-one", "only the latest token is read", lambda ids: model.logits(_last(ids, 1))[:, -1]),
    ]  # fmt: skip
    for where, fault, says, logits in arm_specs:
        with torch.no_grad():
            if _is_argmax(long, logits, context) and _is_argmax(short, logits):
                if not fault:
                    return []
                return [
                    Finding(where, fault, says, "every greedy token is the likeliest of that, and not of the right one")
                ]
    if bool(_is_argmax(short, arm_specs[0][3])):
        uncached = _uncached(subject, model, full, long)
        if uncached:
            return uncached
    likely = [
        Finding("generation.temperature", "gen-temperature-zero", "temperature 0 does not take the likeliest token", "")
    ]
    return likely if not _is_argmax(short, arm_specs[0][3]) and _varies(subject, model, prompt) else []


def _last(ids: Tensor, count: int) -> Tensor:
    """All tokens while they fit the context, then the last `count`."""
    return ids if ids.shape[1] <= SIZES[SIZE].context else ids[:, -count:]


def _of_new(model: Model, ids: Tensor, position: int) -> Tensor:
    """Logits at a position of what a cache has not seen: of the whole prompt at first, then of one token at a time."""
    logits = model.logits(ids[:, -SIZES[SIZE].context :])
    first = ids.shape[1] in (PROMPT, SIZES[SIZE].context) or ids.shape[1] > SIZES[SIZE].context
    return logits[:, position] if first else logits[:, -1]


def _uncached(subject: Generates, model: Model, prompt: Tensor, long: Tensor) -> list[Finding]:
    """Right within the context and wrong past it: stale keys and values, if it is right without the cache."""
    try:
        without = subject.generate(model, prompt, long.shape[1] - prompt.shape[1], temperature=0.0, use_cache=False)
    except Exception:
        return []
    context = SIZES[SIZE].context
    with torch.no_grad():
        if not _is_argmax(without, lambda ids: model.logits(ids[:, -context:])[:, -1], context):
            return []
    says = "past the context generation goes on with the cache: what it holds is stale"
    return [Finding("cache.lifetime", "kv-kept-past-the-context", says, "without the cache every token is right")]


def _varies(subject: Generates, model: Model, prompt: Tensor) -> bool:
    answers = [subject.generate(model, prompt, 6, temperature=0.0, seed=seed) for seed in (0, 1)]
    return not torch.equal(*answers)


def _is_argmax(answer: Tensor, logits: Callable[[Tensor], Tensor], start: int = PROMPT) -> bool:
    """Whether every new token is the likeliest by these logits, within rounding."""
    for end in range(start, answer.shape[1]):
        last = logits(answer[:, :end])
        chosen = last.gather(1, answer[:, end : end + 1])[:, 0]
        if not bool((chosen >= last.amax(1) - 1e-4 * last.abs().amax()).all()):
            return False
    return True


def _seeds(subject: Generates, model: Model) -> list[Finding]:
    prompt, _ = batch(SIZES[SIZE], "random", rows=4, length=PROMPT)
    where = "generation.seed"

    def draw(seed: int) -> Tensor:
        torch.manual_seed(1000 + draws[0])
        draws[0] += 1
        return subject.generate(model, prompt.clone(), 12, seed=seed)

    draws = [0]
    try:
        first, again, other, zero, zero_again = draw(5), draw(5), draw(6), draw(0), draw(0)
    except Exception:
        return []
    if not torch.equal(first, again):
        return [
            Finding(
                where, "gen-seed-ignored", "the seed is not used", "the same seed gives other tokens the second time"
            )
        ]
    if not torch.equal(zero, zero_again):
        return [
            Finding(
                where,
                "gen-seed-zero-ignored",
                "seed 0 is taken for none",
                "seed 0 gives other tokens the second time, seed 5 the same",
            )
        ]
    if torch.equal(first, other) and torch.equal(first, zero):
        greedy = subject.generate(model, prompt, 12, temperature=0.0)
        if torch.equal(first, greedy):
            where = "generation.temperature"
            return [
                Finding(
                    where,
                    "gen-samples-greedily",
                    "the likeliest token is always taken",
                    "at temperature 1 every seed gives the greedy tokens",
                )
            ]
        return [
            Finding(
                where, "gen-seed-fixed", "every seed gives the same tokens", "seeds 0, 5 and 6 give the same tokens"
            )
        ]
    return []


def _distributions(subject: Generates, model: Model) -> list[Finding]:
    runs: list[RecordedGeneration] = []
    line: SourceLine | None = None
    for setting in SETTINGS:
        try:
            seen, drawn_at = _seen(subject, model, setting)
        except Missing:
            continue  # a setting that the subject does not have
        except SubjectError:
            return []
        except Exception as error:
            told = f"{setting}: {type(error).__name__}: {error}"[:200]
            return [Finding("generation", "", "generate raises an error", told)]
        line = line or drawn_at
        if seen is not None:
            runs.append(seen)
    wrong = [run for run in runs if not _fits(run, definition)]
    if not wrong:
        return _large_k(subject, model)
    names = "; ".join(str(run.setting) for run in wrong[:3]) + (" ..." if len(wrong) > 3 else "")
    evidence = f"the probabilities that it draws from are not the definition's, asked for {names}"
    at = ("", "") if line is None else (str(line), line.text)
    for where, fault, says, distribution in arm_specs():
        if all(_fits(run, distribution) for run in runs):
            return [Finding(where, fault, says, f"{evidence}; with this they agree, for every setting tried", *at)]
    words = [
        w
        for w, used in (("top_k", all(r.setting.top_k for r in wrong)), ("top_p", all(r.setting.top_p for r in wrong)))
        if used
    ]
    if not words and all(r.setting.temperature != 1 for r in wrong):
        words = ["temperature"]
    return [Finding(".".join(["generation", *words[:1]]), "", "no explanation of the catalogue fits", evidence, *at)]


def _large_k(subject: Generates, model: Model) -> list[Finding]:
    prompt, _ = batch(SIZES[SIZE], "random", rows=2, length=PROMPT)
    try:
        subject.generate(model, prompt, 1, top_k=SIZES[SIZE].vocab_size + 10)
    except Missing:
        return []
    except Exception as error:
        told = f"{type(error).__name__}: {error}"[:200]
        return [
            Finding("generation.top_k", "gen-topk-larger-than-vocab", "a top_k beyond the vocabulary is an error", told)
        ]
    return []


def _seen(
    subject: Generates, model: Model, setting: SamplingSettings
) -> tuple[RecordedGeneration | None, SourceLine | None]:
    """One run, if its draws can be seen."""
    prompts, _ = batch(SIZES[SIZE], "random", rows=ROWS, length=PROMPT)
    asked = {"temperature": setting.temperature, "top_k": setting.top_k, "top_p": setting.top_p, "seed": 0}
    with Draws() as draws:
        answer = subject.generate(model, prompts, STEPS, **asked)  # type: ignore[arg-type]
    if [len(p) for p in draws.probabilities] != [ROWS] * STEPS:
        return None, draws.line
    with torch.no_grad():
        logits = [model.logits(answer[:, : PROMPT + step]).double() for step in range(STEPS)]
    tokens = [answer[:, PROMPT + step] for step in range(STEPS)]
    return RecordedGeneration(setting, draws.probabilities, draws.taken, tokens, logits), draws.line


def _fits(run: RecordedGeneration, distribution: Distribution) -> bool:
    """Whether what was drawn from is the distribution: in whatever order, as some draw among the sorted or the k best."""
    for step, (found, logits) in enumerate(zip(run.drawn_from, run.logits, strict=True)):
        try:
            expected = distribution(logits, run.setting, step)
        except (RuntimeError, IndexError):
            return False
        if found.shape == expected.shape and torch.allclose(found, expected, atol=SAME, rtol=0):
            continue
        if distribution is not definition:
            return False
        in_order = [p.sort(dim=-1, descending=True).values for p in (found, expected)]
        columns = max(p.shape[1] for p in in_order)
        padded = [torch.nn.functional.pad(p, (0, columns - p.shape[1])) for p in in_order]
        same = torch.allclose(padded[0], padded[1], atol=SAME, rtol=0)
        mass = expected.gather(1, run.tokens[step][:, None])[:, 0]
        if not same or not torch.allclose(mass, run.taken[step], atol=SAME, rtol=0):
            return False
    return True


def warmed(logits: Tensor, temperature: float) -> Tensor:
    """The last position's logits over the temperature."""
    return logits[:, -1] / temperature


def keep_top_k(logits: Tensor, k: int | None, fill: float = -math.inf) -> Tensor:
    """All but the k likeliest filled."""
    if not k or k < 1:
        return logits
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, fill)


def keep_top_p(probabilities: Tensor, p: float | None, shift: int = 0) -> Tensor:
    """The smallest set of likeliest tokens whose mass reaches p, and `shift` more."""
    if p is None:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    count = (ordered.cumsum(-1) - ordered < p).sum(-1, keepdim=True) + shift
    kept = torch.arange(ordered.shape[-1]) < count.clamp(min=1)
    ordered = ordered * kept
    return torch.zeros_like(ordered).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def definition(logits: Tensor, setting: SamplingSettings, step: int) -> Tensor:
    """Temperature, then top-k, then top-p."""
    warm = keep_top_k(warmed(logits, setting.temperature), setting.top_k)
    return keep_top_p(warm.softmax(-1), setting.top_p)


def arm_specs() -> Iterator[tuple[str, str, str, Distribution]]:
    """Where, the fault's id, what it says, and the distribution that it gives."""
    place = "generation.temperature"

    def temperature(function: Callable[[SamplingSettings, int], float]) -> Distribution:
        return lambda logits, s, step: definition(logits, SamplingSettings(function(s, step), s.top_k, s.top_p), step)

    yield place, "gen-temperature-after-softmax", "the temperature has no effect", temperature(lambda s, step: 1.0)
    yield (
        place,
        "gen-temperature-twice",
        "the temperature is applied twice",
        temperature(lambda s, step: s.temperature**2),
    )
    yield (
        place,
        "gen-temperature-multiplied",
        "logits are multiplied by the temperature",
        temperature(lambda s, step: 1 / s.temperature),
    )
    yield (
        place,
        "gen-temperature-cumulative",
        "the temperature is applied once more at every step",
        temperature(lambda s, step: s.temperature ** (step + 1)),
    )
    yield (
        place,
        "gen-temperature-dropped-with-top-k",
        "with top-k the temperature is forgotten",
        temperature(lambda s, step: 1.0 if s.top_k else s.temperature),
    )
    yield (
        place,
        "gen-temperature-dropped-with-top-p",
        "with top-p the temperature is forgotten",
        temperature(lambda s, step: 1.0 if s.top_p else s.temperature),
    )
    yield (
        place,
        "gen-temperature-root",
        "the root of the temperature is used",
        temperature(lambda s, step: math.sqrt(s.temperature)),
    )
    place = "generation.top_k"

    def top_k(function: Callable[[int], int | None]) -> Distribution:
        return lambda logits, s, step: definition(
            logits, SamplingSettings(s.temperature, function(s.top_k) if s.top_k else None, s.top_p), step
        )

    yield place, "gen-topk-off-by-one", "k + 1 tokens are kept", top_k(lambda k: k + 1)
    yield place, "gen-topk-one-too-few", "k - 1 tokens are kept", top_k(lambda k: max(k - 1, 1))
    yield place, "gen-topk-ignored", "top_k has no effect", top_k(lambda k: None)
    for fill in (1e-10, 0.0, -1.0, -10.0):

        def filled(logits: Tensor, s: SamplingSettings, step: int, fill: float = fill) -> Tensor:
            return keep_top_p(keep_top_k(warmed(logits, s.temperature), s.top_k, fill).softmax(-1), s.top_p)

        yield (
            place,
            "gen-topk-fill-tiny-positive",
            f"logits beyond the k likeliest become {fill:g}, not minus infinity",
            filled,
        )

    def of_the_first_row(logits: Tensor, s: SamplingSettings, step: int) -> Tensor:
        warm = warmed(logits, s.temperature)
        if s.top_k:
            kth = warm.topk(s.top_k).values[:1, -1:]
            warm = warm.masked_fill(warm < kth.clamp(max=float(warm.amax(-1).min())), -math.inf)
        return keep_top_p(warm.softmax(-1), s.top_p)

    yield place, "gen-topk-per-batch", "the k-th logit is the first row's, for all rows", of_the_first_row
    place = "generation.top_p"

    def top_p(function: Callable[[Tensor, SamplingSettings], Tensor]) -> Distribution:
        return lambda logits, s, step: (
            definition(logits, s, step)
            if s.top_p is None
            else function(keep_top_k(warmed(logits, s.temperature), s.top_k).softmax(-1), s)
        )

    yield (
        place,
        "gen-topp-drops-crossing-token",
        "the nucleus leaves out the token that crosses p",
        top_p(lambda q, s: keep_top_p(q, s.top_p, -1)),
    )
    yield (
        place,
        "gen-topp-keeps-one-more",
        "the nucleus keeps one token more than it needs",
        top_p(lambda q, s: keep_top_p(q, s.top_p, 1)),
    )
    yield place, "gen-topp-ignored", "top_p has no effect", top_p(lambda q, s: q)
    yield place, "gen-topp-complement", "the nucleus holds 1 - p", top_p(lambda q, s: keep_top_p(q, 1 - (s.top_p or 0)))

    def unnormalised(logits: Tensor, s: SamplingSettings, step: int) -> Tensor:
        whole = warmed(logits, s.temperature).softmax(-1)
        if s.top_k:
            whole = whole * (keep_top_k(whole, s.top_k) > -math.inf)
        return keep_top_p(whole, s.top_p) if s.top_p else whole / whole.sum(-1, keepdim=True)

    yield (
        place,
        "gen-topp-after-topk-unnormalised",
        "after top-k the mass is not normalised before top-p counts it",
        unnormalised,
    )

    def before_top_k(logits: Tensor, s: SamplingSettings, step: int) -> Tensor:
        kept = keep_top_p(warmed(logits, s.temperature).softmax(-1), s.top_p)
        kept = kept * (keep_top_k(kept, s.top_k) > -math.inf)
        return kept / kept.sum(-1, keepdim=True)

    yield place, "gen-topp-before-topk", "top-p comes before top-k", before_top_k

    def before_temperature(logits: Tensor, s: SamplingSettings, step: int) -> Tensor:
        kept = keep_top_p(keep_top_k(logits[:, -1], s.top_k).softmax(-1), s.top_p) ** (1 / s.temperature)
        return kept / kept.sum(-1, keepdim=True)

    yield (
        place,
        "gen-topp-before-temperature",
        "the nucleus is chosen before the temperature is applied",
        before_temperature,
    )

    def unsorted(q: Tensor, s: SamplingSettings) -> Tensor:
        kept = q * (q.cumsum(-1) - q < (s.top_p or 1))
        return kept / kept.sum(-1, keepdim=True)

    yield place, "gen-topp-unsorted", "the nucleus is cut in the order of the vocabulary, unsorted", top_p(unsorted)

    def by_rank(q: Tensor, s: SamplingSettings) -> Tensor:
        return keep_top_p(q, s.top_p).sort(dim=-1, descending=True).values

    yield place, "gen-topp-not-scattered-back", "the rank in the nucleus is taken for the token", top_p(by_rank)

    def first_only(logits: Tensor, s: SamplingSettings, step: int) -> Tensor:
        return definition(logits, s if step == 0 else SamplingSettings(s.temperature), step)

    yield (
        "generation.top_k",
        "gen-filters-first-token-only",
        "top_k and top_p hold for the first token only",
        first_only,
    )
    for number, fault in ((0, "gen-wrong-position"), (-2, "gen-last-but-one-position")):
        for cached in (False, True):

            def elsewhere(
                logits: Tensor, s: SamplingSettings, step: int, number: int = number, cached: bool = cached
            ) -> Tensor:
                position = -1 if cached and step else number  # with a cache, one token at a time after the first step
                return definition(logits[:, position][:, None], s, step)

            yield "generation.position", fault, f"the next token is drawn from position {number}", elsewhere
