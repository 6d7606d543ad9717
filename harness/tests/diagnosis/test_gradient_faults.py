"""Gradients that are wrong where the forward pass is right: the operation, the line, and what flows back instead."""

import pytest

from harness.diagnosis.searches import computation
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT
from harness.tests.diagnosis.test_diagnosis import FUNCTIONAL

GELU = 'F.gelu(self.wide(x), approximate="tanh")'
OWN_GELU = """
class OwnGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, above):
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(1.702 * x)
        return above * (slope + 1.702 * x * slope * (1 - slope))


class Attention("""
OWN_SOFTMAX = """
class OwnSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, above):
        (y,) = ctx.saved_tensors
        return above * y


class Tiny("""

# (the text, changes, the place, words of the cause, words of the line)
MISTAKES = [
    pytest.param(GPT, [("mixed = (weights @ v)", "v.requires_grad and v.register_hook(lambda g: g / 3)\n"
                        "        mixed = (weights @ v)")],
                 "h.*.attn.mix", "through the values is 0.333333 times", "register_hook", id="scaled"),
    pytest.param(GPT, [("scores = q @ k.mT", "k.requires_grad and k.register_hook(lambda g: -g)\n"
                        "        scores = q @ k.mT")],
                 "h.*.attn.scores", "through the keys is negated", "register_hook", id="negated"),
    pytest.param(FUNCTIONAL, [("        scores = q @", "        q.requires_grad and q.register_hook(\n"
                               "            lambda g: g * torch.tensor([1, 0, 1, 2]).view(4, 1, 1))\n"
                               "        scores = q @")],
                 "h.*.attn.scores", "through the queries is zero at head 1 and is doubled at head 3", "lambda g",
                 id="heads"),
    pytest.param(GPT, [("        return self.narrow(", "        x.requires_grad and x.register_hook(\n"
                        "            lambda g: torch.cat((g[:, :20], 0 * g[:, 20:]), 1))\n"
                        "        return self.narrow(")],
                 "h.*.mlp.c_fc", "through the MLP's input is zero at positions 20 to 31", "torch.cat", id="positions"),
    pytest.param(GPT, [("\nclass Attention(", OWN_GELU), (GELU, "OwnGelu.apply(self.wide(x))")],
                 "h.*.mlp.activation", "that of another function: QuickGELU", "1.702", id="slope"),
    pytest.param(FUNCTIONAL, [("\nclass Tiny(", OWN_SOFTMAX), ("scores.softmax(-1)", "OwnSoftmax.apply(scores)")],
                 "h.*.attn.softmax", "the softmax with its sum taken for constant", "above * y", id="softmax"),
    pytest.param(GPT, [("self.inputs = nn.Linear(s.n_embd, 3 * s.n_embd)",
                        "self.inputs = nn.Linear(s.n_embd, 3 * s.n_embd)\n        C = s.n_embd\n"
                        "        self.inputs.bias.register_hook(\n"
                        "            lambda g: torch.cat((g[:C], 0 * g[C : 2 * C] - 1, g[2 * C :])))")],
                 "h.2.attn.qkv", "the gradient of attn.c_attn.bias alone differs: another in channels 48 to 95", "",
                 id="bias"),
    pytest.param(GPT, [("logits = self.head(self.last_norm(x))", "logits = self.head(self.last_norm(x))\n"
                        "        logits.requires_grad and logits.register_hook(\n"
                        "            lambda g: g * torch.tensor([1.0, 0.5]).view(2, 1, 1))")],
                 "head", "through the logits is 0.5 times what it should be at row 1", "torch.tensor", id="logits"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "changes", "where", "says", "line"), MISTAKES)
def test_the_operation_and_what_flows_back_are_named(tmp_path, monkeypatch, text, changes, where, says, line):
    monkeypatch.chdir(tmp_path)
    for find, put in changes:
        assert text.count(find) == 1, find
        text = text.replace(find, put)
    (tmp_path / "back.py").write_text(text)
    (finding,) = computation.search(adapt(f"back.py:{'Tiny' if 'class Tiny' in text else 'GPT'}"))
    assert finding.where == where, finding
    assert says in finding.cause, finding
    assert line in finding.text, finding
