"""Rules that name the cause of a failed check of the mixture of experts: a table, as `rules.py` is."""

from __future__ import annotations

import re

from harness.diagnosis.rule import Rule
from harness.measures.experts.explanations import EMPTY_ENDS_LOOP, FULL_BUFFER
from harness.oracle.expert_gates import BALANCE_MISTAKES, MISTAKES

_WRONG = "outputs that are no sum of their experts'"
_SUM = "outputs that are not the gated sum of some of their experts"
EXPERT_RULES = (
    Rule("expert_parameters", "experts that share parameters", "experts.parameters", "experts-share-parameters",
         "experts are the same tensors: one network several times"),
    Rule("expert_answers_changing", ".", "experts.noise", "experts-noise-in-eval",
         "noise takes part in the choice of the experts in eval mode"),
    Rule("gate_convention", "although a setting says that they are renormalised", "experts.gates",
         "experts-not-renormalised", "the gates of a token are not divided by their sum, although a setting says so"),
    *(
        Rule("gate_convention", rf"{re.escape(said)} \({id}\)", "experts.gates", id, said)
        for id, said, _ in MISTAKES
    ),
    Rule("gate_convention", r"\(experts-gate-over-tokens\)", "experts.gates", "experts-gate-over-tokens",
         "the softmax is over the tokens, not over the experts"),
    Rule("gate_convention", r"\(experts-gate-of-other-slot\)", "experts.gates", "experts-gate-of-other-slot",
         "each expert has the gate of another one of the token's"),
    Rule("gate_convention", "those of other tokens", "experts.gates", "experts-gates-of-other-tokens",
         "the outputs are weighed by the gates of other tokens"),
    Rule("gate_convention", "times the", "experts.gates", "experts-gates-scaled",
         "all gates have a factor that no setting states"),
    Rule("tokens_without_their_experts", f"{_WRONG}.*the inputs themselves", "experts.rows",
         "experts-dropped-passed-through", "tokens are replaced by their inputs"),
    Rule("tokens_without_their_experts", f"{_WRONG}.*the inputs, added to", "experts.rows", "experts-input-added",
         "the layer adds its input to the sum of the experts' outputs: the residual connection is inside it"),
    Rule("tokens_without_their_experts", f"{_WRONG}.*other tokens' experts", "experts.rows", "experts-rows-mixed",
         "outputs are added to the rows of other tokens"),
    Rule("tokens_without_their_experts", f"{_WRONG}.*of several tokens", "experts.rows", "experts-rows-mixed",
         "outputs are added to the rows of other tokens"),
    Rule("expert_parameters", "experts that no gradient reaches: 1 ", "experts.dispatch", "experts-last-never-used",
         "an expert takes no part in any output"),
    Rule("expert_parameters", r"experts that no gradient reaches: ([2-9]|\d\d)", "experts.parameters",
         "experts-share-parameters", "a tensor of one expert serves all, and those of the others are never used"),
    Rule("tokens_without_their_experts", "chosen and never computed", "experts.dispatch", "experts-last-never-used",
         "an expert takes no part in any output"),
    Rule("tokens_without_their_experts", r"than the router's best: \d+ of \d+ tokens", "experts.dispatch",
         "experts-sent-elsewhere", "tokens are computed by experts that the router did not choose for them"),
    Rule("tokens_without_their_experts", "another number of experts", "experts.dispatch", "",
         "tokens are computed by another number of experts than k"),
    Rule("expert_gradients", "the router: [^|]*it is detached", "experts.router", "experts-router-detached",
         "no gradient reaches the router"),
    Rule("expert_gradients", "the router: [^|]*never learnt", "experts.router", "experts-router-never-learnt",
         "the output does not change with the router's logits, so that it is not learnt"),
    Rule("expert_gradients", "^(?!.*(it is detached|never learnt))", "experts.gradients", "",
         "gradients are not the slopes that finite differences show"),
    *(
        Rule("balance_definition", rf"{re.escape(said)} \({id}\)", "experts.balance", id, said)
        for id, said, _ in BALANCE_MISTAKES
    ),
    Rule("balance_definition", "no gradient reaches the router", "experts.balance", "experts-balance-detached",
         "no gradient of the balance loss reaches the router"),
    Rule("balance_definition", "none: (the closest|it differs)", "experts.balance", "",
         "the balance loss is that of no definition"),
    Rule("capacity_faults", f"{_SUM}.*replaced by their inputs", "experts.capacity", "experts-dropped-passed-through",
         "dropped tokens are replaced by their inputs, where they add nothing"),
    Rule("capacity_faults", f"{_SUM}.*did not choose", "experts.capacity", "experts-dropped-sent-elsewhere",
         "dropped tokens are computed by experts that they did not choose"),
    Rule("capacity_faults", f"{_SUM}.*other gates", "experts.capacity", "experts-dropped-gates",
         "the tokens that are left have other gates than their own"),
    Rule("capacity_faults", "no definition.*nothing was dropped", "experts.capacity", "experts-capacity-ignored",
         "no token is dropped: the capacity is not applied"),
    Rule("capacity_faults", r"no definition[^|]*drop tokens have \d+, ", "experts.capacity",
         "experts-capacity-with-room",
         "experts drop tokens although they have room: the place in their queue is counted wrongly"),
    Rule("capacity_faults", r"no definition[^|]*drop tokens have \d+;", "experts.capacity",
         "experts-capacity-of-one-row", "the capacity is not factor k N / E, by no rounding"),
    Rule("neighbours_mattering", re.escape(EMPTY_ENDS_LOOP), "experts.dispatch", "experts-loop-ends-at-empty",
         "the loop over the experts ends at the first one without a token: later ones are not computed"),
    Rule("neighbours_mattering", re.escape(FULL_BUFFER), "experts.batch", "experts-fixed-buffer",
         "beside many others a token loses experts, as where a buffer of a fixed size drops what does not fit"),
    Rule("neighbours_mattering", "^(?!.*(alone it has|leave it out))", "experts.batch", "",
         "a token's output depends on the tokens beside it"),
    Rule("router_types", ".", "experts.dtype", "experts-crash-in-bfloat16",
         "in bfloat16 the layer fails", errors=True),
)  # fmt: skip
