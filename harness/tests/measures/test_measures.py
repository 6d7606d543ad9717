"""The arithmetic of the measures, against published figures and figures derived elsewhere."""

import pytest
import torch
from safetensors.torch import save_file

from harness.core.errors import HarnessError, MissingResource
from harness.core.resources import Resources, text_tokens
from harness.core.sizes import SIZES
from harness.measures.generation.sampled_answer import steps_of
from harness.measures.generation.sampling import next_token_distribution
from harness.measures.pretrained import llm_c_losses, llm_c_tokens
from harness.oracle import closed_forms, probe_weights
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.float32_as_float64 import Float32AsFloat64
from harness.subjects.weight_map import family, published_shapes

COUNTS = {
    "124M": (124_439_808, 163_037_184, 124_337_664),
    "355M": (354_823_168, 406_286_336, 354_551_808),
    "774M": (774_030_080, 838_359_040, 773_521_920),
    "1558M": (1_557_611_200, 1_638_022_400, 1_556_764_800),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts_are_the_published_ones(size):
    tied, untied, without_bias = COUNTS[size]
    assert closed_forms.parameter_count(SIZES[size]) == tied
    assert closed_forms.parameter_count(SIZES[size], tied=False) == untied
    assert closed_forms.parameter_count(SIZES[size], bias=False) == without_bias
    assert sum(torch.Size(s).numel() for s in published_shapes(SIZES[size]).values()) == tied


@pytest.mark.parametrize(
    ("count", "cause"),
    [
        (163_037_184, "an untied head"),
        (124_337_664, "no biases"),
        (123_653_376, "as nanoGPT prints it"),
        (124_475_904, "padded to a multiple of 64"),
        (124_439_808, None),
        (124_439_809, None),
    ],
)
def test_a_wrong_count_names_its_cause_if_the_table_has_it(count, cause):
    found = closed_forms.cause_of_count(SIZES["124M"], count)
    assert found is None if cause is None else cause in found


@pytest.mark.parametrize(("size", "loss"), [("124M", 10.978), ("355M", 11.030), ("774M", 11.081), ("1558M", 11.145)])
def test_the_initial_loss_is_the_derived_one(size, loss):
    assert closed_forms.initial_loss(SIZES[size]) == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize(("recipe", "last"), [("gpt2", 0.84), ("unscaled", 1.55), ("pytorch", 1.13), ("kaiming", 7.0)])
def test_the_predicted_growth_of_a_normal_stream_matches_published_measurements(recipe, last):
    stds = closed_forms.residual_std(SIZES["124M"], recipe, stream_std=0.8, length=128)
    assert stds[0] == 0.8
    assert stds[-1] == pytest.approx(last, rel=0.02)


def test_probe_weights_leave_no_parameter_at_a_value_that_hides_it():
    for name, tensor in state("debug", "probe").items():
        assert tensor.std() > 0.01, name
        if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
            assert (tensor - tensor.T).abs().max() > 0.1, name
        if family(name).startswith("ln_"):
            assert (tensor - tensor.round()).abs().max() > 0.05, name


def test_probe_weights_are_the_same_in_every_process_and_differ_between_layers():
    one = state("debug", "probe")
    assert float(one["transformer.h.0.attn.c_attn.weight"][0, 0]) == pytest.approx(-0.104808, abs=1e-5)
    assert not torch.equal(one["transformer.h.0.ln_1.bias"], one["transformer.h.1.ln_1.bias"])


def test_probe_weights_are_the_same_inside_a_float64_pass_of_a_subject():
    """They were drawn in float64 there, with other numbers, and cached for the checks that followed."""
    torch.set_default_dtype(torch.float64)
    try:
        with Float32AsFloat64():
            one = probe_weights._drawn.__wrapped__(
                SIZES["debug"], "probe", tuple(published_shapes(SIZES["debug"]).items()), 0
            )
    finally:
        torch.set_default_dtype(torch.float32)
    expected = state("debug", "probe")
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    assert all(torch.equal(one[name], tensor) for name, tensor in expected.items())


def test_no_two_dimensions_of_the_debug_size_are_equal():
    size = SIZES["debug"]
    dimensions = [
        size.vocab_size, size.context, size.layers, size.heads, size.width, size.head_width,
        3 * size.width, 4 * size.width, 2, 24,
    ]  # fmt: skip
    assert len(set(dimensions)) == len(dimensions)


def test_targets_are_the_inputs_shifted_by_one_position():
    ids, targets = batch(SIZES["debug"], "random", rows=3, length=7)
    assert torch.equal(ids.flatten()[1:7], targets.flatten()[:6])


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0]).double()


def test_the_definition_of_sampling_is_softmax_then_k_then_p():
    p = LOGITS.softmax(0)
    assert torch.allclose(next_token_distribution(LOGITS, temperature=1.0, top_k=0, top_p=1.0), p)
    assert torch.allclose(next_token_distribution(LOGITS, temperature=2.0, top_k=0, top_p=1.0), (LOGITS / 2).softmax(0))
    assert next_token_distribution(LOGITS, temperature=1.0, top_k=2, top_p=1.0).gt(0).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_the_nucleus_keeps_the_token_that_crosses_p():
    """softmax of (2, 1, 0, -1) is 0.644, 0.237, 0.087, 0.032."""
    tokens = lambda p: int(next_token_distribution(LOGITS, temperature=1.0, top_k=0, top_p=p).gt(0).sum())  # noqa: E731
    assert [tokens(p) for p in (0.6, 0.65, 0.88, 0.89, 0.99)] == [1, 2, 2, 3, 4]


def test_the_nucleus_is_computed_after_top_k():
    """After top-k 2 the first token alone has 0.731 of the mass, which is enough for p = 0.7."""
    found = next_token_distribution(LOGITS, temperature=1.0, top_k=2, top_p=0.7)
    assert found.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_llm_c_packs_a_text_section_by_section():
    """Against the definition: encode each section with its two newlines, after an end-of-text token."""
    tiktoken = pytest.importorskip("tiktoken")
    try:
        stream, encode = text_tokens(), tiktoken.get_encoding("gpt2").encode_ordinary
    except Exception as error:
        pytest.skip(f"no text: {error}")
    text = tiktoken.get_encoding("gpt2").decode(stream[:4000].tolist())
    sections = text.split("\n\n")[:-1]
    expected = [token for section in sections for token in [50256, *encode(section + "\n\n")]]
    assert llm_c_tokens(stream)[: len(expected)].tolist() == expected


@pytest.mark.parametrize("recipe", ["test", "train"])
def test_ten_steps_of_llm_c_s_recipe_overfit_one_batch(recipe):
    """The published losses need the released weights; this test shows on probe weights that the code trains."""
    try:
        text_tokens()
    except MissingResource as missing:
        pytest.skip(str(missing))
    reading = llm_c_losses(adapt("gpt:GPT"), recipe=recipe, size="debug", weights="probe")
    losses = list(reading.value.values())
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert reading.details["predicted"]["step 0"] == pytest.approx(5.27, abs=1e-3)


def test_released_weights_are_read_under_bare_and_under_prefixed_names(tmp_path, monkeypatch):
    """The file of the Hugging Face hub has no `transformer.`, that of `save_pretrained` has it; masks are ignored."""
    size = SIZES["debug"]
    monkeypatch.setitem(SIZES, "124M", size)
    for prefix in ("", "transformer."):
        given = {f"{prefix}{name.removeprefix('transformer.')}": t for name, t in state("debug", "probe").items()}
        save_file({**given, f"{prefix}h.0.attn.bias": torch.ones(1, 1, 2, 2)}, tmp_path / "model.safetensors")
        Resources.configure(pretrained=str(tmp_path))
        try:
            found = state("124M", "pretrained")
        finally:
            Resources.configure()
        assert all(torch.equal(found[name], tensor) for name, tensor in state("debug", "probe").items())


def test_named_weights_that_are_not_available_are_an_error_with_the_next_step(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Resources.configure(pretrained="nobody/no-such-gpt2")
    try:
        with pytest.raises(HarnessError, match="name a directory with --pretrained DIR"):
            state("124M", "pretrained")
    finally:
        Resources.configure()


@pytest.mark.parametrize(("gap", "mass"), [(1e-7, True), (1e-2, False)], ids=["rounding", "another token"])
def test_a_token_at_the_edge_of_top_k_is_drawn_with_right_if_rounding_decides(gap, mass):
    """Two tokens are the k-th best; the model that is judged, with a cache, has them in the other order."""
    logits = torch.tensor([3.0, 2.0, 1.0, 1.0 - gap, -1.0])

    class Model:
        size = SIZES["debug"]

        def logits(self, ids):
            return logits.expand(*ids.shape, -1)

    def definition(found, _):
        return next_token_distribution(found, temperature=1.0, top_k=3, top_p=1.0)

    (step,) = steps_of(Model(), torch.tensor([[0, 3]]), 1, definition)
    assert bool(step.mass > 0) == mass
