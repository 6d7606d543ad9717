"""What is wrong under one condition only is placed: the component, the line, and what is computed there."""

import pytest

from harness.diagnosis import diagnose
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT
from harness.tests.diagnosis.test_diagnosis import FUNCTIONAL

SWEEP = "conditions::right-under-every-condition,size=debug,over=shapes and modes"
SHAPES = "conditions::right-for-every-number-of-heads-and-layers"
GRADIENTS = "conditions::gradients-under-every-condition"
NEWEST = "conditions::newest-weights-are-used"
KEPT = "conditions::answers-stay-what-they-were"
UNCHANGED = "conditions::calls-change-no-weights"
LINEAR = "conditions::backward-is-linear"
GELU = 'F.gelu(self.wide(x), approximate="tanh")'
IGNORES_ABOVE = """
class Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx, above):
        x, w = ctx.saved_tensors
        size = above.abs().amax()
        above = above / size * size.clamp(min=1e-3)
        return above @ w, above.flatten(0, 1).mT @ x.flatten(0, 1)


class Block(nn.Module):"""
OWN_WEIGHT = "F.linear(x, self.kept.setdefault(torch.is_grad_enabled(), self.wide.weight.detach().clone()).to(x.dtype)"

# (the text, the check that is red, changes, the place, words of the cause, words of the line)
MISTAKES = [
    pytest.param(
        FUNCTIONAL, SWEEP, [(".triu(1)", ".triu(1 if B < 5 else 3)")],
        "h.*.attn.mask", ("batches of more than 3 rows", "two ahead"), "triu", id="rows",
    ),
    pytest.param(
        FUNCTIONAL, SWEEP, [("q @ k.transpose(-1, -2)", "(q @ k.flip(2 if T % 8 == 1 else ()).transpose(-1, -2))")],
        "h.*.attn.scores", ("the keys are reversed along positions",), "flip", id="lengths",
    ),
    pytest.param(
        GPT, SWEEP, [(GELU, GELU.replace('"tanh"', '"none" if torch.is_inference_mode_enabled() else "tanh"'))],
        "h.*.mlp.activation", ("torch.inference_mode()", "exact (erf) GELU"), "F.gelu", id="inference mode",
    ),
    pytest.param(
        GPT, SHAPES, [("(weights @ v)", "(weights @ v * (torch.arange(self.heads) < 12)[:, None, None])")],
        "h.*.attn.mix", ("heads", "only at heads from 12 on"), "weights @ v", id="heads",
    ),
    pytest.param(
        GPT, GRADIENTS, [("return self.output(mixed)", "return self.output(mixed.detach() if rows == 9 else mixed)")],
        "h.*.attn.c_proj", ("9 rows of 16 tokens", "no gradient flows through the merged heads"), "detach",
        id="gradient",
    ),
    pytest.param(
        GPT, NEWEST, [
            ("self.narrow = nn.Linear(4 * s.n_embd, s.n_embd)",
             "self.narrow = nn.Linear(4 * s.n_embd, s.n_embd)\n        self.kept = {}"),
            ("gelu(self.wide(x)", f"gelu(self.wide(x) if torch.is_grad_enabled() else {OWN_WEIGHT}, self.wide.bias)"),
        ],
        "h.*.mlp.c_fc", ("in eval mode with no_grad", "uses mlp.c_fc.weight as before the change"), "F.linear",
        id="stale",
    ),
    pytest.param(
        GPT, NEWEST, [
            ("\nclass GPT(nn.Module):",
             "\nclass Kept(nn.Linear):\n    kept = None\n\n"
             "    def train(self, mode=True):\n        self.kept = None\n        return super().train(mode)\n\n"
             "    def forward(self, x):\n        if self.training or torch.is_grad_enabled():\n"
             "            return super().forward(x)\n"
             "        if self.kept is None:\n            self.kept = self.weight.detach().clone()\n"
             "        return F.linear(x, self.kept.to(x.dtype), self.bias)\n\n\nclass GPT(nn.Module):"),
            ("self.wide = nn.Linear(s.n_embd, 4 * s.n_embd)", "self.wide = Kept(s.n_embd, 4 * s.n_embd)"),
        ],
        "h.*.mlp.c_fc", ("in eval mode with no_grad", "uses mlp.c_fc.weight as before the change"), "F.linear",
        id="stale, and dropped when the mode is set",
    ),
    pytest.param(
        GPT, KEPT, [("logits = self.head(self.last_norm(x))",
                     "logits = self.head(self.last_norm(x))\n"
                     "        if not torch.is_grad_enabled():\n"
                     "            old = self.__dict__.setdefault(('old', logits.shape, logits.dtype), logits)\n"
                     "            logits = old if old is logits else old.copy_(logits)")],
        "behaviour.answers", ("the next call writes into the memory of the logits",), "old.copy_(logits)", id="kept",
    ),
    pytest.param(
        GPT, UNCHANGED, [("x = self.tokens(ids) + self", "x = self.tokens(ids)\n"
                          "        if ids.shape == (1, 1): self.places.weight.data.mul_(1.01)\n"
                          "        x = x + self")],
        "behaviour.weights", ("with one token", "writes into the memory of places.weight"), "mul_(1.01)", id="changed",
    ),
    pytest.param(
        GPT, LINEAR, [("\nclass Block(nn.Module):", IGNORES_ABOVE),
                      ("self.head(self.last_norm(x))", "Last.apply(self.last_norm(x), self.head.weight)")],
        "behaviour.backward", ("the backward pass of Last", "is not scaled with it"), "return above @ w", id="linear",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "check", "changes", "where", "said", "line"), MISTAKES)
def test_the_place_and_the_line_are_named(tmp_path, monkeypatch, shipped, text, check, changes, where, said, line):
    monkeypatch.chdir(tmp_path)
    for find, put in changes:
        assert text.count(find) == 1, find
        text = text.replace(find, put)
    (tmp_path / "odd.py").write_text(text)
    subject = adapt(f"odd.py:{'Tiny' if 'class Tiny' in text else 'GPT'}")
    record = run(shipped[check], subject)
    assert record.verdict == "fail", record.message
    found = diagnose(subject, [record])
    first = found.findings[0]
    assert found.trouble == ""
    assert first.where == where, first
    assert all(words in first.cause for words in said), first.cause
    assert line in first.text, first.text
