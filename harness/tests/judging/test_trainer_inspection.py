"""`gpt-harness inspect --trainer`: what was understood of a training program, and what is skipped for want of what."""

import json

import pytest

from harness.cli import main
from harness.faults.training import SCRIPT


def test_what_was_understood_of_the_specimen_is_told_seam_by_seam(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(SCRIPT.read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "--trainer", "train.py", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    facts = {label: text for label, text in found["facts"] if label}
    lines = SCRIPT.read_text().splitlines()
    assert facts["model"] == "28 parameters with 34,176 elements; head.weight is wte.weight"
    assert facts["schedule"].startswith("warm-up (k+1)/(w+1) of 3 steps, then cosine")
    assert facts["optimizer"].startswith("AdamW at train.py:")
    for label, word in (("backward", "loss.backward()"), ("clipping", "clip_grad_norm_"), ("optimizer", "AdamW(")):
        number = 1 + next(n for n, line in enumerate(lines) if word in line)
        assert f"train.py:{number}:" in facts[label], label
    assert facts["saves"].startswith("ckpt.pt.part: model, optimizer, iter, best_val_loss, rng at train.py:")
    lacks = ["workers", "the number of epochs", "the precision"]
    reasons = sorted(found["not_judged"])
    assert len(reasons) == 3
    assert all(any(word in reason for reason in reasons) for word in lacks)
    assert found["error"] == ""


def test_what_a_program_lacks_is_told_with_the_checks_that_are_skipped(tmp_path, monkeypatch, capsys):
    from harness.tests.training.tiny import script

    (tmp_path / "train.py").write_text(script())
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "--trainer", "train.py"]) == 0
    out = capsys.readouterr().out
    assert "clipping  not seen" in out
    assert "skipped   data/" in out
    assert "validates not seen: no pass without gradients has a loss" in out


@pytest.mark.parametrize("arguments", [[], ["a.py:GPT", "--trainer", "train.py"]])
def test_exactly_one_of_a_gpt_and_a_training_program_is_inspected(arguments, capsys):
    assert main(["inspect", *arguments]) == 2
    assert "name either a GPT, FILE.py:NAME, or a training program" in capsys.readouterr().err


def test_a_program_that_fails_is_told_with_its_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text("raise RuntimeError('no GPU here')\n")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "--trainer", "train.py"]) == 1
    assert "failed    train.py fails in the rehearsal 'plain': RuntimeError: no GPU here" in capsys.readouterr().out
