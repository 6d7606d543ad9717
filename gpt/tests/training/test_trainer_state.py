"""Saving and loading a trainer's state: a run that continues is the run that was never stopped."""

import io
import random

import numpy as np
import pytest
import torch

from gpt.errors import CheckpointMismatch, ConfigError, LoaderError, WeightsError
from gpt.tests.training.small_trainer import everything, same, trainer
from gpt.training.randomness import RandomState, derived_seed
from gpt.training.ranks import Ranks


def through_a_file(state):
    """Return what is read back, by torch's reader that unpickles no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "random", "dropout": 0.2},
        {"order": "epoch", "dropout": 0.2, "batch_size": 7, "accumulation": 2},  # saved in the middle of an epoch
        {"precision": "pure-bfloat16"},
        {"workers": 1},
    ],
)
def test_a_resumed_run_is_bitwise_the_run_that_was_never_stopped(changes):
    straight = trainer(**changes)
    losses = [straight.train_step().loss for _ in range(14)]
    first = trainer(**changes)
    for _ in range(12):  # more than the spike guard needs for a median
        first.train_step()
    saved = through_a_file({"state": first.state_dict(), "weights": first.weights()})
    resumed = trainer(**changes)
    torch.rand(3)
    resumed.load_weights(saved["weights"])
    resumed.load_state_dict(saved["state"])
    assert [resumed.train_step().loss for _ in range(2)] == losses[12:]
    assert same(everything(resumed), everything(straight))


def test_the_weights_have_the_names_of_the_parameters_and_the_tied_head_once():
    made = trainer()
    assert list(made.weights()) == [name for name, _ in made.model.named_parameters()]
    assert "lm_head.weight" not in made.weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("transformer.ln_f.bias"), r"ln_f.bias are missing, and .* \(16,\) of float32"),
        (lambda weights: weights.update(other=torch.zeros(1)), r"weights of other are \(1,\) .* are missing"),
        (lambda weights: weights.update({"transformer.ln_f.bias": torch.zeros(3)}), r"are \(3,\) of float32"),
        (lambda weights: weights.update({"transformer.ln_f.bias": torch.zeros(16).double()}), "of float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_none_is_copied(change, message):
    made, weights = trainer(), {name: weight + 1 for name, weight in trainer().weights().items()}
    before = everything(made)
    change(weights)
    with pytest.raises(WeightsError, match=message):
        made.load_weights(weights)
    assert same(everything(made), before)


def test_a_state_of_other_ranks_or_other_batches_is_refused():
    state = trainer().state_dict()
    with pytest.raises(CheckpointMismatch, match="1 ranks, and this one is on 2"):
        trainer(Ranks(0, 2)).load_state_dict(state)
    with pytest.raises(LoaderError, match="seed"):
        trainer(seed=1).load_state_dict(state)


def test_every_global_generator_goes_through_json_and_back():
    cpu = torch.device("cpu")
    random.gauss(0, 1)  # leaves half of a pair behind, which is part of the state
    np.random.normal()
    state = RandomState.from_json(RandomState.now(cpu).to_json())
    first = [torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()]
    state.restore(cpu)
    assert [torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()] == first


@pytest.mark.parametrize("text", ["", "{}", '{"cpu": "zz", "cuda": null, "python": [3, [], null], "numpy": ["a", []]}'])
def test_a_damaged_random_state_is_an_error(text):
    with pytest.raises(ConfigError, match="no random state"):
        RandomState.from_json(text)


def test_each_purpose_and_each_rank_has_its_own_seed():
    seeds = [derived_seed(seed, purpose, rank) for seed in (0, 1) for purpose in ("a", "b") for rank in (0, 1, 10)]
    assert len(set(seeds)) == len(seeds)
    assert derived_seed(0, "dropout") == derived_seed(0, "dropout", 0) == 4859534522241490698
    assert all(0 <= seed < 2**63 for seed in seeds)
