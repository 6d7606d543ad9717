"""The configuration: every field documented and checked, and the same after a round trip through TOML."""

import fnmatch
import tomllib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

import gpt.training
from gpt import GPT, PRESETS, ConfigError
from gpt.data.order import ORDERS
from gpt.data.vocabulary import NAMES as VOCABULARIES
from gpt.training.config import CHANGEABLE, CHOICES, TrainConfig, differences
from gpt.training.config_file import preset_file, presets, read_config, read_settings, to_toml
from gpt.training.field_docs import field_docs
from gpt.training.precision import TYPES

NAMES = [field.name for field in fields(TrainConfig)]


def test_every_field_has_a_docstring_and_a_heading():
    assert [doc.name for doc in field_docs()] == NAMES
    assert not [doc.name for doc in field_docs() if len(doc.text) < 10]
    headings = list(dict.fromkeys(doc.heading for doc in field_docs()))
    assert headings == ["Data", "Model", "Batch", "Optimizer", "Precision and memory", "Along the way"]
    assert {doc.name: doc.heading for doc in field_docs()}["n_layer"] == "Model"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0 is too small; give at least 1"),
        ({"batch_size": -1}, "batch_size=-1 is too small"),
        ({"accumulation": 0}, "accumulation=0 is too small"),
        ({"keep": 0}, "keep=0 is too small; give at least 1"),
        ({"inject_spike_at": -2}, "inject_spike_at=-2 is too small; give at least -1"),
        ({"eval_every": -1}, "eval_every=-1 is too small; give at least 0"),
        ({"budget": -1.0}, "budget=-1.0 is too small"),
        ({"steps": 1.5}, "steps=1.5 is of type float; expected int"),
        ({"steps": True}, "steps=True is of type bool; expected int"),
        ({"bias": 1}, "bias=1 is of type int; expected bool"),
        ({"lr": "6e-4"}, "lr='6e-4' is of type str; expected float"),
        ({"lr": 0.0}, "lr=0.0 is not positive"),
        ({"lr": float("nan")}, "lr=nan is not a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay=inf is not a finite number"),
        ({"eps": 0.0}, "eps=0.0 is not positive"),
        ({"beta2": 1.0}, r"beta2=1.0 is outside \[0, 1\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1.0 is outside \[0, 1\)"),
        ({"lr": 1e-5}, "min_lr=6e-05 is above lr=1e-05, the peak; lower min_lr or raise lr"),
        ({"spike_factor": 0.5}, "spike_factor=0.5 names every step"),
        ({"schedule": "cos"}, "schedule='cos' is unknown; choose one of 'cosine', 'linear', 'constant'"),
        ({"precision": "fp16"}, "precision='fp16' is unknown"),
        ({"order": "shuffled"}, "order='shuffled' is unknown"),
        ({"vocabulary": "chars"}, "vocabulary='chars' is unknown"),
        ({"device": "gpu"}, "device='gpu' is unknown; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"text": ""}, "text is empty"),
        ({"text": "a\udcff"}, "text='a.*' is not Unicode text"),
        ({"seed": 2**63}, "seed=9223372036854775808 is too large"),
        ({"n_embd": 50}, "n_embd=50 is not a multiple of n_head=12"),  # the model's own checks
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
        ({"attention": "sdpa"}, "attention='sdpa' is unknown"),
    ],
)
def test_a_value_that_describes_no_run_is_a_named_error(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**wrong)


def test_the_choices_are_those_of_the_modules_that_make_them():
    expected = {"precision": TYPES, "order": ORDERS, "vocabulary": VOCABULARIES}
    assert {name: set(CHOICES[name]) for name in expected} == {name: set(names) for name, names in expected.items()}


def test_every_numeric_field_has_a_lower_limit():
    """A new field without one would accept steps=-5."""
    for field in fields(TrainConfig):
        if field.type in (int, float) and field.name != "inject_spike_at":
            with pytest.raises(ConfigError):
                TrainConfig(**{field.name: field.type(-3)})


def test_a_constant_rate_needs_no_minimum():
    assert TrainConfig(lr=1e-5, schedule="constant").lr == 1e-5


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().steps = 3  # type: ignore[misc]  # the point of the test


def test_the_model_of_the_defaults_is_gpt2_small():
    assert TrainConfig().model(vocab_size=50257) == PRESETS["gpt2"]
    changes = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": 32, "dropout": 0.1, "bias": False}
    changes |= {"attention": "naive", "init": "unscaled"}
    assert TrainConfig(**changes).model(vocab_size=211) == replace(PRESETS["debug"], **changes)


def test_the_fields_that_may_change_on_resuming_exist():
    assert set(NAMES) >= CHANGEABLE
    assert differences(TrainConfig(), TrainConfig(steps=5, seed=1)) == {"steps": (1000, 5), "seed": (0, 1)}


# ---------------------------------------------------------------------------- TOML


NASTY = 'a "quoted" \\ back\\slash\ttab\nline é 😀 \x00\x1f\x7f # = []'


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(sample_prompt=NASTY, text=NASTY, lr=1e-20, min_lr=0.0, eps=1e300, seed=2**63 - 1, bias=False),
        TrainConfig(inject_spike_at=-1, budget=0.1 + 0.2, compile=True, device="cuda:3"),
    ],
)
def test_a_configuration_is_the_same_after_a_round_trip_through_toml(tmp_path, config):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="\n")
    assert read_config(path) == config
    assert list(tomllib.loads(to_toml(config))) == NAMES
    assert "# Optimizer\nlr = " in to_toml(config)


def test_a_whole_number_is_a_number(tmp_path):
    (tmp_path / "a.toml").write_text("clip = 1")
    config = read_config(tmp_path / "a.toml")
    assert config == TrainConfig(clip=1.0)
    assert to_toml(config) == to_toml(TrainConfig(clip=1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# a run\nsteps = 5\nn_layers = 3\n", r"a.toml:3: unknown setting 'n_layers'; did you mean 'n_layer'\?"),
        ("zzz = 3", r"a.toml:1: unknown setting 'zzz'; known: accumulation, attention"),
        ("\n[model]\nn_layer = 3", "a.toml:2: unknown setting 'model'"),
        ('steps = "5"', "a.toml:1: steps='5' is of type str; expected int"),
        ("lr = 2020-01-01", "a.toml:1: lr=.* is of type date; expected float"),
        ("steps = \nlr = 1", "a.toml: is not TOML: .*line 1.*; expected lines like `steps = 500`"),
        ("steps = 5\nsteps = 6", "a.toml: is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path / "a.toml")


def test_a_file_that_cannot_be_read_is_a_named_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'text = "caf\xe9"')
    with pytest.raises(ConfigError, match=r"latin.toml: is not UTF-8"):
        read_settings(tmp_path / "latin.toml")
    (tmp_path / "wrong.toml").write_text("steps = 0")
    with pytest.raises(ConfigError, match=r"wrong.toml: steps=0 is too small"):
        read_config(tmp_path / "wrong.toml")


# ---------------------------------------------------------------------------- presets


def test_the_presets_are_valid_and_say_what_they_are_for():
    assert list(presets()) == ["debug", "gpt2-124m", "shakespeare-bpe", "shakespeare-char"]
    for path in presets().values():
        read_config(path)
        assert path.read_text().startswith("# ")


def test_the_preset_of_the_lessons_has_their_recipe_and_gpt2_small():
    config = read_config(preset_file("gpt2-124m"))
    found = (config.lr, config.beta1, config.beta2, config.weight_decay, config.clip, config.schedule, config.precision)
    assert found == (6e-4, 0.9, 0.95, 0.1, 1.0, "cosine", "bfloat16")
    assert config.warmup == 0.05 * config.steps
    assert (config.text, config.vocabulary) == ("tinyshakespeare", "gpt2")
    model = GPT(config.model(vocab_size=50257), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_the_sizes_of_the_debug_preset_are_those_of_the_debug_model():
    config = read_config(preset_file("debug"))
    assert config.model(vocab_size=211) == PRESETS["debug"]
    assert config.vocabulary == "characters"


def test_the_presets_are_packaged():
    root = Path(gpt.training.__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gpt.training"]
    for path in presets().values():
        assert any(fnmatch.fnmatch(f"{path.parent.name}/{path.name}", pattern) for pattern in data)
