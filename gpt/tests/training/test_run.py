"""A run as a user starts it: its files, its log, and a named error for what cannot start."""

import json
import math
import sys

import pytest
import torch

from gpt.data import Vocabulary
from gpt.tests.training.small_run import events, losses, manifest, saved, train, write_text
from gpt.training import run as run_module
from gpt.training.checkpoints import load
from gpt.training.config_file import read_config
from gpt.training.peak import measured_peak
from gpt.training.run_log import read_log
from gpt.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run that is done."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(out) == 0
    return out


# ---------------------------------------------------------------------------- what a run writes


def test_a_run_writes_its_configuration_environment_vocabulary_log_and_checkpoints(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.toml",
        "environment.json",
        "log.jsonl",
        "vocabulary.json",
    ]
    config = read_config(finished / "config.toml")
    assert (config.n_layer, config.steps, config.clip) == (2, 8, 1.0)
    environment = json.loads((finished / "environment.json").read_text())
    assert (environment["torch"], environment["device"], environment["preset"]) == (torch.__version__, "cpu", None)
    assert {"cpu", "revision", "threads", "python", "ranks"} <= environment.keys()
    assert {"preset": None} | events(finished, "header")[0]["environment"] == environment
    text = (finished.parent / "text.txt").read_text()
    vocabulary = Vocabulary.from_json((finished / "vocabulary.json").read_text())
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_the_log_has_every_event_in_its_order(finished):
    found = [(event["event"], event["step"]) for event in read_log(finished / "log.jsonl")]
    best = {event["step"] for event in events(finished, "checkpoint") if event["name"] == "best"}
    expected = [("header", 0), ("validation", 0), ("sample", 0)]
    for step in range(8):
        after = step + 1
        expected.append(("step", step))
        expected += [("validation", after)] if after in (3, 6, 8) else []
        expected += [("sample", after)] if after in (4, 8) else []
        expected += [("checkpoint", after)] if after in best else []
        expected += [("checkpoint", after)] if after in (4, 8) else []
    assert found == [*expected, ("end", 8)]
    assert best
    assert events(finished, "end")[0]["reason"] == "finished"


def test_a_step_of_the_log_has_every_number(finished):
    header, steps = events(finished, "header")[0], events(finished, "step")
    names = "step loss lr norm clipped_norm clip_cosine tokens tokens_per_second mfu memory_bytes lost_updates spike"
    assert set(names.split()) <= steps[0].keys()
    assert "measured matmul peak" in header["peak_name"]
    for number, event in enumerate(steps):
        assert event["tokens"] == (number + 1) * header["tokens_per_step"] == (number + 1) * 32
        assert event["tokens_per_second"] == pytest.approx(32 / event["seconds"], rel=1e-3)
        mfu = event["tokens_per_second"] * header["flops_per_token"] / header["peak_flops_per_second"]
        assert event["mfu"] == pytest.approx(mfu, abs=1e-3)
        assert event["clipped_norm"] <= event["norm"]
        assert 0 <= event["lost_updates"] <= 1
        assert event["memory_bytes"] > 1e6
    assert [steps[0]["lr"], steps[1]["lr"]] == [0.005, 0.01]  # a warm-up of two steps to 1e-2


def test_the_loss_of_a_step_is_that_of_the_weights_before_it(finished):
    """The step numbered 0 and the validation after 0 steps are of the same weights: near ln V."""
    V = events(finished, "header")[0]["vocabulary_size"]
    assert abs(events(finished, "step")[0]["loss"] - math.log(V)) < 0.1
    assert abs(events(finished, "validation")[0]["loss"] - math.log(V)) < 0.1


def test_a_sample_is_the_prompt_and_its_new_tokens(finished):
    for sample in events(finished, "sample"):
        assert sample["text"].startswith("\n")
        assert len(sample["text"]) == 1 + 8
    assert [sample["step"] for sample in events(finished, "sample")] == [0, 4, 8]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """Return the folder of a run that learns one batch by heart: its validation loss falls, then rises."""
    out = tmp_path_factory.mktemp("overfitted") / "run"
    assert train(out, "--overfit-batches", 1, "--steps", 30, "--sample-every", 0, "--save-every", 0) == 0
    return out


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(overfitted):
    validations = {event["step"]: event["loss"] for event in events(overfitted, "validation")}
    step = min(validations, key=validations.__getitem__)
    assert 0 < step < 30
    best = load(overfitted / "checkpoints" / "best")
    assert best.step == step
    assert best.state["run"]["best"] == {"loss": validations[step], "step": step}
    assert load(overfitted / "checkpoints" / "step-00000030").state["run"]["best"] == best.state["run"]["best"]
    lowest = math.inf
    for event in events(overfitted, "validation"):
        lowest = min(lowest, event["loss"])
        assert event["best"] == lowest


def test_the_best_checkpoint_has_the_weights_of_its_loss(overfitted):
    """Weights that went on training after they were measured would have another loss."""
    best = load(overfitted / "checkpoints" / "best")
    config = read_config(overfitted / "config.toml")
    text = (overfitted.parent / "text.txt").read_text()
    trainer = Trainer(config, run_module.corpus(text, "characters", validation_fraction=config.validation_fraction))
    trainer.load_weights(best.weights)
    assert trainer.evaluate() == best.state["run"]["best"]["loss"]


def test_the_last_checkpoints_are_kept(finished, tmp_path):
    assert saved(finished) == ["best", "step-00000004", "step-00000008"]
    assert train(tmp_path / "run", "--save-every", 2, "--keep", 3) == 0
    assert saved(tmp_path / "run") == ["best", "step-00000004", "step-00000006", "step-00000008"]


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(finished, tmp_path):
    assert train(tmp_path / "again") == 0
    assert train(tmp_path / "other", "--seed", 1) == 0
    sums = [manifest(out, "step-00000008")["files"] for out in (finished, tmp_path / "again", tmp_path / "other")]
    assert sums[0] == sums[1]
    assert sums[0]["weights.safetensors"] != sums[2]["weights.safetensors"]
    assert losses(finished) == losses(tmp_path / "again")


def test_the_measurement_of_the_peak_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    flops, name = measured_peak(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e6 < flops < 1e15
    assert name.startswith("measured matmul peak (64 x 64, float32, best of ")


def test_lines_of_the_log_can_be_fewer(tmp_path):
    assert train(tmp_path / "run", "--log-every", 5) == 0
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [0, 5, 7]


def test_a_spike_is_logged_and_said_even_between_lines(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", 16, "--inject-spike-at", 13, "--log-every", 20, "--lr", "1e-3") == 0
    logged = {event["step"]: event["spike"] for event in events(tmp_path / "run", "step")}
    assert list(logged) == [0, 13, 15]
    assert "step 13" in logged[13]
    assert "spike: step 13" in capsys.readouterr().err


def test_a_run_without_validation_part_trains(tmp_path):
    assert train(tmp_path / "run", "--validation-fraction", 0) == 0
    assert events(tmp_path / "run", "validation") == []
    assert saved(tmp_path / "run") == ["step-00000004", "step-00000008"]


def test_zero_validates_and_saves_at_the_end_only(tmp_path):
    assert train(tmp_path / "run", "--eval-every", 0, "--save-every", 0, "--sample-every", 0) == 0
    assert [event["step"] for event in events(tmp_path / "run", "validation")] == [8]
    assert saved(tmp_path / "run") == ["best", "step-00000008"]
    assert events(tmp_path / "run", "sample") == []


def test_a_person_sees_the_losses_the_samples_and_the_end(tmp_path, capsys):
    assert train(tmp_path / "run") == 0
    shown = capsys.readouterr().err
    assert "training for 8 steps of 32 tokens: 2 layers, 16 wide" in shown
    assert "step 8/8  100%  loss " in shown
    assert "sample after 4 steps:\n  | " in shown
    assert (
        f"finished: 8 steps, the best validation loss is {events(tmp_path / 'run', 'validation')[-1]['best']:.4f}"
        in shown
    )


# ---------------------------------------------------------------------------- starts that are refused


def test_a_folder_with_a_run_is_not_used_again(finished, capsys):
    before = (finished / "log.jsonl").read_bytes()
    assert train(finished) == 2
    assert (
        "has a run already (config.toml, log.jsonl, checkpoints); continue it with --resume" in capsys.readouterr().err
    )
    assert (finished / "log.jsonl").read_bytes() == before


def test_a_folder_with_other_files_may_get_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--text", "none.txt"], 1, "none.txt: cannot be read"),
        (["--block-size", "500"], 1, "the validation part has 105 of the text's 1050 tokens, and a window of 500"),
        (["--sample-prompt", "#"], 1, "sample_prompt='#' has a character that the text has not; give --sample-prompt"),
        (["--precision", "float16"], 2, "precision='float16' needs a CUDA device"),
        (["--device", "cuda:9"], 2, "device='cuda:9'"),
        (
            ["--n-layer", "200", "--n-embd", "20000"],
            1,
            "not even one window at a time with --gradient-checkpointing fits",
        ),
        (["--tensorboard"], 1, "--tensorboard needs the package tensorboard"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(tmp_path, monkeypatch, capsys, flags, status, message):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(tmp_path / "run", *flags) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    write_text(tmp_path)
    assert train(tmp_path / "file") == 1
    assert "file: is not a folder; choose another --out" in capsys.readouterr().err
    assert train(tmp_path / "run", "--out", tmp_path / "file" / "run") == 1
    assert "cannot be written" in capsys.readouterr().err
