"""A GPT is built at any size, whatever its settings are called and wherever they are."""

import pytest
import torch

from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.subjects.adapters import adapt
from harness.subjects.adapters.construction.settle import settle
from harness.tests.subjects.constructor_styles import NAMES, PARTS, STYLES

DEBUG = SIZES["debug"]


def expected(module, size):
    """Return the model that a style builds, made directly."""
    made = module.Base()
    made.make(size.vocab_size, size.context, size.width, size.heads, size.layers)
    return made


@pytest.mark.parametrize("style", STYLES)
def test_a_model_is_built_at_the_size_that_was_asked_for(tmp_path, style):
    name = NAMES.get(style, "GPT")
    file = tmp_path / f"style_{list(STYLES).index(style)}.py"
    file.write_text(PARTS + STYLES[style])
    subject = adapt(f"{file}:{name}")
    settled = settle(subject.constructor, subject.project, name)
    module, right = settled.build(DEBUG), expected(subject.module, DEBUG)
    module.load_state_dict(right.state_dict())
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert torch.equal(module(ids), right(ids)), "the shapes do not show the number of heads"
    with torch.device("meta"):
        shapes = [
            {n: p.shape for n, p in m.named_parameters()}
            for m in (settled.build(SIZES["124M"]), expected(subject.module, SIZES["124M"]))
        ]
    assert shapes[0] == shapes[1]


def test_what_was_decided_by_behaviour_is_said(tmp_path):
    (tmp_path / "style.py").write_text(PARTS + STYLES["no word is known"])
    subject = adapt(f"{tmp_path}/style.py:GPT")
    assert set(settle(subject.constructor, subject.project, "GPT").notes[0].split(": ", 1)[1].split("; ")) == {
        "`rows` is the vocabulary",
        "`slots` is the context",
        "`units` is the width",
        "`pieces` is the number of heads",
        "`storeys` is the number of blocks",
    }


SINES = """
class Sines(nn.Module):
    def __init__(self, d, longest={longest}):
        super().__init__()
        self.register_buffer("waves", torch.randn(1, longest, d))


class GPT(Base):
    def __init__(self, vocab_size=90, n_embd=32, n_head=4, n_layer=2):
        super().__init__()
        self.make(vocab_size, 1, n_embd, n_head, n_layer)
        self.places = Sines(n_embd)

    def forward(self, ids):
        x = self.tokens(ids) + self.places.waves[:, : ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.last(x), self.tokens.weight)
"""


def test_a_buffer_of_positions_that_nothing_sets_is_long_enough_or_the_context_is_lacking(tmp_path):
    for longest in (700, 19):
        (tmp_path / f"sines_{longest}.py").write_text(PARTS + SINES.format(longest=longest))
    subject = adapt(f"{tmp_path}/sines_700.py:GPT")
    assert subject.build(DEBUG).logits(torch.arange(24)[None]).shape == (1, 24, 211)
    for place, size in (("sines_700.py", SIZES["124M"]), ("sines_19.py", DEBUG)):
        with pytest.raises(SubjectError, match="no setting was found for the context"):
            adapt(f"{tmp_path}/{place}:GPT").build(size)
