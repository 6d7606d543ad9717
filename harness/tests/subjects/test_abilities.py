"""The abilities of a subject: generation, a key/value cache, choices."""

import pytest
import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.subjects.adapters.abilities import ABILITIES
from harness.subjects.adapters.adapted_subject import AdaptedSubject
from harness.subjects.protocols import Caches, ChoosesAttention, ChoosesInit, Generates
from harness.tests.subjects.altered_styles import STYLES as HERE
from harness.tests.subjects.altered_styles import altered
from harness.tests.subjects.styles.conv1d import LMHead

DEBUG = SIZES["debug"]


def test_dividing_by_a_temperature_of_zero_fails_one_check_only(shipped):
    subject = adapt(f"{HERE}.dataclass_config:GPT")
    record = run(shipped["interface::temperature-zero-is-greedy"], subject)
    assert record.verdict == "fail"
    assert "probability tensor" in record.details["hint"]
    greedy = [n for n, c in shipped.items() if c.name.startswith("greedy") and c.parameters.get("size") == "debug"]
    assert len(greedy) >= 2
    for name in greedy:
        assert run(shipped[name], subject).verdict == "pass"


@pytest.mark.parametrize("style", ["conv1d:LMHead", "frameworks:Ours"])
def test_a_cache_that_forward_returns_is_an_ability(shipped, style):
    subject = adapt(f"{HERE}.{style}")
    assert isinstance(subject, Caches)
    record = run(shipped["generation::cached-logits,size=debug,chunks=5+1+3+1+1+8+1"], subject)
    assert record.verdict == "pass", record.message


def test_generate_of_transformers_is_called_with_its_own_settings(shipped):
    subject = adapt(f"{HERE}.frameworks:Ours")
    assert run(shipped["parity::greedy-tokens,size=debug,prompt_length=8,new_tokens=24"], subject).verdict == "pass"
    prompt = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(MissingAbility, match="does not slide its window"):
        subject.generate(subject.build(DEBUG), prompt, 20, temperature=0.0)


def test_a_function_beside_the_class_generates(shipped):
    subject = adapt(f"{HERE}.dict_config:GPTModel")
    assert isinstance(subject, Generates)
    assert run(shipped["parity::greedy-tokens,size=debug,prompt_length=8,new_tokens=24"], subject).verdict == "pass"
    model, prompt = subject.build(DEBUG), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(MissingAbility, match="greedy only"):
        subject.generate(model, prompt, 4)


def test_a_choice_is_an_ability_only_if_the_subject_states_the_values(tmp_path):
    free = altered(tmp_path, "bare_parameters:Flat", "n_layer):", 'n_layer, attention="sdpa", init="xavier"):')
    assert not isinstance(adapt(free), ChoosesAttention)
    assert not isinstance(adapt(free), ChoosesInit)
    stated = 'n_layer, attention: __import__("typing").Literal["eager", "sdpa"] = "sdpa"):'
    subject = adapt(altered(tmp_path, "bare_parameters:Flat", "n_layer):", stated))
    assert isinstance(subject, ChoosesAttention)
    assert subject.attentions == ("naive", "flash")
    subject.build(DEBUG, attention="naive")
    with pytest.raises(MissingAbility, match="no attention 'looped'; it has eager, sdpa"):
        subject.build(DEBUG, attention="looped")
    assert adapt("gpt:GPT").recipes == ("gpt2", "unscaled", "pytorch", "kaiming")


def test_options_that_forward_passes_on_are_still_abilities():
    """`forward(self, *args, **options)` that calls the base class's takes the same options."""

    class PassesOn(LMHead):
        def forward(self, ids, **options):
            return super().forward(ids, **options)

    subject = AdaptedSubject("passes on", PassesOn, adapt(f"{HERE}.conv1d:LMHead").constructor, PassesOn)
    assert [a.__name__ for a in ABILITIES if a.found_in(PassesOn, subject.constructor, None)] == ["_Caches"]


GENERATES = "CountLast", "TotalLength", "LengthOfWhatIsNew", "OneSequence", "TextOrIds"


@pytest.mark.parametrize("style", GENERATES)
def test_the_number_of_tokens_may_have_any_place_and_any_meaning(shipped, style):
    subject = adapt(f"{HERE}.generates:{style}")
    names = (
        "parity::greedy-tokens,size=debug,prompt_length=8,new_tokens=24",
        "generation::greedy-by-definition,size=debug,prompt_length=6,new_tokens=20",
        "generation::answer-lengths",
        "generation::generation-changes-nothing",
    )
    assert {name: run(shipped[name], subject).verdict for name in names if name in shipped} == dict.fromkeys(
        (name for name in names if name in shipped), "pass"
    )


@pytest.mark.parametrize("style", ["TextPrompt", "Encodes", "NeedsTokenizer", "Decodes"])
def test_a_generate_for_text_is_no_ability(shipped, style):
    """The checks of generation are skipped by name: nothing is known of the tokenizer."""
    subject = adapt(f"{HERE}.generates:{style}")
    assert not isinstance(subject, Generates)
    assert run(shipped["generation::answer-lengths"], subject).verdict == "skip"


def test_a_cache_may_be_a_container_of_the_caller_that_the_model_fills(shipped, tmp_path):
    check = shipped["generation::cached-logits,size=debug,chunks=5+1+3+1+1+8+1"]
    assert run(check, adapt(f"{HERE}.generates:CachesOfTheCaller")).verdict == "pass"
    wrong = altered(tmp_path, "generates:CachesOfTheCaller", "torch.arange(past, past + ids", "torch.arange(0, ids")
    assert run(check, adapt(wrong)).verdict == "fail"
    record = run(check, adapt(f"{HERE}.generates:CachesNothing"))
    assert record.verdict == "skip"
    assert "finds no cache in it, nor in the answer" in record.message
