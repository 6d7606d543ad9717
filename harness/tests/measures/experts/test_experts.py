"""The measures of experts: what they say of layers that are wrong in ways that no fault of the catalogue has."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.diagnosis.rules import RULES
from harness.faults.catalogue import read_catalogue
from harness.measures.experts import balance, capacity, gradients, parameters, routing
from harness.measures.experts.explanations import EMPTY_ENDS_LOOP, FULL_BUFFER
from harness.measures.experts.mixture import mixture, tokens
from harness.oracle.expert_gates import BALANCE_MISTAKES, CONVENTIONS, MISTAKES, balance_terms
from harness.subjects.adapters import adapt

LOGITS = 1.5 * torch.randn(40, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HEAD = """
import torch
from torch import nn
from harness.faults.specimen import GPT


class MoE(nn.Module):
    def __init__(self, dim, num_experts, top_k, capacity_factor=None):
        super().__init__()
        self.k, self.capacity_factor = top_k, capacity_factor
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 90), nn.GELU(), nn.Linear(90, dim)) for _ in range(num_experts)
        )

    def forward(self, x):
        logits = self.gate(x)
        gates, index = logits.topk(self.k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, index, gates.softmax(-1))  # (B, T, E)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)  # (B, T, E, C)
"""
RIGHT = "        return (gates[..., None] * outputs).sum(-2)\n"


def subject(tmp_path, ending):
    file = tmp_path / "mine.py"
    file.write_text(HEAD + ending)
    return adapt(f"{file}:GPT")


def test_no_mistake_computes_what_a_definition_computes():
    for k in (2, 3):
        for id, said, gates in MISTAKES:
            for name, right in CONVENTIONS.items():
                assert float((gates(LOGITS, k) - right(LOGITS, k)).abs().max()) > 1e-3, (id, said, name)
        for id, _, loss in BALANCE_MISTAKES:
            for name, right in balance_terms(LOGITS, k).items():
                other = balance_terms(3 * LOGITS, k)[name]
                assert abs(loss(LOGITS, k) / right - loss(3 * LOGITS, k) / other) > 1e-3, (id, name)


def test_gates_of_a_convention_sum_as_its_name_says():
    for name, gates in CONVENTIONS.items():
        total = gates(LOGITS, 2).sum(-1)
        assert bool(((total - 1).abs() < 1e-12).all()) is ("renormalised" in name.split(", not")[0] or "chosen" in name)
        assert int((gates(LOGITS, 2) > 0).sum()) == 2 * len(LOGITS)


def test_every_id_of_a_rule_for_experts_is_in_the_catalogue():
    named = read_catalogue().ids
    assert not {rule.fault for rule in RULES if rule.where.startswith("experts.") and rule.fault} - named


def test_the_gates_are_read_off_the_outputs(tmp_path):
    layer = subject(tmp_path, RIGHT).build_experts(SIZES["debug"], experts=6, per_token=2)
    found = mixture(layer, tokens(layer))
    expected = CONVENTIONS["softmax over the chosen"](found.logits, 2)
    assert torch.allclose(found.gates, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("        return (gates[..., None] * outputs).sum(-2) / 2\n", "0.5 times the softmax over the chosen"),
        ("        return outputs.mean(-2)\n", "the closest is"),
        ("        return (logits.softmax(-1)[..., None] * outputs).sum(-2)\n", "every expert has its probability"),
        (
            "        return ((gates > 0).to(x)[..., None] * logits[..., None] * outputs).sum(-2)\n",
            "the gates are the logits themselves (experts-gate-is-logit)",
        ),
        (
            "        return ((gates > 0) * gates.amax(-1, keepdim=True))[..., None].mul(outputs).sum(-2)\n",
            "all of a token's experts have the gate of its first one (experts-gate-of-one-slot)",
        ),
        (
            "        sizes = gates.gather(-1, index)\n"
            "        gates = torch.zeros_like(gates).scatter(-1, index.sort(-1).values, sizes)\n" + RIGHT,
            "each expert has the gate of another one of the token's (experts-gate-of-other-slot): ",
        ),
        ("        gates = gates.roll(1, -1)\n" + RIGHT, "each token's outputs are those of the next expert"),
        ("        gates = gates.flip(1)\n" + RIGHT, "those of other tokens: all of them are of the softmax over"),
        (
            "        gates = logits.softmax(1) * (gates > 0)\n" + RIGHT,
            "the softmax is over the tokens, not over the experts (experts-gate-over-tokens)",
        ),
        (
            "        gates = logits.flatten(0, 1).softmax(0).view_as(logits)\n"
            "        best = gates.topk(self.k, dim=-1)\n"
            "        gates = torch.zeros_like(gates).scatter(-1, best.indices, best.values)\n"
            "        gates = gates / gates.sum(-1, keepdim=True)\n" + RIGHT,
            "the softmax is over the tokens, not over the experts (experts-gate-over-tokens)",
        ),
    ],
)
def test_what_the_gates_are_instead_is_said(tmp_path, ending, said):
    found = routing.gate_convention(subject(tmp_path, ending), size="debug")
    assert found.value.startswith("none: ")
    assert said in found.value
    assert found.details["line"][0].endswith("mine.py")


def test_a_flag_that_promises_a_sum_of_1_is_held_to_it(tmp_path):
    """Without the flag the same gates are a convention of their own."""
    ending = "        return (logits.softmax(-1)[..., None] * (gates > 0)[..., None] * outputs).sum(-2)\n"
    assert routing.gate_convention(subject(tmp_path, ending), size="debug").value.startswith("softmax over all, not")
    flagged = HEAD.replace("self.k, self.cap", "self.norm_topk_prob, self.k, self.cap")
    flagged = flagged.replace("= top_k, ", "= True, top_k, ")
    file = tmp_path / "flagged.py"
    file.write_text(flagged + ending)
    found = routing.gate_convention(adapt(f"{file}:GPT"), size="debug").value
    assert found == "none: the softmax over all, not renormalised, although a setting says that they are renormalised"


@pytest.mark.parametrize(
    ("ending", "place", "said"),
    [
        (
            RIGHT.replace("outputs)", "outputs.roll(1, 1))"),
            "outputs that are no sum of their experts'",
            "other tokens'",
        ),
        (RIGHT.replace("return ", "return x + "), "outputs that are no sum of their experts'", "the inputs, added to"),
        ("        return x.clone()\n", "outputs that are no sum of their experts'", "the inputs themselves"),
        (
            RIGHT.replace("gates[..., None]", "gates.roll(1, 0)[..., None]"),
            "tokens that other experts compute than the router's best",
            "tokens",
        ),
    ],
)
def test_who_computes_a_token_is_seen(tmp_path, ending, place, said):
    found = routing.tokens_without_their_experts(subject(tmp_path, ending), size="debug")
    assert found.value[place] > 0
    assert said in found.details["answers"][place]
    assert found.value["experts that are chosen and never computed"] == 0  # what is not explained says nothing of that


@pytest.mark.parametrize(
    ("change", "places", "why"),
    [
        ("", set(), ""),
        (
            "        used = (gates > 0).flatten(0, 1).any(0)\n        gates = gates * used.cumprod(-1)\n",
            {"alone"},
            EMPTY_ENDS_LOOP,
        ),
        (
            "        flat = gates.flatten(0, 1)\n"
            "        gates = (flat * ((flat > 0).cumsum(0) <= 256)).view_as(gates)\n",
            {"beside 2,034 others"},
            FULL_BUFFER,
        ),
        ("        gates = gates * logits.amax(1, keepdim=True)\n", {"alone", "beside 2,034 others"}, ""),
    ],
    ids=["right", "ends at an empty expert", "a buffer of 256", "another dependence"],
)
def test_what_a_token_loses_by_its_neighbours_is_said(tmp_path, change, places, why):
    """Every dependence was taken for a buffer that is full."""
    found = routing.neighbours_mattering(subject(tmp_path, change + RIGHT), size="debug")
    assert {place for place, distance in found.value.items() if distance > 1e-9} == places
    assert set(found.details.get("answers", {}).values()) == ({why} if places else set())


def test_a_token_that_nothing_computes_has_no_gradient_that_is_missing(tmp_path):
    """A layer whose loop ended before any expert had an output without a graph, which was an error of the check."""
    ending = RIGHT.replace("return", "y =") + "        return y if len(x[0]) > 1 else torch.zeros_like(x)\n"
    assert max(gradients.expert_gradients(subject(tmp_path, ending), size="debug").value.values()) < 1e-6


def test_a_layer_that_is_right_raises_no_alarm(tmp_path):
    mine = subject(tmp_path, RIGHT)
    assert set(routing.tokens_without_their_experts(mine, size="debug").value.values()) == {0}
    assert max(gradients.expert_gradients(mine, size="debug").value.values()) < 1e-6
    assert set(parameters.expert_parameters(mine, size="debug").value.values()) == {0}
    for case in ("equal experts", "one expert"):
        assert routing.dense_differences(mine, size="debug", case=case).value < 1e-12


def test_a_gradient_that_is_scaled_is_given_its_factor(tmp_path):
    ending = "        y = (gates[..., None] * outputs).sum(-2)\n        return 0.5 * y + 0.5 * y.detach()\n"
    found = gradients.expert_gradients(subject(tmp_path, ending), size="debug")
    assert found.details["answers"]["the router"] == "0.5 of the slope that finite differences show"


def test_an_expert_that_learns_from_tokens_it_did_not_compute_is_seen(tmp_path):
    """The value is right, since what is added is 0; its gradient is not."""
    ending = "        z = outputs.sum(-2)\n        return (gates[..., None] * outputs).sum(-2) + z - z.detach()\n"
    found = gradients.expert_gradients(subject(tmp_path, ending), size="debug").value
    assert found["experts that did not compute"] == float("inf")


def test_one_network_several_times_is_seen(tmp_path):
    several = "        self.experts = nn.ModuleList([self.experts[0]] * num_experts)\n\n"
    shared = HEAD.replace("    def forward", f"{several}    def forward")
    file = tmp_path / "shared.py"
    file.write_text(shared + RIGHT)
    found = parameters.expert_parameters(adapt(f"{file}:GPT"), size="debug")
    assert found.value["experts that share parameters"] == 6


def test_an_expert_of_another_size_is_seen(tmp_path):
    larger = "        self.experts[-1] = nn.Sequential(nn.Linear(dim, 91), nn.GELU(), nn.Linear(91, dim))\n\n"
    file = tmp_path / "sizes.py"
    file.write_text(HEAD.replace("    def forward", f"{larger}    def forward") + RIGHT)
    found = parameters.expert_parameters(adapt(f"{file}:GPT"), size="debug").value
    assert found["experts of another size"] == 1


CAPPED = """
        flat = gates.flatten(0, 1)
        room = {room}
        kept = (flat > 0) & ((flat > 0).cumsum(0) <= room)
        flat = {gates}
        return (flat.view_as(gates)[..., None] * outputs).sum(-2){more}
"""
ROOM = "int(-(-self.capacity_factor * self.k * len(flat) // len(self.experts))) if self.capacity_factor else len(flat)"


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ({}, None),
        ({"gates": "flat * kept / (flat * kept).sum(-1, keepdim=True).clamp_min(1e-9)"}, None),  # given to the rest
        ({"room": "len(flat)"}, "capacities that are those of no definition"),
        ({"room": f"({ROOM}) + 3"}, "capacities that are those of no definition"),
        ({"more": " + (flat.sum(-1) == 0).view(*x.shape[:2], 1) * x"}, "outputs that are not the gated sum of some"),
        # None has more than its capacity, and one drops a token although it has room.
        (
            {"gates": "flat * kept * (torch.arange(len(flat)) % 7 != 0)[:, None]"},
            "capacities that are those of no definition",
        ),
        ({"gates": "flat * kept * 0.9"}, "outputs that are not the gated sum of some"),
    ],
)
def test_a_capacity_is_judged_by_who_is_dropped_and_what_is_left(tmp_path, parts, place):
    mine = subject(tmp_path, CAPPED.format(**{"room": ROOM, "gates": "flat * kept", "more": "", **parts}))
    found = capacity.capacity_faults(mine, size="debug", factor=0.5)
    wrong = [name for name, count in found.value.items() if count]
    assert wrong == [] if place is None else any(name.startswith(place) for name in wrong)


def test_the_ratio_of_parameters_is_that_of_the_closed_form():
    found = parameters.parameters_unused_by_a_token(adapt("gpt:GPT"), size="debug", experts=8, per_token=2)
    one, router = 8 * 48**2 + 5 * 48, 8 * 48
    assert found.value == (8 * one + router) / (2 * one + router)


def test_the_type_that_the_router_chooses_in_is_read_off_its_operations(tmp_path):
    assert parameters.router_types(adapt("gpt:GPT"), size="debug").value == "logits in float32, choice in float32"
    found = parameters.router_types(subject(tmp_path, RIGHT), size="debug").value
    assert found == "logits in bfloat16, choice in bfloat16"


WITH_LOSS = """        return (gates[..., None] * outputs).sum(-2), logits


def load_balancing_loss(router_logits, num_experts, top_k):
    probabilities = router_logits.reshape(-1, num_experts).softmax(-1)
    chosen = probabilities.topk(top_k, dim=-1).indices
    f = torch.nn.functional.one_hot(chosen, num_experts).to(probabilities.dtype).mean((0, 1))
    return num_experts * (f * {other}).sum()
"""


@pytest.mark.parametrize(
    ("other", "value"),
    [("probabilities.mean(0)", "E Σ f P"), ("f", "none: f times f")],
    ids=["f P", "f f"],
)
def test_a_balance_loss_without_a_gradient_is_judged_if_a_function_is_called_so(tmp_path, other, value):
    """It was skipped as if there were none, and is the loss that pushes nothing."""
    made = subject(tmp_path, WITH_LOSS.format(other=other))
    found = balance.balance_definition(made, size="debug").value
    assert found["its value"].startswith(value)


def test_a_gradient_of_zeros_is_none(tmp_path):
    other = "(probabilities.detach() + 0 * probabilities).mean(0)"
    found = balance.balance_definition(subject(tmp_path, WITH_LOSS.format(other=other)), size="debug").value
    assert found == {"its value": "E Σ f P", "its gradient": "none: no gradient reaches the router"}
