"""A GPT is built at any size, whatever its settings are called and wherever they are."""

import pytest
import torch

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
