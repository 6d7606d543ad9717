"""The measure of the caches: the logits that the target computes while it speculates, against one full pass."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.speculation.distribution import new_part
from harness.measures.speculation.drafts import Draft, pair
from harness.measures.speculation.greedy import observed_logits, prompt_of
from harness.oracle import noise_verdict
from harness.subjects.protocols import Speculates
from harness.suites.measure_registry import Reading, measure


@measure
def speculative_logits(
    subject: Speculates, *, size: str, draft: Draft, lookahead: int = 4, prompt_length: int = 6, new_tokens: int = 20
) -> Reading:
    """Return the noise verdict on the logits that each new token was accepted or drawn by.

    They are compared with one full pass of the target over the text that came out, position by position: whatever the
    subject caches, each row of the full pass must be among the rows that the target computed on the way. A cache that
    keeps a rejected draft, or loses a token, computes others from there on. Raises MissingAbility if the target is not
    called as a module.
    """
    found: dict[str, Tensor] = {}
    floor, scale = 0.0, torch.zeros(new_tokens)
    for dtype in ("float64", "float32"):
        target, drafting = pair(subject, size, draft, dtype)
        prompt = prompt_of(size, draft, prompt_length)
        with observed_logits(target) as calls:
            answer = subject.speculate(target, drafting, prompt, new_tokens, lookahead=lookahead, seed=3)
        if not calls:
            raise MissingAbility(f"the speculative decoding of {subject.name} does not call the target as a module")
        text = torch.tensor([[*prompt[0].tolist(), *new_part(answer, prompt_length, new_tokens)]])
        oracle, _ = (target, None) if dtype == "float64" else pair(subject, size, draft, "float64")
        with torch.no_grad():
            expected = oracle.logits(text[:, :-1])[0, prompt_length - 1 :]  # (new, V)
            if dtype == "float32":
                floor = noise_verdict.distance(target.logits(text[:, :-1])[0, prompt_length - 1 :], expected)
            else:
                scale = expected.abs().amax(1)
        rows = torch.cat([call.reshape(-1, call.shape[-1])[:, : expected.shape[1]] for call in calls]).double()
        found[dtype] = (rows[None] - expected[:, None]).abs().amax(-1).amin(-1)  # (new, rows, V) -> (new)
    return noise_verdict.reading(
        [
            noise_verdict.Difference(
                f"new token {n + 1}",
                scale=float(scale[n]),
                float32=float(found["float32"][n]),
                float64=float(found["float64"][n]),
                floor32=floor,
            )
            for n in range(new_tokens)
        ]
    )
