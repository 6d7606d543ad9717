"""Speculative decoding is found and called in the styles that people write, and one mistake in each is found."""

import pytest
import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.speculation.distribution import speculative_distribution
from harness.measures.speculation.draws import speculative_changes
from harness.measures.speculation.greedy import speculative_greedy, speculative_lengths
from harness.oracle.probe_weights import state
from harness.subjects.adapters import adapt
from harness.subjects.adapters.speculation_names import is_speculative, role_of
from harness.subjects.build import build_with_weights
from harness.subjects.protocols import Speculates
from harness.tests.subjects.speculation_styles import BEGINNING, STYLES


@pytest.fixture(params=STYLES)
def subject(request, tmp_path):
    path = tmp_path / "my_gpt.py"
    path.write_text(BEGINNING + STYLES[request.param])
    return adapt(f"{path}:GPT")


def test_each_style_is_found_and_gives_the_targets_greedy_tokens(subject):
    assert isinstance(subject, Speculates)
    assert speculative_greedy(subject, size="debug", draft="near").value == 0
    assert set(speculative_lengths(subject, size="debug").value.values()) == {"right"}


def test_the_line_of_the_function_is_known(subject):
    model = subject.build(SIZES["debug"])
    file, number = subject.speculation_line(model, "model")
    with open(file) as lines:
        assert lines.readlines()[number - 1].lstrip().startswith("def ")


@pytest.mark.parametrize("style", ["prefix, approx_model, target_model", "new tokens alone", "a class"])
def test_a_style_that_samples_is_enumerated(style, tmp_path):
    path = tmp_path / "my_gpt.py"
    path.write_text(BEGINNING + STYLES[style])
    reading = speculative_distribution(adapt(f"{path}:GPT"), size="debug", draft="blind", new_tokens=2)
    assert max(reading.value.values()) < 1e-12
    assert "outcomes" in reading.details["seen"]


def test_a_greedy_function_is_not_judged_by_its_distribution(tmp_path):
    path = tmp_path / "my_gpt.py"
    path.write_text(BEGINNING + STYLES["greedy only"])
    with pytest.raises(MissingAbility, match="greedy only"):
        speculative_distribution(adapt(f"{path}:GPT"), size="debug", new_tokens=2)


def test_numbers_of_numpy_are_judged_by_draws_and_a_right_program_passes(tmp_path, monkeypatch):
    """What is drawn outside torch is not followed; the enumeration alone would call a right program wrong."""
    monkeypatch.setattr("harness.measures.speculation.distribution.DRAWN", 300)
    path = tmp_path / "my_gpt.py"
    path.write_text(
        BEGINNING
        + """
import numpy

def speculative_generate(target, draft, idx, max_new_tokens, gamma=2, seed=None):
    numbers = numpy.random.default_rng(seed)
    before = right.uniform
    right.uniform = lambda rng, like: torch.tensor(numbers.random(), dtype=like.dtype)
    try:
        return right.speculative_generate(target, draft, idx, max_new_tokens, gamma)[0]
    finally:
        right.uniform = before
"""
    )
    reading = speculative_distribution(adapt(f"{path}:GPT"), size="debug", draft="blind", new_tokens=1)
    assert list(reading.value.values()) == [0.0]
    assert "answers" in reading.details["seen"]


def test_a_gpt_without_it_lacks_the_ability(tmp_path):
    path = tmp_path / "my_gpt.py"
    path.write_text("from harness.faults.specimen import GPT\n")
    assert not isinstance(adapt(f"{path}:GPT"), Speculates)


def test_a_draft_that_the_subject_does_not_take_is_named(tmp_path):
    path = tmp_path / "my_gpt.py"
    path.write_text(BEGINNING + STYLES["a class"])
    subject = adapt(f"{path}:GPT")
    model = build_with_weights(subject, SIZES["debug"], state("debug", "probe"))
    with pytest.raises(MissingAbility, match="no speculative decoding with the draft 'prompt-lookup'"):
        subject.speculate(model, "prompt-lookup", torch.tensor([[1, 2]]), 3)


@pytest.mark.parametrize(
    ("word", "role"),
    [
        *((word, "draft") for word in ("draft", "draft_model", "approx_model", "small_model", "assistant_model")),
        *((word, "target") for word in ("target", "model", "target_model", "large_model", "main_model")),
        *((word, "lookahead") for word in ("gamma", "k", "num_draft_tokens", "draft_len", "num_speculative_tokens")),
        *((word, "count") for word in ("max_new_tokens", "max_len", "n_tokens")),
        *((word, None) for word in ("tokenizer", "draft_temperature", "num_layers", "verbose")),
    ],
)
def test_the_role_of_a_parameter_is_read_off_its_name(word, role):
    assert role_of(word) == role


@pytest.mark.parametrize(
    ("name", "is_it"),
    [
        *((name, True) for name in ("speculate", "speculative_sampling", "SpeculativeDecoder", "assisted_decoding")),
        *((name, False) for name in ("generate", "speculative_step", "verify_speculation", "_speculate")),
    ],
)
def test_names_of_the_whole_and_of_its_parts(name, is_it):
    assert is_speculative(name) is is_it


def test_a_function_of_the_file_comes_before_a_method_of_the_gpt_that_it_imports(tmp_path):
    """`from gpt import GPT` brings a `speculate` of its own, and every check judged that one."""
    file = tmp_path / "my_speculation.py"
    file.write_text(
        "from gpt import GPT\n\n\n"
        "def speculative_generate(target_model, draft_model, prompt_ids, max_new_tokens, gamma=4, temperature=1.0):\n"
        "    return prompt_ids\n"
    )
    subject = adapt(f"{file}:GPT")
    line = subject.speculation_line(subject.build(SIZES["debug"]), "model")
    assert line[0] == str(file)


NEW_TOKENS_ALONE = """
import torch
from gpt import GPT


def speculative_generate(target, draft, prompt_ids: list, n_tokens):
    return [(prompt_ids[0] + n) % 3 for n in range(n_tokens)]
"""


def test_new_tokens_that_begin_as_the_prompt_does_are_no_prompt(tmp_path):
    """They were taken for the prompt by chance, and an answer was then too short; no tokens at all were no ids."""
    file = tmp_path / "mine.py"
    file.write_text(NEW_TOKENS_ALONE)
    subject = adapt(f"{file}:GPT")
    model = subject.build(SIZES["debug"], seed=0)

    def answer(prompt, new_tokens):
        ids = subject.speculate(model, model, torch.tensor([prompt]), new_tokens, temperature=0.0)
        return ids[0].tolist()

    assert answer([0, 0, 0], 4) == [0, 0, 0, 0, 1, 2, 0]  # shows that it returns new tokens alone
    assert answer([0, 1, 2], 4) == [0, 1, 2, 0, 1, 2, 0]
    assert answer([5, 6, 7], 0) == [5, 6, 7]


@pytest.mark.parametrize("guard", ["@torch.no_grad()\n    ", ""])
def test_a_method_that_records_gradients_is_seen(tmp_path, guard):
    """Each call was made without gradients, so that the check of them could not fail."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom gpt import GPT as Base\n\n\nclass GPT(Base):\n"
        f"    {guard}def speculative_generate(self, draft, idx, max_new_tokens, temperature=1.0):\n"
        "        for _ in range(max_new_tokens):\n"
        "            logits = self(idx)[0][:, -1] / max(temperature, 1e-9)\n"
        "            idx = torch.cat([idx, torch.multinomial(logits.softmax(-1), 1)], 1)\n"
        "        return idx\n"
    )
    found = speculative_changes(adapt(f"{file}:GPT"), size="debug")
    assert found.value["gradients are recorded"] is (not guard)
