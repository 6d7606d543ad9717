"""Mistakes that no table lists: the diagnosis says what is computed instead."""

import pytest

from harness.diagnosis.searches import computation
from harness.oracle.formula import OPERATIONS
from harness.oracle.variants import systematic_variants
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.test_diagnosis import FUNCTIONAL

SCORES = "q @ k.transpose(-1, -2)"
MIX = "scores.softmax(-1) @ v"
MASK = 'torch.full((T, T), float("-inf")).triu(1)'
KEYS = "(torch.arange(T) % 3 == 2) & ~torch.eye(T, dtype=torch.bool)"
Q = "q = torch.cat((q[:, :1] - p['qkv_b'][: q.shape[-1]], q[:, 1:]), 1)"  # head 0 alone
PARTS = "for part in parts]"
GELU = 'F.gelu(h, approximate="tanh")'
HALF = f"torch.cat(({GELU}[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]), -1)"
LN_2 = 'norm(x, p["ln2_g"], p["ln2_b"])'
# (the place, the text, what is there instead, words of the cause). Most were written before the search was.
MISTAKES = [
    ("h.*.attn.scores", SCORES, "q @ k.roll(1, 2).transpose(-1, -2)", "the keys are shifted by +1 along positions"),
    ("h.*.attn.scores", SCORES, "q @ k.cumsum(2).transpose(-1, -2)", "the keys are cumulated along positions"),
    ("h.*.attn.mix", MIX, "scores.softmax(-1) @ -v", "negated before the mixing of values"),
    (
        "h.*.attn.mix",
        MIX,
        "scores.softmax(-1) @ (v * (torch.arange(v.shape[-1]) < v.shape[-1] // 2))",
        "half of the chan",
    ),
    ("h.*.attn.mask", MASK, f"{MASK}.masked_fill({KEYS}, float('-inf'))", "position is 2 modulo 3 from the others"),
    ("h.*.attn.qkv", PARTS, f"{PARTS}; {Q}", "the queries of head 0 have no bias"),
    ("h.*.mlp.activation", GELU, HALF, "only the first half of the channels has the activation"),
    (
        "h.*.ln_2",
        LN_2,
        'norm(norm(x, p["ln1_g"], p["ln1_b"]), p["ln2_g"], p["ln2_b"])',
        "ln_2 reads its input after ln_1",
    ),
]


@pytest.mark.parametrize(("where", "text", "instead", "says"), MISTAKES, ids=lambda value: str(value)[:30])
def test_the_diagnosis_says_what_is_computed_instead(tmp_path, monkeypatch, where, text, instead, says):
    monkeypatch.chdir(tmp_path)
    assert FUNCTIONAL.count(text) == 1
    (tmp_path / "tiny.py").write_text(FUNCTIONAL.replace(text, instead))
    (finding,) = computation.search(adapt("tiny.py:Tiny"))
    assert (finding.where, finding.fault) == (where, "")
    assert says in finding.cause
    assert finding.source.startswith("tiny.py:")


def test_every_systematic_variant_replaces_an_operation_of_the_formula_and_has_no_id():
    assert {variant.operation for variant in systematic_variants()} <= set(OPERATIONS)
    assert {variant.fault for variant in systematic_variants()} == {""}
    assert all(variant.says for variant in systematic_variants())
