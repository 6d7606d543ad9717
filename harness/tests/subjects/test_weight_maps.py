"""The weight map of a subject: fused projections in another order, unused, missing and additional parameters."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN
from harness.judging.run_check import run
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.build import build_with_weights
from harness.tests.subjects.altered_styles import STYLES as HERE
from harness.tests.subjects.altered_styles import altered

DEBUG = SIZES["debug"]
TABLE = "self.wpe = nn.Embedding(config.block_size"

# A parameter that a mistake leaves unused must still be mapped: the diagnosis needs it.
UNUSED = [
    # (style, correct code, wrong code)
    ("channels_first:ByKind", "range(len(self.mixing))", "range(len(self.mixing) - 1)"),
    ("channels_first:ByKind", "range(len(self.mixing))", "range(1, len(self.mixing))"),
    ("channels_first:ByKind", "range(len(self.mixing))", "[1, 0, 2]"),
    ("channels_first:ByKind", "self.mixing[i](self", "self.mixing[0](self"),
    ("channels_first:ByKind", "self.key(x), self.value(x)", "self.key(x), self.key(x)"),
    ("channels_first:ByKind", "self.key(x), self.value(x)", "self.value(x), self.key(x)"),
    ("channels_first:ByKind", "return self.merge(mixed.flatten(1, 2))", "return mixed.flatten(1, 2)"),
    ("channels_first:ByKind", "self.position_embeddings.weight[: ids.shape[1]]",
     "self.position_embeddings.weight[: ids.shape[0], None]"),
    ("channels_first:ByKind", "x = x + self.narrow[i]", "x = x if i == 1 else x + self.narrow[i]"),
    ("bare_parameters:Flat", "range(0, len(layers), 12)", "range(0, len(layers) - 12, 12)"),
    ("greek:Phi", "        for i in range(self.depth):", "        for i in range(self.depth - 1):"),
    ("greek:Phi", 'f"omega_{i + 1}")(x)', 'f"omega_{self.depth - i}")(x)'),
    ("fused_otherwise:HeadByHead", "is_causal=True", "is_causal=True, dropout_p=0.3"),
    ("mixed_projections:Pairs", ".triu(1)", ".triu()"),
    ("time_first:Recurrent", "in self.layers", "in self.layers[:-1]"),
    ("time_first:Recurrent", "return self.give((scores.softmax(-1) @ v).transpose(0, 1).reshape(time, batch, width))",
     "return (scores.softmax(-1) @ v).transpose(0, 1).reshape(time, batch, width)"),
    ("mixed_projections:Pairs", "self.heads, -1).permute(0, 2, 1, 3) for", "-1, self.heads).permute(0, 3, 1, 2) for"),
]  # fmt: skip


@pytest.mark.parametrize(("style", "right", "wrong"), UNUSED)
def test_a_parameter_that_a_mistake_leaves_unused_is_mapped_all_the_same(tmp_path, style, right, wrong):
    """Each parameter gets the same numbers as in the correct model."""
    expected = dict(
        build_with_weights(adapt(f"{HERE}.{style}"), DEBUG, state("debug", "probe")).module.named_parameters()
    )
    model = build_with_weights(adapt(altered(tmp_path, style, right, wrong)), DEBUG, state("debug", "probe"))
    assert model.weights.gaps == ""
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_another_order_of_a_fused_projection_is_noted_as_a_difference_of_layout():
    weights = adapt(f"{HERE}.fused_otherwise:Fused").build(DEBUG).weights
    assert weights.notes == (
        "blocks.*.mix.qkv.weight contains keys, queries, values; GPT-2's checkpoint queries, keys, values: "
        "a layout difference, not a bug",
    )
    assert {row.evidence for row in weights.rows if row.own.endswith("qkv.weight")} == {"behaviour"}


def test_under_the_published_name_another_order_is_a_bug(shipped, tmp_path):
    """`c_attn` means queries, keys, values: accepting another order would hide the bug of a wrong loader."""
    folder = altered(tmp_path, "fused_otherwise:Fused", "self.qkv", "self.c_attn")
    record = run(shipped["parity::debug,weights=probe,compare=blocks"], adapt(folder))
    assert (record.verdict, record.where[0]) == ("fail", "block 0")


def test_a_bug_elsewhere_does_not_change_the_map(tmp_path):
    """The order is found by which outputs change, so a wrong GELU, scale and mask do not hide it."""
    expected = adapt(f"{HERE}.fused_otherwise:HeadByHead").build(DEBUG).weights.rows
    spec = altered(tmp_path, "fused_otherwise:HeadByHead", "is_causal=True", "is_causal=False, scale=0.9")
    (tmp_path / "fused_otherwise_altered.py").write_text(
        (tmp_path / "fused_otherwise_altered.py").read_text().replace('nn.GELU("tanh")', "nn.ReLU()")
    )
    assert adapt(spec).build(DEBUG).weights.rows == expected


def test_a_gpt_without_biases_is_compared_and_the_missing_ones_are_named(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", "bias=qkv_bias", "bias=False")
    subject = adapt(spec)
    assert run(shipped["parity::debug,weights=probe,compare=logits"], subject).verdict == "fail"
    record = run(shipped["loading::weight-map-is-complete,size=debug"], subject)
    assert (record.verdict, record.where) == ("fail", ("attn.c_attn.bias",))


def test_a_missing_key_bias_changes_no_logit(shipped, tmp_path):
    """softmax is invariant to a constant added to a row. The fault catalogue has this as half of a control."""
    spec = altered(tmp_path, "dict_config:GPTModel", "self.W_key = nn.Linear(d_in, d_in, bias=qkv_bias)",
                   "self.W_key = nn.Linear(d_in, d_in, bias=False)")  # fmt: skip
    assert run(shipped["parity::debug,weights=probe,compare=logits"], adapt(spec)).verdict == "pass"


def test_a_parameter_that_gpt2_lacks_keeps_its_own_values_and_is_named(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", "emb_dim\"], cfg[\"vocab_size\"], bias=False)",
                   "emb_dim\"], cfg[\"vocab_size\"]); nn.init.constant_(self.out_head.bias, 0.25)")  # fmt: skip
    model = build_with_weights(adapt(spec), DEBUG, state("debug", "probe"))
    assert [row.own for row in model.weights.rows if row.is_beyond_gpt2] == ["out_head.bias"]
    assert torch.equal(model.module.out_head.bias, torch.full((211,), 0.25))
    longer = adapt(spec).build(SIZES["debug-long"])  # once a KeyError: 'transformer.wte.bias'
    assert [row.own for row in longer.weights.rows if row.is_beyond_gpt2] == ["out_head.bias"]
    record = run(shipped["loading::weight-map-is-complete,size=debug"], adapt(spec))
    assert record.verdict == "fail"
    assert "out_head.bias" in record.where[0]


def test_a_padded_vocabulary_is_compared_over_its_tokens_only(shipped, tmp_path):
    spec = altered(tmp_path, "fused_otherwise:Fused", 'd, v = cfg["hidden_size"], cfg["vocab_size"]',
                   'd, v = cfg["hidden_size"], 256 * (cfg["vocab_size"] // 256 + 1)')  # fmt: skip
    assert run(shipped["parity::debug,weights=probe,compare=logits"], adapt(spec)).verdict == "pass"
    # The padding is not masked, so it takes part in the softmax, and the loss differs.
    assert run(shipped["parity::debug,weights=probe,compare=loss"], adapt(spec)).verdict == "fail"


@pytest.mark.parametrize("rows", [-1, 1, 2])
@pytest.mark.parametrize("names", ["known", "unknown"])
def test_a_table_of_positions_with_some_rows_more_or_fewer_is_compared_as_far_as_it_goes(tmp_path, rows, names):
    """It once left nothing compared: no weight map, and so no check against GPT-2."""
    if names == "known":
        text = SPECIMEN.read_text(encoding="utf-8").replace(TABLE, f"{TABLE} + {rows}")
        (tmp_path / "beside.py").write_text(text, encoding="utf-8")
        subject = adapt(f"{tmp_path / 'beside.py'}:GPT")
    else:
        table = "nn.Embedding(seq_length"
        subject = adapt(altered(tmp_path, "greek:Phi", table, f"{table} + {rows}"))
    model = build_with_weights(subject, DEBUG, state("debug", "probe"), "float64")
    ids, _ = batch(DEBUG, "random", rows=2, length=31)
    with torch.no_grad():
        expected = oracle(DEBUG, state("debug", "probe"), "float64").logits(ids)
        assert torch.allclose(model.logits(ids), expected, rtol=0, atol=1e-12)
    missing = "parameters of the checkpoint without one of the subject: wpe.weight" if rows < 0 else ""
    assert model.weights.gaps == missing
