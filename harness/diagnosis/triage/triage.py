"""The triage: all evidence on one checkpoint, in order, and the causes that no other one explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import HarnessError
from harness.core.seeds import seeded
from harness.diagnosis.triage import decoding, future, loading, numbering, random_matrices, text_losses, text_tokens
from harness.diagnosis.triage.evidence import Evidence, undecided
from harness.diagnosis.triage.loading import LoadedSubject
from harness.diagnosis.triage.stored_checkpoint import StoredCheckpoint
from harness.diagnosis.triage.text_tokens import Text
from harness.subjects.protocols import Subject

OF_THE_TEXT = (
    future.LOOKED_AHEAD,
    future.TRANSPOSED,
    text_losses.SHIFTED,
    numbering.CAUSE,
    text_losses.POSITIONS,
    text_losses.UNDERTRAINED,
)
OF_THE_PROGRAM = (decoding.CACHE, decoding.SAMPLER, decoding.GREEDY)
EXPECTED = "the loss that this size reaches after as many tokens"
# What a cause makes wrong besides: these lines follow from it, and are no causes of their own.
CONSEQUENCES: dict[str, tuple[str, ...]] = {
    loading.CAUSE: OF_THE_TEXT,
    random_matrices.CAUSE: OF_THE_TEXT,
    random_matrices.NOT_FINITE: (future.LEAKS, *OF_THE_TEXT, *OF_THE_PROGRAM),
    future.LEAKS: (*OF_THE_TEXT, *OF_THE_PROGRAM),
    future.LOOKED_AHEAD: OF_THE_TEXT[1:],
    future.TRANSPOSED: OF_THE_TEXT[2:],
    text_losses.SHIFTED: (numbering.CAUSE, text_losses.POSITIONS, text_losses.UNDERTRAINED),
    numbering.CAUSE: (text_losses.POSITIONS, text_losses.UNDERTRAINED),
}


@dataclass(frozen=True)
class Triage:
    """The evidence on one checkpoint; `causes` are the lines of it that are wrong and follow from no other."""

    checkpoint: str
    subject: str
    evidence: tuple[Evidence, ...]

    @property
    def causes(self) -> list[Evidence]:
        """The lines that are wrong; where there are none, those that depend on a program that was not seen."""
        wrong = [each for each in self.evidence if each.verdict == "wrong"]
        return wrong or [each for each in self.evidence if each.verdict == "possible"]

    def as_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "checkpoint": self.checkpoint,
            "subject": self.subject,
            "causes": [each.cause for each in self.causes],
            "evidence": [each.as_dict() for each in self.evidence],
        }


def triage(
    stored: StoredCheckpoint,
    subject: Subject,
    *,
    text: str | None = None,
    vocabulary: str | None = None,
    heads: int | None = None,
    named: bool = True,
) -> Triage:
    """Return the triage of a checkpoint of a subject.

    `text` and `vocabulary` are those of `tokens_of`; `heads` and `named` those of `load`. Raises HarnessError for a
    checkpoint or a text that cannot be read.
    """
    loaded = loading.load(stored, subject, heads=heads, named=named)
    evidence = [loaded.evidence[0], random_matrices.finite(stored.tensors)]
    evidence += [random_matrices.random_matrices(stored.tensors, loaded.size)]
    tokens, on_vocabulary = text_tokens.tokens_of(stored, loaded.size.vocab_size, text=text, vocabulary=vocabulary)
    evidence.append(on_vocabulary)
    evidence += _on_the_text(loaded, tokens, on_vocabulary, stored.step)
    evidence += _on_decoding(loaded, _prompts(loaded, tokens))
    evidence.append(loaded.evidence[1])
    return Triage(stored.name, subject.name, tuple(_explained(evidence)))


def _on_the_text(
    loaded: LoadedSubject, tokens: Text | None, on_vocabulary: Evidence, step: int | None
) -> Iterator[Evidence]:
    """Yield the evidence on the mask, which needs no text, and on the losses, which do."""
    model = loaded.build()
    generator = torch.Generator().manual_seed(seeded(0))
    drawn = torch.randint(model.size.vocab_size, (4, min(64, model.size.context)), generator=generator)
    yield _measured(future.LEAKS, future.leak, loaded, drawn)
    losses = None
    why = f"it needs a text: {on_vocabulary.says}"
    if tokens is not None:
        try:
            losses = text_losses.text_losses(model, tokens)
        except HarnessError as error:
            why = str(error)
        except Exception as error:  # the subject's own
            why = f"the forward pass fails: {describe_error(error)}"
    if losses is None:
        yield from (undecided(cause, why) for cause in OF_THE_TEXT)
        return
    yield _measured(future.LOOKED_AHEAD, future.looked_ahead, model, losses)
    yield _measured(future.TRANSPOSED, future.transposed, model, losses)
    yield text_losses.shifted_targets(losses)
    yield numbering.numbering(model, losses)
    late, trained = text_losses.late_positions(losses)
    yield late
    on_training = text_losses.undertrained(losses, trained, step)
    yield on_training
    if on_training.verdict == "right":
        yield undecided(EXPECTED, f"no other run of this size is at hand to compare with; {on_training.says}")


def _measured(cause: str, measure: Callable[..., Evidence], *arguments: Any) -> Evidence:
    """Return what `measure` returns; if the subject raises an error in it, the cause is undecided."""
    try:
        return measure(*arguments)
    except Exception as error:
        return undecided(cause, f"the GPT fails: {describe_error(error)}")


def _on_decoding(loaded: LoadedSubject, prompts: Tensor) -> Iterator[Evidence]:
    """Yield the evidence on the cache and the sampler; a sampler that is wrong with a wrong cache is tried without."""
    generator = torch.Generator().manual_seed(seeded(1))
    length = min(decoding.CACHED, loaded.size.context)
    on_cache = decoding.cache(loaded, torch.randint(loaded.size.vocab_size, (2, length), generator=generator))
    yield on_cache
    model = loaded.build()
    for measured in (decoding.sampler, decoding.greedy):
        found = measured(loaded, model, prompts)
        if found.verdict == "wrong" and on_cache.verdict == "wrong":
            alone = measured(loaded, model, prompts, use_cache=False)
            if alone.verdict == "undecided":
                found = undecided(found.cause, f"the cache is wrong, and generate cannot do without it: {alone.says}")
            elif alone.verdict == "right":
                found = replace(found, verdict="follows", says=f"{found.says}; without the cache: {alone.says}")
        yield found


def _prompts(loaded: LoadedSubject, tokens: Text | None) -> Tensor:
    """Return prompts (B, T): the beginnings of windows of the text, or random tokens without one."""
    parameters = sum(each.numel() for each in loaded.tensors.values())
    rows = 64 if parameters < numbering.SMALL_MODEL else 8
    length = min(decoding.PROMPT, max(1, loaded.size.context // 2))
    if tokens is None or len(tokens.last) < length + rows:
        return torch.randint(loaded.size.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seeded(2)))
    starts = torch.linspace(0, len(tokens.last) - length, rows).long()
    return torch.stack([tokens.last[start : start + length] for start in starts.tolist()])


def _explained(evidence: list[Evidence]) -> Iterator[Evidence]:
    """Yield the evidence with what follows from another line, and what that line leaves undecided, marked."""
    wrong = {each.cause for each in evidence if each.verdict == "wrong"}
    for each in evidence:
        from_causes = [cause for cause in CONSEQUENCES if cause in wrong and each.cause in CONSEQUENCES[cause]]
        if each.verdict == "wrong" and from_causes:
            yield replace(each, verdict="follows")
        elif each.verdict == "right" and from_causes:
            yield replace(
                each, verdict="undecided", says=f"it means nothing while {from_causes[0]} is wrong: {each.says}"
            )
        else:
            yield each
