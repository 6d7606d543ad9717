"""A GPT is built at any size, whatever its settings are called and wherever they are."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.subjects.adapters import adapt
from harness.subjects.build import build_with_weights
from harness.tests.subjects.constructor_styles import NAMES, PARTS, STYLES

DEBUG = SIZES["debug"]


@pytest.mark.parametrize("style", STYLES)
def test_a_right_gpt2_is_built_at_the_size_that_was_asked_for(tmp_path, style):
    file = tmp_path / f"style_{list(STYLES).index(style)}.py"
    file.write_text(PARTS + STYLES[style])
    subject = adapt(f"{file}:{NAMES.get(style, 'GPT')}")
    ids = torch.arange(24)[None]
    model = build_with_weights(subject, DEBUG, state("debug", "probe"), "float64")
    with torch.no_grad():
        assert torch.allclose(
            model.logits(ids), oracle(DEBUG, state("debug", "probe"), "float64").logits(ids), atol=1e-9
        )
    assert subject.build(SIZES["124M"], device="meta").weights.gaps == ""
