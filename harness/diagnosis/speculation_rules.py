"""Rules that name the cause of a failed check of the suite `speculation`: a table."""

from __future__ import annotations

import re

from harness.diagnosis.rule import Rule
from harness.measures.speculation.laws import VARIANTS

SPECULATION_RULES = (
    Rule("speculative_lengths", "too many", "speculation.length", "spec-too-many-tokens",
         "speculative decoding returns more tokens than were asked for: its last round is not cut"),
    Rule("speculative_changes", "another seed gives the same tokens: True", "speculation.seed", "spec-seed-fixed",
         "another seed gives the same speculated tokens"),
    Rule("speculative_changes", "the training flag: True", "speculation.mode", "spec-mode-not-restored",
         "after speculative decoding a model stays in eval mode: dropout is off from then on"),
    # The variant whose distribution is the one that was found; the reading's hint ends with its id.
    *(Rule("speculative_distribution", re.escape(f"[{v.id}]"), v.where, v.id, v.says, hint=True) for v in VARIANTS),
    Rule("speculative_distribution", "draft=prompt-lookup", "speculation.draft", "spec-lookup-not-certain",
         "with drafts from the prompt, tokens do not have the target's probabilities: such a draft has probability 1"),
    Rule("speculative_draws_p_value", "^(?!.*(all tokens|first rounds|rejections): ).*rounds: ", "speculation.seed",
         "spec-reseeded-each-round",
         "rounds of speculative decoding share their random numbers, as with a generator that is seeded in each"),
    Rule("speculative_draws_p_value", "^(?!.*(all tokens|first rounds): ).*rejections: ", "speculation.acceptance",
         "spec-acceptance-not-random",
         "where drafts are rejected, drawn tokens do not have the target's probabilities, as with one random number "
         "that accepts in every round"),
    Rule("speculative_target_calls", "token behind accepted drafts is lost", "speculation.bonus",
         "spec-bonus-dropped", "the target's own token behind accepted drafts is thrown away: a round gives one less",
         hint=True),
    Rule("speculative_target_calls", "one a token", "speculation.calls", "spec-verified-one-by-one",
         "the target is called for each token: speculation gains nothing", hint=True),
    Rule("speculative_target_calls", "computes other logits than on the accepted text", "speculation.draft",
         "spec-draft-misses-last-token",
         "a draft with the target's weights is rejected: it does not continue the accepted text, as with a cache that "
         "misses the last draft of a round", hint=True),
    Rule("speculative_logits", ".", "speculation.cache", "",
         "the target does not see the accepted text: its cache keeps a rejected draft or loses a token"),
    Rule("speculative_greedy", "draft=same", "speculation.greedy", "spec-greedy-draws",
         "speculation changes a greedy text, as if it drew at temperature 0"),
)  # fmt: skip
