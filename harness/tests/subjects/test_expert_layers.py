"""Mixtures of experts in other people's styles are found beside or inside a GPT, built, and taken apart."""

import pytest
import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.measures.experts.balance import balance_definition
from harness.measures.experts.mixture import mixture, tokens
from harness.measures.experts.routing import expert_answers_changing, gate_convention, neighbours_mattering
from harness.subjects.adapters import adapt
from harness.subjects.on_device import on_device
from harness.subjects.protocols import MixesExperts
from harness.tests.subjects.styles import mixtures

STYLES = mixtures.__name__
SOFTMAX = "softmax over the chosen"
# The class, what its gates are called, and its balance loss with the weight that its source has.
RIGHT = {
    "Listed": (SOFTMAX, ("E Σ f P", 0.04)),  # f counts k choices a token there: twice 0.02
    "Stacked": (SOFTMAX, None),
    "Banked": ("softmax over all, not renormalised", None),
    "Noisy": (SOFTMAX, ("CV²(importance) + CV²(load)", 0.1)),
}


def beside_a_gpt(folder, name, more=""):
    """Return the subject of a file that imports its GPT, and has the class under a name that is searched for."""
    file = folder / f"{name.lower()}_gpt.py"
    config = "Config, " if name == "Listed" else ""
    file.write_text(
        "from harness.faults.specimen import GPT\n"
        f"from {STYLES} import {config}{name} as Base\n\n\n"
        f"class SparseMoE(Base):\n    pass\n{more}"
    )
    return adapt(f"{file}:GPT")


@pytest.mark.parametrize("name", RIGHT)
def test_a_layer_beside_a_gpt_is_found_and_its_convention_said(tmp_path, name):
    subject = beside_a_gpt(tmp_path, name)
    convention, balance = RIGHT[name]
    assert isinstance(subject, MixesExperts)
    layer = subject.build_experts(SIZES["debug"], experts=6, per_token=2)
    assert (layer.experts, layer.per_token, layer.width) == (6, 2, 48)
    assert gate_convention(subject, size="debug").value == convention
    assert max(expert_answers_changing(subject, size="debug").value.values()) == 0
    assert max(neighbours_mattering(subject, size="debug").value.values()) < 1e-9
    if balance is None:
        with pytest.raises(MissingAbility, match="has no balance loss"):
            balance_definition(subject, size="debug")
    else:
        found = balance_definition(subject, size="debug")
        assert found.value == {"its value": balance[0], "its gradient": "as its value says"}
        assert found.details["weight"] == pytest.approx(balance[1])


def test_each_expert_alone_is_called_as_the_layer_calls_it(tmp_path):
    for name, (_, _) in RIGHT.items():
        layer = beside_a_gpt(tmp_path, name).build_experts(SIZES["debug"], experts=6, per_token=2)
        assert float(mixture(layer, tokens(layer)).left.max()) < 1e-12, name


def test_experts_that_nothing_explains_are_named_and_not_taken_for_wrong(tmp_path):
    """An activation that no table has: the parameters are judged, and what needs the experts alone is skipped."""
    own = "\n    def forward(self, x):\n        return super().forward(x)[0].sin()\n"
    subject = beside_a_gpt(tmp_path, "Stacked", own)
    layer = subject.build_experts(SIZES["debug"], experts=6, per_token=2)
    with pytest.raises(MissingAbility, match="none of the networks that people make of them"):
        layer.expert_output(0, tokens(layer))
    with pytest.raises(MissingAbility):
        gate_convention(subject, size="debug")


def test_a_layer_without_settings_is_skipped_for_other_numbers(tmp_path):
    subject = beside_a_gpt(tmp_path, "NoChoice")
    with pytest.raises(MissingAbility, match="it has 3 experts, and no setting for another number"):
        subject.build_experts(SIZES["debug"], experts=6, per_token=2)
    assert subject.build_experts(SIZES["debug"], experts=3, per_token=2).experts == 3


def test_a_gpt_without_experts_has_no_such_ability():
    assert not isinstance(adapt("harness.faults.specimen:GPT"), MixesExperts)


def test_the_layer_of_the_users_file_is_judged_and_not_that_of_the_gpt_it_imports(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"from gpt import GPT\nfrom {STYLES} import Noisy\n\n\nclass MoE(Noisy):\n    pass\n")
    layer = adapt(f"{file}:GPT").build_experts(SIZES["debug"], experts=6, per_token=2)
    assert layer.description.startswith("MoE, 6 experts")


def test_a_layer_that_cannot_be_built_says_why_and_no_other_one_is_judged_instead(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gpt import GPT\nfrom torch import nn\n\n\n"
        "class MoE(nn.Module):\n    def __init__(self, experts, gate):\n        super().__init__()\n"
    )
    with pytest.raises(MissingAbility, match="could be built: MoE: "):
        adapt(f"{file}:GPT").build_experts(SIZES["debug"], experts=6, per_token=2)


def test_the_reference_is_found_through_the_modules_of_its_class():
    layer = adapt("gpt:GPT").build_experts(SIZES["debug"], experts=6, per_token=2)
    assert layer.description.startswith("MixtureOfExperts, 6 experts; each alone is computed by modules")
    assert layer.line is not None
    assert layer.line[0].endswith("gpt/experts.py")


def test_a_groups_choice_is_not_judged_by_what_it_is_not(tmp_path):
    more = (
        "\n    def __init__(self, dim, num_experts, top_k):\n"
        "        super().__init__(dim, num_experts, top_k)\n        self.n_group = 2\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(
        f"from harness.faults.specimen import GPT\nfrom {STYLES} import Stacked as Base\n\n\nclass MoE(Base):{more}"
    )
    with pytest.raises(MissingAbility, match="chooses among groups of experts"):
        adapt(f"{file}:GPT").build_experts(SIZES["debug"], experts=6, per_token=2)


def test_every_parameter_is_excited(tmp_path):
    """Zero biases, as people start with, would hide that they are left out."""
    layer = beside_a_gpt(tmp_path, "Listed").build_experts(SIZES["debug"], experts=6, per_token=2)
    assert all(float(parameter.detach().std()) > 0.01 for parameter in layer.module.parameters())


def test_a_layer_is_built_where_the_run_is(tmp_path):
    placed = on_device(beside_a_gpt(tmp_path, "Listed"), "meta")
    layer = placed.build_experts(SIZES["debug"], experts=6, per_token=2, device="cpu")
    assert layer.device == torch.device("cpu")


ROUTED = """
import torch
from torch import nn
from harness.faults.specimen import GPT


class MoELayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.router = nn.Linear(cfg.dim, cfg.num_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(cfg.dim, cfg.dim) for _ in range(cfg.num_experts))

    def forward(self, x):
        best = self.router(x).topk(self.cfg.top_k, dim=-1)
        gates = torch.zeros(*x.shape[:-1], len(self.experts), dtype=x.dtype)
        gates = gates.scatter(-1, best.indices, best.values.softmax(-1))CAPACITY
        return sum(gates[..., n, None] * expert(x) for n, expert in enumerate(self.experts))
"""


@pytest.mark.parametrize(
    ("capacity", "verdict"),
    [("", "skip"), ("\n        assert self.cfg.capacity_factor", "fail")],
    ids=["never read", "read in the forward pass"],
)
def test_a_setting_that_a_layer_never_reads_is_none_of_its_own(shipped, tmp_path, capacity, verdict):
    """A config without a class of its own has every name, so that each layer seemed to have a capacity."""
    file = tmp_path / "mine.py"
    file.write_text(ROUTED.replace("CAPACITY", capacity))
    record = run(shipped["experts::capacity-by-definition,factor=0.5"], adapt(f"{file}:GPT"))
    assert record.verdict == verdict, record.message
