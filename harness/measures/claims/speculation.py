"""The measure of the claim about speculative decoding: the tokens that one call of the target gives."""

from __future__ import annotations

import torch

from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.core.sizes import Size
from harness.measures.speculation.drafts import shifted
from harness.measures.speculation.greedy import observed_logits
from harness.oracle.probe_weights import state_of
from harness.oracle.speculation import tokens_a_call
from harness.subjects.build import build_with_weights
from harness.subjects.protocols import Speculates
from harness.suites.measure_registry import Reading, measure

# Three tokens whose probabilities are the same at every position, so that every draft has the same chance.
COUNTED = Size("one layer, 3 tokens, context 512", vocab_size=3, context=512, layers=1, heads=2, width=6)
TARGET = (0.5, 0.3, 0.2)
ANSWERS, NEW_TOKENS = 3, 480


@measure
def tokens_for_each_target_call(subject: Speculates, *, acceptance: float, lookahead: int) -> Reading:
    """Return the new tokens for each call of the target, with a draft whose tokens have this chance of acceptance.

    Sampled at temperature 1 by models whose probabilities p and q are the same at every position: the chance is the sum
    of min(p, q). Raises MissingAbility if the target is not called as a module.
    """
    p = torch.tensor(TARGET, dtype=torch.float64)
    # Mass moves from the other tokens to the first, in proportion, until the sum of min(p, q) is the acceptance.
    q = torch.cat((p[:1] + (1 - acceptance), p[1:] * (1 - (1 - acceptance) / (1 - TARGET[0]))))
    target, draft = (
        build_with_weights(subject, COUNTED, shifted(state_of(COUNTED, "probe"), each.log(), alone=True))
        for each in (p, q)
    )
    prompt = torch.tensor([[0, 1, 2, 1]])
    calls = 0
    for n in range(ANSWERS):
        with observed_logits(target) as observed:
            subject.speculate(target, draft, prompt, NEW_TOKENS, lookahead=lookahead, seed=seeded(n))
        calls += len(observed)
    if not calls:
        raise MissingAbility(f"the speculative decoding of {subject.name} does not call the target as a module")
    return Reading(
        ANSWERS * NEW_TOKENS / calls,
        "tokens for each call",
        {"size": COUNTED.name, "closed form": tokens_a_call(acceptance, lookahead), "calls": calls},
    )
