"""Other people's GPT-2s: correct ones raise no alarm, wrong ones are rejected where they are wrong."""

import pytest

from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.subjects.weight_map import published_shapes
from harness.tests.subjects.altered_styles import STYLES as HERE
from harness.tests.subjects.altered_styles import altered

DEBUG = SIZES["debug"]
STYLES = [
    "dataclass_config:GPT",
    "attribute_bag:GPT",
    "dict_config:GPTModel",
    "per_head_matrices:Transformer",
    "torch_layers:EncoderGPT",
    "bare_parameters:Flat",
    "bare_parameters:OneLongRow",
    "bare_parameters:Stacked",
    "bare_parameters:BiasInTheProduct",
    "conv1d:LMHead",
    "lists_of_lists:Decoder",
    "frameworks:Ours",
    "frameworks:Lightning",
    "fused_otherwise:Fused",
    "fused_otherwise:HeadByHead",
    "fused_otherwise:Interleaved",
    "lecture:GPTLanguageModel",
    "greek:Phi",
    "odd_layouts:JoinedGPT",
    "odd_layouts:ConvolvedGPT",
    "odd_layouts:OnTheLeftGPT",
    "odd_layouts:BatchedHeadsGPT",
    "odd_layouts:HeadsApartGPT",
    "odd_layouts:TimeFirstGPT",
    "odd_layouts:KeysAndValuesGPT",
    "channels_first:ByKind",
    "time_first:Recurrent",
    "mixed_projections:Pairs",
]
# Without the loading suite: Hugging Face's own loader accepts what it should reject, which is no matter of adapters.
SUITES = ("attention", "parity", "interface")
CHECKS = (
    "structure::parameter-count,size=debug,tied=true",
    "structure::parameters-by-component,size=debug",
    "structure::head-is-tied,size=debug,after=construction",
    "structure::boundary-shapes,size=debug",
    "structure::evaluation-changes-nothing",
    "loading::weight-map-is-complete,size=debug",
    "loading::untransposed-projection-is-caught,size=debug",
)
# nanoGPT divides by the temperature: a bug of nanoGPT, not of the adapter.
KNOWN = {("dataclass_config:GPT", "interface::temperature-zero-is-greedy")}


def records_of(shipped, style):
    """Return the record of every check of these suites at the debug size, by name."""
    subject = adapt(f"{HERE}.{style}")
    names = [n for n, c in shipped.items() if c.suite in SUITES and c.parameters.get("size") == "debug"]
    # The other two kinds of weights differ from these only in their numbers.
    names = [n for n in names if "weights=standard" not in n and "weights=extreme" not in n]
    # A norm written by hand rounds every step to 16 bits. Hugging Face's, the unit, is fused: the ratio is 1.3 to 1.4.
    names = [n for n in names if "dtype=float16" not in n]
    return {name: run(shipped[name], subject) for name in (*names, *CHECKS) if (style, name) not in KNOWN}


@pytest.mark.parametrize("style", STYLES)
def test_a_correct_gpt_of_any_style_raises_no_alarm(shipped, style):
    records = records_of(shipped, style)
    assert not {name: r.message for name, r in records.items() if r.verdict not in ("pass", "skip")}
    assert sum(r.verdict == "pass" for r in records.values()) >= 18
    assert records["parity::debug,weights=probe,compare=blocks"].verdict == "pass"
    assert records["parity::debug,weights=probe,compare=gradients"].verdict == "pass"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", ["124M", "774M"])
def test_the_weight_map_is_complete_at_every_published_size(style, size):
    model = adapt(f"{HERE}.{style}").build(SIZES[size], device="meta")
    assert model.weights.gaps == ""
    found = model.weights.read(dict(model.module.named_parameters()))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == published_shapes(SIZES[size])


TANH, EXACT = 'approximate="tanh"', 'approximate="none"'
WRONG = [
    # (style, correct code, wrong code, the check that rejects it, the first place that it names)
    (
        "dict_config:GPTModel",
        "torch.pow(x, 3)",
        "torch.pow(x, 2)",
        "parity::debug,weights=probe,compare=blocks",
        "block 0",
    ),
    ("per_head_matrices:Transformer", TANH, EXACT, "parity::debug,weights=probe,compare=blocks", "block 0"),
    ("bare_parameters:Flat", TANH, EXACT, "parity::debug,weights=probe,compare=blocks", "block 0"),
    ("bare_parameters:Stacked", "triu(1)", "triu(2)", "attention::no-future-leak,weights=probe", "block 0"),
    ("bare_parameters:Flat", "triu(1)", "triu(2)", "attention::no-derivative-by-the-future", "position 0"),
    ("lists_of_lists:Decoder", "triu(1)", "triu(2)", "attention::no-future-leak,weights=probe", "block 0"),
    ("torch_layers:EncoderGPT", "triu(1)", "triu(2)", "attention::no-future-leak,weights=probe", "block 0"),
    ("greek:Phi", TANH, EXACT, "parity::debug,weights=probe,compare=blocks", "block 0"),
    ("greek:Phi", "is_causal=True", "is_causal=False", "attention::no-future-leak,weights=probe", "block 0"),
    ("time_first:Recurrent", ".triu(1)", ".triu(2)", "attention::no-future-leak,weights=probe", "block 0"),
    ("time_first:Recurrent", ".triu(1)", ".triu(2)", "attention::no-derivative-by-the-future", "position 0"),
    (
        "fused_otherwise:Fused",
        "is_causal=True",
        "is_causal=False",
        "attention::no-future-leak,weights=probe",
        "block 0",
    ),
    (
        "fused_otherwise:HeadByHead",
        'nn.GELU("tanh")',
        "nn.GELU()",
        "parity::debug,weights=probe,compare=blocks",
        "block 0",
    ),
    (
        "fused_otherwise:Interleaved",
        "is_causal=True",
        "is_causal=True, scale=0.2",
        "parity::debug,weights=probe,compare=blocks",
        "block 0",
    ),
    (
        "lecture:GPTLanguageModel",
        "k.shape[-1] ** -0.5",
        "k.shape[-1] ** 0.5",
        "parity::debug,weights=probe,compare=blocks",
        "block 0",
    ),
    ("dataclass_config:GPT", "x[:, [-1]]", "x[:, [0]]", "interface::answer-without-targets,length=24", "position 23"),
    (
        "conv1d:LMHead",
        "start = self.transformer, 0 if",
        "start = self.transformer, 0 if True or",
        "generation::cached-logits,size=debug,chunks=5+1+3+1+1+8+1",
        "position 5",
    ),
]


@pytest.mark.parametrize(("style", "right", "wrong", "check", "where"), WRONG)
def test_a_wrong_gpt_of_any_style_is_rejected_where_it_is_wrong(shipped, tmp_path, style, right, wrong, check, where):
    record = run(shipped[check], adapt(altered(tmp_path, style, right, wrong)))
    assert (record.verdict, record.where[0]) == ("fail", where)


def test_layers_in_no_order_that_continues_at_another_size_are_a_skip_there(tmp_path, shipped):
    """The second norm of each layer has the weights of the layer before it; with one layer the map was no map."""
    subject = adapt(altered(tmp_path, "bare_parameters:Stacked", "self.second[i]", "self.second[i - 1]"))
    record = run(shipped["parity::debug-long-context,compare=logits"], subject)
    assert record.verdict == "skip", record.message
    assert "no weight map" in record.message
