"""A wrong mask is found at the line that makes it, also in the constructor, and a wrong use at its own."""

import pytest

from harness.diagnosis.diagnose import diagnose
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT

HEADS, HIDDEN = "self.heads = s.n_head", "hidden = torch.ones(time, time, dtype=torch.bool).triu(1)"
SIZE = "s.block_size, s.block_size"


@pytest.mark.parametrize(
    ("make", "use", "at"),
    [
        (
            f'self.register_buffer("mask", torch.ones({SIZE}, dtype=torch.bool).triu(2))',
            "self.mask[:time, :time]",
            "make",
        ),
        (
            f'self.register_buffer("mask", torch.ones(1, 1, {SIZE}).tril(1))',
            "self.mask[..., :time, :time] == 0",
            "make",
        ),
        (f"self.mask = torch.ones({SIZE}).tril(1)", "self.mask[:time, :time] < 1", "make"),
        (f"self.mask = torch.full(({SIZE}), -math.inf).triu(2)", "self.mask[:time, :time].isinf()", "make"),
        (f"self.mask = torch.ones({SIZE}).tril()", "self.mask.T[:time, :time] == 0", "use"),
        (f"self.mask = torch.full(({SIZE}), -math.inf).triu(1)", "self.mask[:time, :time].isinf().triu(2)", "use"),
    ],
)
def test_a_wrong_mask_is_found_where_it_is_made_or_used(tmp_path, monkeypatch, make, use, at):
    """It was always the line that fills the scores, whatever the constructor had made."""
    monkeypatch.chdir(tmp_path)
    text = GPT.replace(HEADS, f"{HEADS}\n        {make}").replace(HIDDEN, f"hidden = {use}")
    (tmp_path / "masked.py").write_text(text)
    *attribute, found = diagnose(adapt("masked.py:GPT")).findings
    assert found.where == "h.*.attn.mask"
    assert found.text == make if at == "make" else "hidden" in found.text, found.text
    assert [(each.fault, each.text) for each in attribute] == [("mask-in-an-attribute", make)] * ("self.mask =" in make)
