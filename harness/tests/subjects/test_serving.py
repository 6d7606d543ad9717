"""Engines of continuous batching as people write them: found, given requests, and their tokens read."""

import types

import pytest
import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.subjects.adapters import adapt, serving
from harness.subjects.adapters.serving_engine import AdaptedEngine, _Style, new_engine
from harness.subjects.protocols import Serves
from harness.tests.subjects.styles import serves

DEBUG = SIZES["debug"]


def engine_of(kind, **others):
    return serving.engine_class_of(types.SimpleNamespace(Engine=kind, __all__=("Engine",), **others))


@pytest.mark.parametrize("kind", [serves.LLMEngine, serves.Scheduler], ids=lambda kind: kind.__name__)
def test_an_engine_of_another_style_passes(shipped, tmp_path, kind):
    file = tmp_path / "my_gpt.py"
    other = {"LLMEngine": "Scheduler", "Scheduler": "LLMEngine"}[kind.__name__]
    file.write_text(f"from harness.tests.subjects.styles.serves import *\ndel {other}\n")
    subject = adapt(f"{file}:GPT")
    assert isinstance(subject, Serves)
    for name in ("tokens-in-company,arrivals=in the middle", "logits-in-company", "memory-returns"):
        record = run(shipped[f"batching::{name}"], subject)
        assert record.verdict == "pass", record.message
    assert run(shipped["batching::cancelled"], subject).verdict == "skip"
    # With a temperature and no seed, the requests that are greedy by their settings are judged.
    expected = {"LLMEngine": "pass", "Scheduler": "skip"}[kind.__name__]
    assert run(shipped["batching::sampled-in-company"], subject).verdict == expected


def test_a_learning_rate_scheduler_is_no_engine():
    class Scheduler:
        def __init__(self, optimizer):
            pass

        def step(self):
            pass

        def add(self, group):
            pass

    assert engine_of(Scheduler) is None


def test_a_prompt_of_one_token_that_the_answer_begins_with_is_not_cut_off():
    """The prompt was once cut off wherever the tokens began with it: greedy answers repeat a prompt of one token."""
    subject = adapt("gpt:GPT")
    engine = subject.new_engine(subject.build(DEBUG, seed=0), requests=2, positions=32)
    number = engine.submit([5], 3, temperature=0.0)
    handle = engine.handles[number]
    handle.tokens += [5, 7]
    assert engine.tokens(number) == [5, 7]


def test_a_parameter_of_which_nothing_is_known_is_named():
    class Engine:
        def __init__(self, model, flux):
            pass

        def submit(self, ids, max_new_tokens):
            pass

        def step(self):
            pass

    found = engine_of(Engine)
    assert found is not None
    model = adapt("gpt:GPT").build(DEBUG, seed=0)
    with pytest.raises(MissingAbility, match="needs 'flux'"):
        AdaptedEngine(found, model, requests=1, positions=8, stop=None, style=_Style())
    with pytest.raises(MissingAbility, match="needs 'flux'"):
        new_engine(found, model, requests=1, positions=8, stop=None)


def test_memory_is_what_an_engine_keeps_and_no_weight():
    subject = adapt("gpt:GPT")
    model = subject.build(DEBUG, seed=0)
    engine = subject.new_engine(model, requests=2, positions=32)
    shapes = sorted(tuple(tensor.shape) for tensor in engine.memory())
    assert shapes == [(3, 1, 4, 8, 4, 12)] * 2  # keys and values: layers, 1, heads, pages, page, head width
    assert all(tensor.dtype == torch.float32 for tensor in engine.memory())
