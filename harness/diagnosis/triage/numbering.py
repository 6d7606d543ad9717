"""Do the token ids mean to the GPT what they mean in the text: the frequencies of what it generates, and the text's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.seeds import seeded
from harness.diagnosis.triage.evidence import Evidence, mean_over_windows
from harness.diagnosis.triage.text_losses import AT_MOST, BY_CHANCE, TextLosses
from harness.subjects.model import Model

CAUSE = "vocabulary or text"
# Of the samples; what follows the first half of each is counted. A large GPT draws fewer: 8 TFLOP at 124M are minutes.
ROWS, FEWER_ROWS, LENGTH = 64, 16, 32
SMALL_MODEL = 20_000_000  # parameters
# The ranked frequencies are the text's if their distance is below this share of the distance of those by id.
RANKED = 0.5


@torch.no_grad()
def numbering(model: Model, losses: TextLosses) -> Evidence:
    """Return the evidence on ids that do not mean to the GPT what they mean in the text.

    Its loss is then above that of the tokens' frequencies, and above its own entropy: it is sure, and wrong. A GPT that
    knows little is unsure. What it generates shows more: the text's frequencies, sorted, under other ids are another
    vocabulary or tokenizer of the same language.
    """
    excess = mean_over_windows(losses.next_token - losses.single)
    surprise = mean_over_windows(losses.next_token - losses.entropy)
    loss, single, entropy = (float(x.mean()) for x in (losses.next_token, losses.single, losses.entropy))
    wrong = excess.is_above and surprise.is_above
    says = f"the loss, {loss:.3f} nats, is not above that of the frequencies of tokens, {single:.3f}"
    if excess.is_above:
        says = f"it knows little, and is as unsure: the loss is {loss:.3f} nats and its own entropy {entropy:.3f}"
    if wrong:
        by_id, ranked = _distances(model, losses)
        says = (
            f"its loss on the text is {loss:.3f} nats, where frequencies of tokens alone have {single:.3f} and a guess "
            f"{math.log(losses.rows):.3f}, and its own entropy is {entropy:.3f}: it is sure, and wrong. "
        )
        says += (
            f"It generates tokens with the frequencies of this text under other ids (distance {ranked:.2f} sorted, "
            f"{by_id:.2f} by id): it was trained with another vocabulary or tokenizer, or on another text"
            if ranked < RANKED * by_id
            else f"What it generates has other frequencies (distance {by_id:.2f} by id, {ranked:.2f} sorted): another "
            "text, another kind of tokenizer, or a training that diverged"
        )
    return Evidence(
        CAUSE,
        "wrong" if wrong else "right",
        says,
        "loss less that of the frequencies of tokens",
        excess.value,
        excess.error,
        "nats",
        f"{AT_MOST}, or its own entropy",
        BY_CHANCE,
    )


def _distances(model: Model, losses: TextLosses) -> tuple[float, float]:
    """Return how far the frequencies of what the model generates are from the text's: by id, and with both sorted."""
    samples = _samples(model)
    made = samples[:, samples.shape[1] // 2 :].flatten()
    text = losses.next_ids.flatten()[: len(made)]
    a, b = (torch.bincount(ids, minlength=losses.rows).double() / len(ids) for ids in (made, text))
    return _distance(a, b), _distance(a.sort().values, b.sort().values)


def _samples(model: Model) -> Tensor:
    """Return ids (rows, LENGTH), drawn from the model's own probabilities, begun with uniformly drawn tokens."""
    generator = torch.Generator().manual_seed(seeded(0))
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    rows = ROWS if parameters < SMALL_MODEL else FEWER_ROWS
    ids = torch.randint(model.size.vocab_size, (rows, 1), generator=generator)
    for _ in range(min(LENGTH, model.size.context) - 1):
        probabilities = model.logits(ids)[:, -1].double().softmax(-1)
        ids = torch.cat((ids, torch.multinomial(probabilities, 1, generator=generator)), dim=1)
    return ids


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the total variation distance of two distributions, 0 to 1."""
    return float((a - b).abs().sum()) / 2
