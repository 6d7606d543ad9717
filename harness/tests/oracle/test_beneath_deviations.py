"""A right model with declared deviations is green, and a mistake beneath them is red, and found."""

from pathlib import Path

import pytest

from harness.core.sizes import SIZES
from harness.judging.runner import make_runner
from harness.oracle.deviation_fit import DeviationFit
from harness.subjects.adapters import adapt
from harness.subjects.weight_map import published_shapes
from harness.tests.oracle.declared_examples import DEVIATIONS, MISTAKES, declare, write

LOGITS, GRADIENTS = (f"parity::debug,weights=probe,compare={what}" for what in ("logits", "gradients"))
COUNT = "structure::parameter-count,size=debug,tied=true"
WHOLE_MAP = "loading::weight-map-is-complete,size=debug"
HALF_WAY = Path(__file__).parents[1] / "subjects" / "styles" / "half_way_house.py"
HALF_WAY_DEVIATIONS = tuple(
    f"what = '{what}'"
    for what in ("rms-norm", "rotary-positions", "swiglu", "grouped-queries", "bias-free", "untied-head")
)


def undeclared(runner, shipped, *names):
    """Return the failures of these checks that no declaration explains, as text."""
    records = {name: runner.run(shipped[name]) for name in names}
    bad = {name: record for name, record in records.items() if record.verdict in ("fail", "error")}
    return {name: record.message for name, record in bad.items() if not record.declared}


@pytest.mark.parametrize("what", DEVIATIONS)
def test_a_right_model_with_a_declared_deviation_is_green(shipped, tmp_path, what):
    tables, changes = DEVIATIONS[what]
    runner = make_runner(write(tmp_path, changes), deviations=declare(tmp_path, tables))
    assert undeclared(runner, shipped, GRADIENTS, COUNT) == {}
    assert runner.unfounded() == {}


@pytest.mark.parametrize(
    ("what", "mistake"),
    [
        ("RMSNorm", "no mask"),
        ("no biases", "no scale"),
        ("SwiGLU", "the last block is skipped"),
        ("rotary positions by neighbours", "the mask allows the next token"),
        ("grouped queries", "heads merged without a transpose"),
        ("untied head", "the final norm is missing"),
    ],
)
def test_a_mistake_beneath_a_declared_deviation_is_red_and_placed(shipped, tmp_path, what, mistake):
    (tables, changes), (change, places) = DEVIATIONS[what], MISTAKES[mistake]
    runner = make_runner(write(tmp_path, (*changes, change)), deviations=declare(tmp_path, tables))
    check_is_red_and_placed(runner, shipped, places)
    assert runner.unfounded() == {}, "a mistake is no reason to doubt a declaration"


def check_is_red_and_placed(runner, shipped, places):
    record = runner.run(shipped[LOGITS])
    assert (record.verdict, record.declared) == ("fail", "")
    found = [each for each in runner.diagnose([record.as_row()])["findings"] if not each["declared"]]
    assert len(found) == 1, "one mistake, and nothing that is declared"
    assert any(place in found[0]["where"] for place in places)


def half_way_house(folder, *changes):
    """Write the half-way house with these changes, and its declarations; return its runner."""
    text = HALF_WAY.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return make_runner(f"{folder}/mine.py:HalfWayHouse", deviations=declare(folder, HALF_WAY_DEVIATIONS))


def test_a_half_way_house_to_llama_is_green_if_all_of_it_is_declared(shipped, tmp_path):
    runner = half_way_house(tmp_path)
    names = [f"{name},size=debug" for name in ("structure::parameters-by-component", "initialisation::weight-std")]
    names += ["attention::attention-rows-sum-to-one", "precision::autocast", WHOLE_MAP]
    assert undeclared(runner, shipped, LOGITS, GRADIENTS, *names) == {}
    assert runner.unfounded() == {}


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (("F.silu(self.w1(x)) * self.w3(x)", "F.gelu(self.w1(x)) * self.w3(x)"), ("mlp.activation",)),
        (("self.feed_forward(self.ffn_norm(x))", "self.feed_forward(self.attention_norm(x))"), ("ln_2",)),
    ],
    ids=["GELU for SiLU", "the wrong norm"],
)
def test_a_mistake_beneath_many_declared_deviations_is_red_and_placed(shipped, tmp_path, change, places):
    check_is_red_and_placed(half_way_house(tmp_path, change), shipped, places)


def test_a_bias_that_is_missing_beyond_those_declared_is_red(shipped, tmp_path):
    tables, changes = DEVIATIONS["some biases"]
    spec = write(tmp_path, (*changes, ("nn.Linear(4 * dim, dim)", "nn.Linear(4 * dim, dim, bias=False)")))
    found = undeclared(make_runner(spec, deviations=declare(tmp_path, tables)), shipped, COUNT, WHOLE_MAP)
    assert list(found) == [COUNT, WHOLE_MAP]


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ("what = 'exact-gelu'", "the subject has no 'exact-gelu' (exact GELU); remove it"),
        ("what = 'rms-norm'", "the subject has no 'rms-norm' (RMSNorm); remove it"),
        ("what = 'rotary-positions'", "the subject has no 'rotary-positions' (rotary positions); remove it"),
        ("what = 'no-positions'", "the subject has no 'no-positions' (no positions); remove it"),
        ("what = 'swiglu'", "the subject has no gate in the MLP (a second matrix, "),
        ("what = 'grouped-queries'", "the subject has no keys and values of fewer heads than the queries; remove "),
        ("what = 'untied-head'", "the subject has no head of its own; remove 'untied-head'"),
        ("what = 'bias-free'", "the subject has ln_1.bias, attn.c_attn.bias, "),
    ],
)
def test_a_declaration_that_the_subject_does_not_bear_out_is_reported(tmp_path, table, wrong):
    deviations = declare(tmp_path, (table,))
    ((place, found),) = DeviationFit(deviations, adapt(write(tmp_path, ()))).unfounded().items()
    assert place.endswith("mine.deviations.toml:1")
    assert found.startswith(wrong)


def test_an_epsilon_that_is_stated_is_not_read_off_the_subject(shipped, tmp_path):
    changes = (("nn.LayerNorm(dim)", "nn.RMSNorm(dim, 1e-5)"), ("nn.LayerNorm(d_model)", "nn.RMSNorm(d_model, 1e-5)"))
    deviations = declare(tmp_path, ("what = 'rms-norm'\nepsilon = 1e-6",))
    assert list(undeclared(make_runner(write(tmp_path, changes), deviations=deviations), shipped, LOGITS)) == [LOGITS]


def test_the_widths_of_a_half_way_house_are_found_at_every_size():
    subject = adapt(f"{HALF_WAY}:HalfWayHouse")
    for name, hidden in (("debug", 128), ("124M", 2048)):
        model = subject.build(SIZES[name], device="meta" if name == "124M" else "cpu")
        assert (model.size.hidden, model.size.gated, model.size.key_value_heads) == (hidden, True, 2)
        mapped = {row.published for row in model.weights.rows}
        lacking = {name.split(".")[-1] for name in published_shapes(model.size) if name not in mapped}
        assert lacking == {"bias", "weight"}, "the biases, and the table of positions"
        assert model.weights.unmapped_parameters == ()
