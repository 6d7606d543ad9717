"""`gpt-harness triage`: the files that it reads and refuses, what it prints, and the exit status."""

import dataclasses
import json

import pytest
import torch

from gpt import GPT, GPTConfig
from gpt.data import vocabulary
from gpt.training.checkpoints import Snapshot, write_files
from harness import cli
from harness.tests.diagnosis.triage.tiny_gpts import CONFIG, LETTERS, SIZES, ahead, table_gpt, text


@pytest.fixture
def triage(capsys):
    def run(*arguments):
        try:
            status = cli.main(["triage", *map(str, arguments)])
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(text())
    return path


def run_folder(folder, model, contents):
    """Write the folder of a run of gpt.train whose checkpoint of step 7 has the model's weights."""
    characters = vocabulary("characters", contents)
    described = {"name": characters.name, "size": characters.size, "sha256": characters.digest}
    identity = {"config": {**SIZES, "vocabulary": "characters"}, "vocabulary": described}
    checkpoint = folder / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    write_files(checkpoint, Snapshot(7, {n: p.detach() for n, p in model.named_parameters()}, {}, identity))
    (folder / "vocabulary.json").write_text(characters.to_json() + "\n")
    return folder


def test_a_run_of_the_trainer_with_nothing_wrong_is_exit_status_0(triage, tmp_path, text_file):
    folder = run_folder(tmp_path / "run", table_gpt(ahead(1)), LETTERS)
    status, output, _ = triage(folder, "--text", text_file)
    assert status == 0
    assert "no cause found" in output.splitlines()[2]
    assert "loss of t+1 less that of t" in output
    assert len(output.splitlines()) < 45


def test_a_cause_is_the_first_thing_printed_and_exit_status_1(triage, tmp_path, text_file):
    folder = run_folder(tmp_path / "run", table_gpt(ahead(2)), LETTERS)
    status, output, _ = triage(folder / "checkpoints" / "step-00000007", "--text", text_file)
    assert status == 1
    assert output.splitlines()[2].startswith(
        "your GPT babbles because of: shifted targets. It predicts the token after"
    )
    (tmp_path / "mine.py").write_text(
        "from gpt import GPT\n\n\nclass Mine(GPT):\n    def __init__(self, config):\n"
        "        super().__init__(config)\n        print('building')\n"
    )
    status, output, _ = triage(folder, "--text", text_file, "--json", "--subject", f"{tmp_path / 'mine.py'}:Mine")
    assert status == 1
    found = json.loads(output)
    assert found["causes"] == ["shifted targets"]
    (row,) = (row for row in found["evidence"] if row["cause"] == "shifted targets")
    assert row["value"] > 0.1
    assert row["spread"] < row["value"] / 4
    assert row["threshold"]
    assert row["source"]


def test_the_vocabulary_of_the_run_has_to_be_the_checkpoints(triage, tmp_path, text_file):
    folder = run_folder(tmp_path / "run", table_gpt(ahead(1)), LETTERS)
    (folder / "vocabulary.json").write_text(vocabulary("characters", LETTERS.replace("p", "q")).to_json() + "\n")
    contents = text_file.read_text().replace("p", "q")
    text_file.write_text(contents)
    status, output, _ = triage(folder, "--text", text_file)
    assert status == 1
    assert "ids of the text. Vocabulary.json of the run is not the vocabulary of the checkpoint" in output


def test_a_damaged_checkpoint_is_exit_status_2(triage, tmp_path, text_file):
    folder = run_folder(tmp_path / "run", table_gpt(ahead(1)), LETTERS)
    weights = folder / "checkpoints" / "step-00000007" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    status, _, error = triage(folder, "--text", text_file)
    assert status == 2
    assert "sha256" in error


def test_a_file_that_needs_unpickling_is_refused_with_what_to_do(triage, tmp_path):
    torch.save({"model": GPT(CONFIG).state_dict(), "config": CONFIG}, tmp_path / "a.pt")  # a dataclass is code
    status, _, error = triage(tmp_path / "a.pt")
    assert status == 2
    assert "torch.save(model.state_dict(), FILE)" in error
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").write_text("{}")
    status, _, error = triage(tmp_path)
    assert status == 2
    assert "safe_serialization=True" in error


@pytest.mark.parametrize(("arguments", "says"), [(["nowhere.pt"], "is not there"), ([], "CHECKPOINT")])
def test_a_checkpoint_that_is_not_there_is_exit_status_2(triage, arguments, says):
    status, _, error = triage(*arguments)
    assert status == 2
    assert says in error


def test_a_hugging_face_directory_is_judged_as_the_class_that_it_names(triage, tmp_path, text_file):
    config = GPTConfig(**{**dataclasses.asdict(CONFIG), "tied": True})
    GPT(config, seed=0).save_pretrained(tmp_path / "hf")
    status, output, _ = triage(f"hf:{tmp_path / 'hf'}", "--text", text_file)
    assert status == 1
    assert "nothing of a training is in this file" in output
    assert output.startswith(f"hf:{tmp_path / 'hf'}, hf:{tmp_path / 'hf'}")
    assert "right    weights not loaded" in output
    status, by_reference, _ = triage(tmp_path / "hf", "--text", text_file, "--subject", "gpt:GPT")
    assert status == 1
    assert "right    weights not loaded" in by_reference


def test_what_is_not_decided_says_why(triage, tmp_path):
    torch.save({"model": table_gpt(ahead(1)).state_dict(), "model_args": SIZES}, tmp_path / "a.pt")
    (tmp_path / "text.txt").write_text("the letters of another alphabet\n" * 100)
    status, output, _ = triage(tmp_path / "a.pt", "--text", tmp_path / "text.txt")
    assert status == 0
    assert "not decided" in output
    assert "give --vocabulary, or --text" in output
    assert "undertrained" in output[output.index("not decided\n") :]
