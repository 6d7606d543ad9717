"""Parameters with several names, modules that are registered twice, and tables in another orientation."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.diagnosis.searches import structure
from harness.judging.inspection import inspect_subject
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.subjects.weight_map import published_shapes
from harness.tests.subjects.altered_styles import STYLES as HERE
from harness.tests.subjects.altered_styles import altered

TIED = [
    "aliases:HeadFirst",
    "aliases:HeadOnly",
    "aliases:HeadBeforeEmbedding",
    "aliases:WidthFirst",
    "aliases:Twice",
    "aliases:Counted",
    "aliases:Interleaved",
    "aliases:Letters",
    "aliases:LeadingZeros",
    "aliases:Stages",
]
CHECKS = (
    "structure::parameter-count,size=debug,tied=true",
    "structure::parameters-by-component,size=debug",
    "structure::head-is-tied,size=debug,after=construction",
    "structure::head-is-tied,size=debug,after=training_step",
    "loading::weight-map-is-complete,size=debug",
    "parity::debug,weights=probe,compare=blocks",
    "parity::debug,weights=probe,compare=gradients",
)


@pytest.mark.parametrize("style", TIED)
def test_one_parameter_under_several_names_is_one(shipped, style):
    subject = adapt(f"{HERE}.{style}")
    records = {name: run(shipped[name], subject) for name in CHECKS}
    assert not {name: r.message for name, r in records.items() if r.verdict != "pass"}
    assert structure.search(subject) == []


@pytest.mark.parametrize("style", [*TIED, "aliases:UntiedTwice"])
def test_the_map_is_complete_at_another_size(style):
    model = adapt(f"{HERE}.{style}").build(SIZES["124M"], device="meta")
    assert model.weights.gaps == ""
    found = model.weights.read(dict(model.module.named_parameters()))
    found.pop("lm_head.weight", None)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == published_shapes(SIZES["124M"])


@pytest.mark.parametrize("style", ["aliases:HeadFirst", "aliases:WidthFirst", "aliases:Twice"])
def test_inspection_and_suites_say_the_same_of_the_map(style):
    inspection = inspect_subject(f"{HERE}.{style}")
    assert "complete; proved" in inspection.facts["weights"]
    assert not inspection.missing
    assert not inspection.unmapped_parameters


def test_an_untied_head_with_two_names_is_still_untied(shipped):
    record = run(shipped["structure::head-is-tied,size=debug,after=construction"], adapt(f"{HERE}.aliases:UntiedTwice"))
    assert record.verdict == "fail"


def test_a_padded_table_of_width_first_is_compared_over_its_tokens(shipped):
    subject = adapt(f"{HERE}.aliases:PaddedWidthFirst")
    assert run(shipped["parity::debug,weights=probe,compare=logits"], subject).verdict == "pass"


def test_layers_that_are_one_module_are_found_beside_modules_that_are_registered_twice(tmp_path):
    separate, shared = "(Layer(n_embd, n_head) for _ in range(n_layer))", "([Layer(n_embd, n_head)] * n_layer)"
    spec = altered(tmp_path, "aliases:Twice", separate, shared)
    (finding,) = structure.search(adapt(spec))
    assert finding.fault in ("blocks-share-one-module", "parameters-shared")


def test_a_transposed_one_hot_table_has_gradients_in_the_published_orientation():
    model = adapt(f"{HERE}.aliases:WidthFirst").build(SIZES["debug"])
    ids = torch.tensor([[1, 2, 3]])
    model.loss(ids, ids.roll(-1)).backward()
    assert model.gradients()["transformer.wte.weight"].shape == (211, 48)
