"""The command line: where each value comes from, and an error with advice for what cannot be meant."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.errors import CheckpointMismatch, CheckpointMissing, ConfigError
from gpt.train import main
from gpt.training.command_line import Command, parse
from gpt.training.config import CHANGEABLE, CHANGES_NUMBERS, TrainConfig
from gpt.training.config_file import preset_file, presets, read_config, to_toml
from gpt.training.field_docs import field_docs


def test_without_arguments_the_defaults_are_used():
    assert parse([]) == Command(TrainConfig(), Path("runs/default"))


def test_a_flag_comes_before_a_file_before_the_preset_before_the_default(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("steps = 7\nn_layer = 5\n")
    command = parse(["--preset", "debug", "--config", str(file), "--steps", "9"])
    debug = read_config(preset_file("debug"))
    assert (command.config.steps, command.config.n_layer, command.config.n_embd) == (9, 5, debug.n_embd)
    assert command.config.clip == TrainConfig().clip
    assert (command.preset, command.out) == ("debug", Path("runs/debug"))


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--n-layer", "4"], {"n_layer": 4}),
        (["--n_layer=4"], {"n_layer": 4}),
        (["--n_layer", "4"], {"n_layer": 4}),
        (["--no-bias"], {"bias": False}),
        (["--no-bias", "--bias"], {"bias": True}),
        (["--bias=False"], {"bias": False}),
        (["--gradient_checkpointing"], {"gradient_checkpointing": True}),
        (["--gradient-checkpointing=true"], {"gradient_checkpointing": True}),
        (["--no-gradient_checkpointing"], {"gradient_checkpointing": False}),
        (["--lr", "1e-3"], {"lr": 1e-3}),
        (["--clip", "1"], {"clip": 1.0}),
        (["--inject-spike-at", "-1"], {"inject_spike_at": -1}),
        (["--sample-prompt=--to_be or=not"], {"sample_prompt": "--to_be or=not"}),
        (["--sample-prompt", "to_be"], {"sample_prompt": "to_be"}),
    ],
    ids=" ".join,
)
def test_flags_are_read_in_every_spelling(arguments, changes):
    assert parse(arguments).config == TrainConfig(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "5"], r"unknown flag --stepz; did you mean '--steps'\?"),
        (["--n_layers=5"], r"unknown flag --n-layers; did you mean '--n-layer'\?"),
        (["--step", "5"], r"unknown flag --step; did you mean '--steps'\?"),  # no abbreviations: they change meaning
        (["--no-tied"], "unknown flag --no-tied"),
        (["--zzzzzz"], "unknown flag --zzzzzz; see --help"),
        (["--preset", "shakespear-char"], r"unknown preset 'shakespear-char'; did you mean 'shakespeare-char'\?"),
        (["--preset", "gpt5"], "unknown preset 'gpt5'; known: debug, gpt2-124m"),
        (["--preset="], "unknown preset ''"),
        (["500"], "unexpected argument '500'; settings are flags"),
        (["--steps", "many"], "--steps: 'many' is not an integer"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--lr", "nan"], "lr=nan is not a finite number"),
        (["--steps"], "--steps: expected one argument"),
        (["--bias=maybe"], "--bias"),
        (["--schedule", "cos"], "schedule='cos' is unknown; choose one of"),
        (["--config", "none.toml"], "none.toml: cannot be read"),
        (["--resume", "a", "--out", "b"], "--resume a has its folder and configuration; leave out --out"),
        (["--resume", "a", "--preset", "debug"], "leave out --preset"),
        (["--resume", "a", "--config", "c"], "leave out --config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_an_error_with_advice_and_status_2(capsys, arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(arguments)
    assert main(arguments) == 2
    assert re.search(rf"^gpt\.train: .*{message}", capsys.readouterr().err)


def test_help_documents_every_field_with_its_default_and_every_preset(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    found = " ".join(capsys.readouterr().out.split())
    for doc in field_docs():
        assert " ".join(doc.text.split()) in found
        assert f"--{doc.name.replace('_', '-')}" in found
        assert f"{doc.heading}: --" in found
    assert "(default: 0.0006)" in found
    assert "--no-bias" in found
    for name in presets():
        assert name in found
    for status in ("130, 143 stopped by Ctrl-C or SIGTERM", "3 the budget is used up"):
        assert status in found


def test_help_says_what_may_change_on_resuming_and_where_the_weights_stay_the_same(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    found = " ".join(capsys.readouterr().out.split())
    same, _, numbers = found.partition("These flags may change, and the weights stay the same: ")[2].partition(
        " These may change too, and with them the numbers (the schedule, the rounding): "
    )
    assert set(same.rstrip(".").split(", ")) == {flag(name) for name in CHANGEABLE - CHANGES_NUMBERS}
    assert numbers.startswith("--compile, --device, --horizon. With other --steps")
    for scope in ("on a CPU of the same kind", "the same number of threads and the same version of torch"):
        assert scope in found


def flag(name):
    return f"--{name.replace('_', '-')}"


def test_help_and_mistakes_are_answered_without_importing_torch():
    """It would take seconds."""
    lines = "import json, sys; from gpt.train import main; main(['--stepz']); print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert "did you mean" in done.stderr
    assert not {"torch", "numpy", "safetensors"} & set(json.loads(done.stdout))


# ---------------------------------------------------------------------------- resuming


@pytest.fixture
def saved_run(tmp_path):
    """Return the folder of a run that is only its configuration."""
    (tmp_path / "config.toml").write_text(to_toml(TrainConfig(steps=100, n_layer=3)))
    (tmp_path / "checkpoints" / "step-00000050").mkdir(parents=True)
    return tmp_path


def test_a_resumed_run_has_its_own_configuration(saved_run):
    assert parse(["--resume", str(saved_run)]) == Command(TrainConfig(steps=100, n_layer=3), saved_run, resume=True)


def test_a_run_resumes_from_one_of_its_checkpoints(saved_run):
    command = parse(["--resume", str(saved_run / "checkpoints" / "step-00000050")])
    assert (command.out, command.checkpoint) == (saved_run, "step-00000050")


def test_the_length_of_a_run_may_change_and_its_schedule_stays(saved_run):
    command = parse(["--resume", str(saved_run), "--steps", "300", "--budget", "2"])
    assert (command.config.steps, command.config.budget, command.config.horizon) == (300, 2.0, 100)
    assert parse(["--resume", str(saved_run), "--steps", "300", "--horizon", "300"]).config.horizon == 300
    assert parse(["--resume", str(saved_run), "--budget", "2"]).config.horizon == 0


def test_what_makes_a_run_another_run_cannot_change(saved_run):
    message = "cannot change lr from 0.0006 to 0.1, n_layer from 3 to 4; leave out the flag"
    with pytest.raises(CheckpointMismatch, match=message):
        parse(["--resume", str(saved_run), "--lr", "0.1", "--n-layer", "4", "--keep", "5"])
    assert parse(["--resume", str(saved_run), "--n-layer", "3"]).config.n_layer == 3


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, capsys):
    with pytest.raises(CheckpointMissing, match=r"none: has no run to resume \(config.toml is missing\)"):
        parse(["--resume", str(tmp_path / "none")])
    assert main(["--resume", str(tmp_path)]) == 1
    (tmp_path / "config.toml").write_text("n_layer = 3\nnlayer = 4\n")
    with pytest.raises(ConfigError, match=r"config.toml:2: unknown setting 'nlayer'; did you mean 'n_layer'\?"):
        parse(["--resume", str(tmp_path)])
