"""The search for what goes wrong in `generate`: greedy decoding, seeds, and the distribution that is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import Missing, SubjectError
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.recorders import DrawRecorder
from harness.diagnosis.searches.decoding import read_off, read_off_settings
from harness.diagnosis.variants import greedy, sampling
from harness.diagnosis.variants.greedy import GREEDY_VARIANTS, NextLogits
from harness.diagnosis.variants.sampling import SAMPLING_VARIANTS, Distribution, SamplingSettings
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Generates, Subject

SIZE = "debug"
STEPS, ROWS, PROMPT = 3, 16, 5
SAME = 1e-5  # of probability; float32 rounds at 1e-6, a wrong setting moves it by 1e-2
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


@dataclass(frozen=True)
class RecordedGeneration:
    """One generation with one setting, step by step. N is the number of rows, T grows by one a step."""

    setting: SamplingSettings
    probabilities: list[Tensor]  # (N, V), of what was drawn from, in any order
    taken: list[Tensor]  # (N): the probability of what was drawn
    tokens: list[Tensor]  # (N): the token that was appended
    logits: list[Tensor]  # (N, T, V), of the context


@torch.no_grad()
def search(subject: Subject) -> list[Finding]:
    """Return findings about the subject's own `generate`; [] if it has none."""
    if not isinstance(subject, Generates):
        return []
    model = build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"))
    if found := _greedy(subject, model):
        return found
    seeds = _seeds(subject, model)
    found = [*_distributions(subject, model), *seeds]
    if all(not finding.fault for finding in found):
        return _read_off(subject, model) or found
    return found


def _greedy(subject: Generates, model: Model) -> list[Finding]:
    """Return findings at temperature 0, within the context and beyond it."""
    context = SIZES[SIZE].context
    prompt, _ = batch(SIZES[SIZE], "random", rows=8, length=PROMPT)
    # Random tokens fill the context: greedy ones soon repeat, and then all windows of them are alike.
    full, _ = batch(SIZES[SIZE], "random", rows=8, length=context)
    try:
        short = subject.generate(model, prompt, 6, temperature=0.0)
    except (Missing, SubjectError):
        return []  # SubjectError: the wrong number of tokens, which a check of the lengths reports
    except Exception as error:
        if _raises(subject, model, prompt):
            return [Finding("generation", "", "generate raises an error", _description(error))]
        cause = "temperature 0 is an error, not the likeliest token"
        return [Finding("generation.temperature", "gen-temperature-zero", cause, _description(error))]
    try:
        long = subject.generate(model, full, 5, temperature=0.0)
    except SubjectError:
        return []
    except Exception as error:
        cause = "generation past the context is an error"
        return [Finding("generation.crop", "gen-crop-missing", cause, _description(error))]
    if _matches_greedily(model, greedy.definition, short=short, long=long):
        return []
    for variant in GREEDY_VARIANTS:
        if _matches_greedily(model, variant.logits, short=short, long=long):
            evidence = "every greedy token is the likeliest by these logits, and not by the right ones"
            return [Finding(variant.where, variant.fault, variant.says, evidence)]
    if _is_argmax(model, short, greedy.definition, prompt=PROMPT):
        return _stale_cache(subject, model, full, new_tokens=long.shape[1] - context)
    if _varies(subject, model, prompt):
        cause = "temperature 0 does not take the likeliest token"
        return [Finding("generation.temperature", "gen-temperature-zero", cause, "")]
    return []


def _raises(subject: Generates, model: Model, prompt: Tensor) -> bool:
    """Return True if generation raises an error at the usual temperature, too."""
    try:
        subject.generate(model, prompt, 6)
    except Exception:
        return True
    return False


def _matches_greedily(model: Model, logits: NextLogits, *, short: Tensor, long: Tensor) -> bool:
    past_context = _is_argmax(model, long, logits, prompt=SIZES[SIZE].context)
    return past_context and _is_argmax(model, short, logits, prompt=PROMPT)


def _is_argmax(model: Model, ids: Tensor, logits: NextLogits, *, prompt: int) -> bool:
    """Return True if every token after the prompt is the likeliest by these logits, within float32 rounding."""
    for end in range(prompt, ids.shape[1]):
        last = logits(model, ids[:, :end], PROMPT)
        chosen = last.gather(1, ids[:, end : end + 1])[:, 0]
        if not bool((chosen >= last.amax(1) - 1e-4 * last.abs().amax()).all()):
            return False
    return True


def _stale_cache(subject: Generates, model: Model, prompt: Tensor, *, new_tokens: int) -> list[Finding]:
    """Return the finding for tokens that are right within the context, and past it only without the cache."""
    try:
        uncached = subject.generate(model, prompt, new_tokens, temperature=0.0, use_cache=False)
    except Exception:
        return []
    if not _is_argmax(model, uncached, greedy.definition, prompt=SIZES[SIZE].context):
        return []
    cause = "past the context generation continues with the cache, whose keys and values are stale"
    return [Finding("cache.lifetime", "kv-kept-past-the-context", cause, "without the cache every token is right")]


def _varies(subject: Generates, model: Model, prompt: Tensor) -> bool:
    """Return True if greedy tokens depend on the seed."""
    first, second = (subject.generate(model, prompt, 6, temperature=0.0, seed=seed) for seed in (0, 1))
    return not torch.equal(first, second)


def _seeds(subject: Generates, model: Model) -> list[Finding]:
    """Return findings about the argument `seed`."""
    prompt, _ = batch(SIZES[SIZE], "random", rows=4, length=PROMPT)
    calls = 0

    def draw(seed: int) -> Tensor:
        nonlocal calls
        torch.manual_seed(1000 + calls)  # what is not seeded by `seed` differs from call to call
        calls += 1
        return subject.generate(model, prompt.clone(), 12, seed=seed)

    try:
        first, again, other, zero, zero_again = draw(5), draw(5), draw(6), draw(0), draw(0)
    except Exception:
        return []
    if not torch.equal(first, again):
        evidence = "the same seed gives other tokens the second time"
        return [Finding("generation.seed", "gen-seed-ignored", "the seed does not decide the tokens", evidence)]
    if not torch.equal(zero, zero_again):
        evidence = "seed 0 gives other tokens the second time, seed 5 the same"
        return [Finding("generation.seed", "gen-seed-zero-ignored", "seed 0 does not decide the tokens", evidence)]
    if not torch.equal(first, other) or not torch.equal(first, zero):
        return []
    if torch.equal(first, subject.generate(model, prompt, 12, temperature=0.0)):
        cause, evidence = "the likeliest token is always taken", "at temperature 1 every seed gives the greedy tokens"
        return [Finding("generation.temperature", "gen-samples-greedily", cause, evidence)]
    cause, evidence = "every seed gives the same tokens", "seeds 0, 5 and 6 give the same tokens"
    return [Finding("generation.seed", "gen-seed-fixed", cause, evidence)]


def _distributions(subject: Generates, model: Model) -> list[Finding]:
    """Return findings about the probabilities that are drawn from."""
    runs: list[RecordedGeneration] = []
    line: SourceLine | None = None
    raised = ""
    for setting in SETTINGS:
        try:
            run, drawn_at = _recorded(subject, model, setting)
        except Missing:
            continue  # the subject does not have this setting
        except SubjectError:
            return []
        except Exception as error:
            raised = raised or f"{setting}: {_description(error)}"[:200]
            continue
        line = line or drawn_at
        if run is not None:
            runs.append(run)
    wrong = [run for run in runs if not _matches(run, sampling.definition)]
    if not wrong and raised:
        return [Finding("generation", "", "generate raises an error", raised)]
    if not wrong:
        return _large_k(subject, model)
    settings = "; ".join(str(run.setting) for run in wrong[:3]) + (" ..." if len(wrong) > 3 else "")
    evidence = f"the probabilities that it draws from are not those of the definition for {settings}"
    evidence += f"; {raised}" if raised else ""
    for variant in SAMPLING_VARIANTS:
        if all(_matches(run, variant.distribution) for run in runs):
            evidence += "; this variant gives them for every setting tried"
            return [Finding(variant.where, variant.fault, variant.says, evidence, *location(line))]
    says = next(filter(None, map(read_off_settings, wrong)), NO_VARIANT)
    return [Finding(_component_of([run.setting for run in wrong]), "", says, evidence, *location(line))]


def _read_off(subject: Generates, model: Model) -> list[Finding]:
    try:
        return read_off(subject, model)
    except Exception:
        return []  # what it raises, the searches before have reported


def _component_of(wrong: list[SamplingSettings]) -> str:
    """Return the component that all the settings have in common, `generation` if there is none."""
    if all(setting.top_k for setting in wrong):
        return sampling.TOP_K
    if all(setting.top_p for setting in wrong):
        return sampling.TOP_P
    return sampling.TEMPERATURE if all(setting.temperature != 1 for setting in wrong) else "generation"


def _large_k(subject: Generates, model: Model) -> list[Finding]:
    prompt, _ = batch(SIZES[SIZE], "random", rows=2, length=PROMPT)
    try:
        subject.generate(model, prompt, 1, top_k=SIZES[SIZE].vocab_size + 10)
    except Missing:
        return []
    except Exception as error:
        cause = "a top_k beyond the vocabulary is an error"
        return [Finding("generation.top_k", "gen-topk-larger-than-vocab", cause, _description(error))]
    return []


def _recorded(
    subject: Generates, model: Model, setting: SamplingSettings
) -> tuple[RecordedGeneration | None, SourceLine | None]:
    """Return one generation, None if its draws do not go through `torch.multinomial`, and the line that draws."""
    prompts, _ = batch(SIZES[SIZE], "random", rows=ROWS, length=PROMPT)
    with DrawRecorder() as draws:
        ids = subject.generate(
            model, prompts, STEPS, temperature=setting.temperature, top_k=setting.top_k, top_p=setting.top_p, seed=0
        )
    if [len(rows) for rows in draws.probabilities] != [ROWS] * STEPS:
        return None, draws.line
    with torch.no_grad():
        logits = [model.logits(ids[:, : PROMPT + step]).double() for step in range(STEPS)]
    tokens = [ids[:, PROMPT + step] for step in range(STEPS)]
    return RecordedGeneration(setting, draws.probabilities, draws.taken, tokens, logits), draws.line


def _matches(run: RecordedGeneration, distribution: Distribution) -> bool:
    """Return True if the generation drew from this distribution, at every step.

    For the definition the order may differ, because some draw among sorted tokens or among the k largest. The token
    that was appended must have the probability of what was drawn then.
    """
    for step, (found, logits) in enumerate(zip(run.probabilities, run.logits, strict=True)):
        try:
            expected = distribution(logits, run.setting, step)
        except (RuntimeError, IndexError):
            return False  # the variant is not defined for this setting
        if found.shape == expected.shape and torch.allclose(found, expected, atol=SAME, rtol=0):
            continue
        if distribution is not sampling.definition:
            return False
        of_appended = expected.gather(1, run.tokens[step][:, None])[:, 0]
        if not _same_in_order(found, expected) or not torch.allclose(of_appended, run.taken[step], atol=SAME, rtol=0):
            return False
    return True


def _same_in_order(found: Tensor, expected: Tensor) -> bool:
    """Return True if two distributions (N, V), one perhaps without its zeros, have the same sorted probabilities."""
    ordered = [p.sort(dim=-1, descending=True).values for p in (found, expected)]
    columns = max(p.shape[1] for p in ordered)
    padded = [torch.nn.functional.pad(p, (0, columns - p.shape[1])) for p in ordered]
    return torch.allclose(padded[0], padded[1], atol=SAME, rtol=0)


def _description(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
