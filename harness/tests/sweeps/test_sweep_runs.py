"""Cells become settings: the tokens are what the budget buys, and the closed form counts what the trainer counts."""

import dataclasses

import pytest

from harness.core.errors import HarnessError
from harness.sweeps.plan_file import read_plan
from harness.sweeps.sources import SourceText
from harness.sweeps.sweep_runs import RunFolder, sweep_rows, sweep_runs
from harness.tests.sweeps.small_plan import SMALL


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(SMALL)
    return read_plan(str(path))


def texts(tmp_path, digest="a"):
    return {"markov": SourceText(tmp_path / "text.txt", 20_000, 16, digest)}


def test_a_run_has_the_tokens_that_its_budget_buys_and_ends_its_schedule_with_them(plan, tmp_path):
    runs = sweep_runs(plan, texts(tmp_path), tmp_path)
    assert len(runs) == 12
    for run in runs:
        settings = run.folder.run.settings
        assert run.flops == pytest.approx(run.budget, rel=0.03)  # whole steps
        assert run.flops == 6 * run.parameters * run.tokens
        assert run.tokens == settings["steps"] * settings["batch_size"] * settings["block_size"]
        assert "horizon" not in settings  # so it is the number of steps
        assert settings["lr"] == pytest.approx(0.2 / run.width)
        assert run.model_flops > run.flops  # attention


def test_parameters_are_those_of_the_trainer_s_own_model(plan, tmp_path):
    """Closed form against the module: a bias or an embedding more would shift every N."""
    from gpt import GPT, GPTConfig

    for run in sweep_runs(plan, texts(tmp_path), tmp_path):
        settings = run.folder.run.settings
        shape = {name: settings[name] for name in ("block_size", "n_layer", "n_head", "n_embd")}
        model = GPT(GPTConfig(vocab_size=16, **shape))
        assert run.parameters == sum(parameter.numel() for parameter in model.parameters())
        embedded = model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel()
        assert run.non_embedding == run.parameters - embedded


def test_another_text_or_device_makes_another_run(plan, tmp_path):
    def fingerprints(digest, device):
        return {run.folder.fingerprint for run in sweep_runs(plan, texts(tmp_path, digest), tmp_path, device=device)}

    same, other, cuda = fingerprints("a", "cpu"), fingerprints("b", "cpu"), fingerprints("a", "cuda")
    assert len(same) == 12
    assert not same & other
    assert not same & cuda


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "width 2 of the sweep 'small' has 3 heads"),
        ({"tokens_per_step": 100}, "a step 100 tokens in windows of 16"),
        ({"tokens_per_step": 64_000}, "buys . steps of width 2 .* expected at least 20"),
    ],
)
def test_a_cell_that_cannot_be_trained_is_an_error(plan, tmp_path, change, message):
    with pytest.raises(HarnessError, match=message):
        sweep_runs(dataclasses.replace(plan, **change), texts(tmp_path), tmp_path)


def test_a_run_whose_trainer_counts_other_parameters_is_not_fitted(plan, tmp_path, monkeypatch):
    run = sweep_runs(plan, texts(tmp_path), tmp_path)[0]
    steps = run.folder.run.settings["steps"]
    row = dict.fromkeys(
        ("tokens_per_step", "train_tokens", "vocabulary_size", "tokens_per_second", "seconds", "ended", "made"), 1
    )
    row |= {"validation": [[0, 5.0], [steps, 2.5]], "settings": run.folder.run.settings, "parameters": run.parameters}
    monkeypatch.setattr(RunFolder, "finished", True)
    monkeypatch.setattr(RunFolder, "row", lambda folder: row)
    assert sweep_rows([run])[0]["loss"] == 2.5
    row["parameters"] += 1
    assert sweep_rows([run])[0]["loss"] is None
    assert "the trainer counts" in sweep_rows([run])[0]["why"]
    row["parameters"] -= 1
    row["validation"] = [[0, 5.0]]
    assert "no validation at its end" in sweep_rows([run])[0]["why"]
