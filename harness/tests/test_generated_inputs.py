"""Files that nobody wrote by hand: whatever is in them, a reader ends in a named error with its place, or reads it."""

import json
import tomllib

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpt import GPT, PRESETS, GPTConfig
from gpt.errors import ConfigError, GPTError
from gpt.pretrained import config_from_huggingface, config_to_huggingface
from gpt.training.config_file import read_config
from gpt.weights import to_huggingface
from harness.bench.arms.comparison_file import read_file
from harness.core.errors import HarnessError, SuiteError
from harness.core.record_files import read
from harness.measures.all_measures import measures
from harness.oracle.deviations import read as read_deviations
from harness.suites.suite_file import read_suite

# Derandomized: the same examples in each run, so that a failure is there for everybody.
generated = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400]), st.floats()
)
SCALARS = st.one_of(st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["debug", "subject", "forward", "\0"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def toml(value):
    """Return a value as TOML, which has no null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    return json.dumps(value)


def tables(keys):
    """Return tables in which each of these keys has a value that is right, another one, or none."""
    right = {key: st.just(value) for key, value in keys.items()}
    either = {key: st.one_of(value, VALUES) for key, value in right.items()}
    wrong = st.one_of(*(st.fixed_dictionaries({**right, key: VALUES}) for key in sorted(keys)))
    return wrong | st.fixed_dictionaries({}, optional={**either, "another": VALUES})


def lines(table):
    return "".join(f"{key} = {toml(value)}\n" for key, value in table.items())


def named_or_read(reader, path, error, *, place):
    """Read; a named error must begin with the file, and with a line of it if `place`."""
    try:
        reader(path)
    except error as found:
        begins, number, *_ = str(found).removeprefix(str(path.parent)).split(":")
        assert path.name in begins
        assert not place or 1 <= int(number) <= path.read_bytes().count(b"\n") + 1


CHECK = {
    "name": "count",
    "measure": "parameter_count",
    "parameters": {"size": "debug"},
    "expect": {"equals": 1},
    "why": "w",
    "source": "s",
    "matrix": {"tied": [True]},
    "cases": [{"parameters": {"tied": False}}],
}
COMPARISON = {
    "name": "n",
    "work": "forward",
    "arms": ["fp32"],
    "axis": "tokens",
    "points": [8],
    "quick": [8],
    "parameters": {"batch": 1},
    "weight": 1.0,
    "twin": True,
    "expect": [{"arm": "fp32", "exponent": "time"}],
    "why": "w",
}
HEAD = '[suite]\ntitle = "t"\nabout = "a"\n\n'


@settings(generated, max_examples=400)
@given(tables(CHECK), st.sampled_from(sorted(measures())))
def test_a_generated_suite_is_read_or_a_named_error_with_its_line(tmp_path_factory, table, measure):
    path = tmp_path_factory.getbasetemp() / "generated.toml"
    if isinstance(table.get("measure"), str) and table.get("parameters") != CHECK["parameters"]:
        table = {**table, "measure": measure}
    path.write_text(f"{HEAD}[[check]]\n{lines(table)}", encoding="utf-8", errors="replace")
    named_or_read(lambda file: read_suite(file, measures()), path, SuiteError, place=True)


@settings(generated, max_examples=400)
@given(tables(COMPARISON))
def test_a_generated_comparison_is_read_or_a_named_error_with_its_line(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "generated.toml"
    path.write_text(f"{HEAD}[[comparison]]\n{lines(table)}", encoding="utf-8", errors="replace")
    named_or_read(read_file, path, SuiteError, place=True)


@generated
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@example(b"\xff")
@example(b"x = " + b"[" * 3000)
@example(b"x = " + b"9" * 5000)
def test_bytes_that_are_no_toml_are_a_named_error_in_every_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "generated.toml"
    path.write_bytes(data)
    for reader in (read_file, lambda file: read_suite(file, measures()), read_deviations):
        with pytest.raises(HarnessError):
            named_or_read(reader, path, (), place=True)
        named_or_read(reader, path, HarnessError, place=True)


@generated
@given(
    st.lists(VALUES | st.fixed_dictionaries({"kind": VALUES, "value": VALUES | st.just({"float": None})}), max_size=3)
)
def test_generated_records_are_read_or_a_named_error_with_their_line(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "verify-1.jsonl"
    header = '{"kind": "header", "schema": 1}\n'
    path.write_text(header + "".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    named_or_read(read, path, HarnessError, place=True)


@generated
@given(st.text(max_size=20), st.integers(0, 300))
def test_a_record_file_that_was_cut_and_changed_is_read_or_a_named_error_with_its_line(tmp_path_factory, text, at):
    path = tmp_path_factory.getbasetemp() / "verify-1.jsonl"
    whole = '{"kind": "header", "schema": 1}\n' + '{"kind": "record", "value": {"float": "nan"}}\n' * 4
    path.write_text(whole[:at] + text + whole[at + 9 :], encoding="utf-8", errors="replace")
    named_or_read(read, path, HarnessError, place=True)


@generated
@given(st.fixed_dictionaries({}, optional={name: VALUES | st.none() for name in GPTConfig.__dataclass_fields__}))
def test_a_generated_configuration_is_a_gpt_or_a_named_error(fields):
    try:
        config = GPTConfig(**fields)
    except ConfigError:
        return
    assert config.n_embd % config.n_head == 0


SETTINGS = config_to_huggingface(PRESETS["debug"], GPT(PRESETS["debug"], device="meta").lm_head.weight.dtype)


@generated
@given(st.sampled_from(sorted(SETTINGS)), VALUES | st.none())
def test_a_generated_config_json_is_read_or_a_named_error_with_its_file(key, value):
    try:
        config_from_huggingface({**SETTINGS, key: value}, "some/config.json")
    except ConfigError as error:
        assert str(error).startswith("some/config.json: ")  # noqa: PT017 - most are read


def tiny():
    """Return a model without a dimension of 3, 4 or 5."""
    return GPT(GPTConfig(vocab_size=7, block_size=6, n_layer=1, n_head=1, n_embd=2), seed=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a saved checkpoint of one layer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny().save_pretrained(folder)
    return folder


@generated
@given(st.data())
def test_a_checkpoint_with_any_change_is_read_or_a_named_error(saved, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((saved / file).read_bytes())
    file = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    raw = file.read_bytes()
    at, length = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 40))
    file.write_bytes(raw[:at] + data.draw(st.binary(max_size=20)) + raw[at + length :])
    try:
        GPT.from_pretrained(folder)
    except GPTError as error:
        assert str(folder) in str(error)  # noqa: PT017 - a change of a space is read


@settings(generated, max_examples=30)
@given(st.sampled_from(sorted(to_huggingface(tiny()))), st.lists(st.integers(3, 5), max_size=3))
def test_a_checkpoint_with_a_tensor_of_any_other_shape_is_a_named_error(saved, tmp_path_factory, name, shape):
    folder = tmp_path_factory.getbasetemp() / "shaped"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    state = {key: tensor.contiguous() for key, tensor in to_huggingface(tiny()).items()}
    save_file({**state, name: state[name].new_zeros(shape)}, folder / "model.safetensors")
    with pytest.raises(GPTError, match="shaped"):
        GPT.from_pretrained(folder)


@generated
@given(
    st.dictionaries(st.sampled_from(["steps", "seed", "n_layer", "learning_rate", "dropout", "x"]), VALUES, max_size=3)
)
def test_generated_settings_of_a_training_run_are_read_or_a_named_error_with_their_file(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "generated.toml"
    path.write_text(lines(table), encoding="utf-8", errors="replace")
    try:
        read_config(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - most are read
    else:
        tomllib.loads(path.read_text(encoding="utf-8"))
