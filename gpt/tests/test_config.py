"""The configuration: published sizes, and a named error for values that describe no GPT."""

from dataclasses import FrozenInstanceError, astuple, replace

import pytest

from gpt import GPT, PRESETS, ConfigError, GPTConfig
from gpt.config import ATTENTIONS, INITS
from gpt.init import RECIPES

PUBLISHED = {  # V*C + T*C + L*(12C² + 13C) + 2C; untied, V*C more
    "gpt2": (124_439_808, 163_037_184),
    "gpt2-medium": (354_823_168, 406_286_336),
    "gpt2-large": (774_030_080, 838_359_040),
    "gpt2-xl": (1_557_611_200, 1_638_022_400),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    counts = [
        sum(parameter.numel() for parameter in GPT(replace(PRESETS[name], tied=tied), device="meta").parameters())
        for tied in (True, False)
    ]
    assert tuple(counts) == PUBLISHED[name]


def test_without_biases_neither_linear_layers_nor_layer_norms_have_them():
    model = GPT(GPTConfig(bias=False), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_337_664


def test_all_sizes_of_the_debug_preset_differ_so_that_a_swapped_dimension_is_noticed():
    config = PRESETS["debug"]
    sizes = [*[size for size in astuple(config) if type(size) is int], config.head_size, 4 * config.n_embd]
    assert len(set(sizes)) == len(sizes) == 9


def test_every_recipe_and_attention_of_the_configuration_exists():
    assert tuple(RECIPES) == INITS
    for attention in ATTENTIONS:
        GPT(replace(PRESETS["debug"], attention=attention), device="meta")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_embd": 50, "n_head": 4}, "n_embd=50 is not a multiple of n_head=4.*n_embd=48"),
        ({"n_embd": 3, "n_head": 4}, "n_embd=3 is not a multiple of n_head=4.*n_embd=4"),
        ({"n_layer": 0}, "n_layer=0 is not positive"),
        ({"block_size": -1}, "block_size=-1 is not positive"),
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"n_head": True}, "n_head=True is of type bool; expected int"),
        ({"n_embd": 768.0}, "n_embd=768.0 is of type float; expected int"),
        ({"tied": 1}, "tied=1 is of type int; expected bool"),
        ({"dropout": True}, "dropout=True is of type bool; expected float"),
        ({"dropout": "0.1"}, "dropout='0.1' is of type str; expected float"),
        ({"n_layer": 2**63}, "n_layer=9223372036854775808 is too large for a size"),
        ({"dropout": 10**400}, "dropout is a whole number of 1329 bits; expected at most 64"),
        ({"n_embd": 2**62, "n_head": 1}, "n_embd=4611686018427387904 is too large for a size; give at most 2147483647"),
        ({"vocab_size": 10**5000}, "vocab_size is a whole number of 16610 bits"),
        ({"attention": "sdpa"}, "attention='sdpa' is unknown; choose one of 'looped', 'naive', 'flash'"),
        ({"init": "xavier"}, "init='xavier' is unknown; choose one of 'gpt2'"),
    ],
)
def test_a_configuration_that_describes_no_gpt_is_a_named_error(wrong, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**wrong)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PRESETS["gpt2"].n_layer = 3  # type: ignore[misc]  # the point of the test


def test_a_name_instead_of_a_configuration_is_a_named_error():
    with pytest.raises(ConfigError, match=r"found str.*expected a GPTConfig"):
        GPT("gpt2")
