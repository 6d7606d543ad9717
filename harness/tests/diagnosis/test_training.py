"""The diagnosis of a training program: one finding for one mistake, in the order of a run, on the user's line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.diagnosis.training import EVENTS, Source, diagnose_training
from harness.suites.check import Check
from harness.suites.record import Record
from harness.training.events import Backward, Forward, Load, Printed, Save
from harness.training.optimizer_steps import Group, Step
from harness.training.recording import Recording

LINES = {"backward": "train.py:30: loss.backward()", "step": "train.py:40: optimizer.step()"}


class Program:
    """A program with one recording for every rehearsal."""

    name = "train.py"

    def __init__(self, *events):
        self.recording = Recording(program="train.py", rehearsal="plain", ended="finished", events=events)

    def record(self, rehearsal):
        return self.recording

    def record_ranks(self, rehearsal):
        return [self.recording]


def events():
    batch = torch.arange(8).view(2, 4)
    common = {"step": 0, "phase": "train", "ids": batch, "targets": batch, "loss": 1.0}
    return (
        Forward(
            order=0,
            **common,
            used=True,
            line="train.py:20: model(x)",
            ids_line="train.py:10: x = data[i]",
            targets_line="train.py:11: y = data[i + 1]",
            loss_line="train.py:21: F.cross_entropy",
        ),
        Backward(order=1, step=0, line=LINES["backward"]),
        Step(
            order=2,
            number=0,
            optimizer="AdamW",
            groups=(Group(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, names=("w",)),),
            line=LINES["step"],
            built_line="train.py:5: AdamW",
        ),
        Printed(order=3, step=1, text="loss 1.0", line="train.py:50: print(loss)"),
        Save(order=4, step=1, path="a.pt", keys=("model.w", "optimizer.state"), line="train.py:60: torch.save"),
        Load(order=5, step=1, path="a.pt", keys=(), line="train.py:70: torch.load"),
    )


def failed(name, hint="", **parameters):
    check = Check("training", name, "gradient_errors", {"rehearsal": "plain", **parameters}, (), {"equals": 1}, "", "")
    return Record(check, "train.py", "fail", "found 2; expected 1", 0.0, details={"hint": hint} if hint else {})


def test_every_check_of_training_programs_has_an_event(shipped):
    assert EVENTS.keys() == {check.name for check in shipped.values() if check.suite in ("data", "training")}


def test_findings_are_in_the_order_of_a_run_on_the_lines_of_their_events():
    records = [failed(name) for name in ("printed-loss", "clipping", "targets-are-the-next-tokens")]
    diagnosis, explained = diagnose_training(Program(*events()), records)
    assert [(f.where, f.source) for f in diagnosis.findings] == [
        ("targets", "train.py:11"),
        ("clipping", "train.py:40"),
        ("printed loss", "train.py:50"),
    ]
    assert [[record.check.name for record in own] for own in explained] == [
        ["targets-are-the-next-tokens"],
        ["clipping"],
        ["printed-loss"],
    ]


def test_what_follows_from_another_failure_is_no_finding_of_its_own():
    records = [failed("plateau-of-the-next-token"), failed("targets-are-the-next-tokens", "shifted twice")]
    diagnosis, explained = diagnose_training(Program(*events()), records)
    assert [finding.cause for finding in diagnosis.findings] == ["shifted twice"]
    assert len(explained[0]) == 2
    alone, _ = diagnose_training(Program(*events()), records[:1])
    assert [finding.where for finding in alone.findings] == ["loss"]


def test_what_a_number_that_is_not_finite_spoils_is_no_finding_of_its_own():
    """The diagnosis said of a loss of NaN that the model sees its answers."""
    records = [
        failed("plateau-of-the-next-token", "the loss settles at nan nats"),
        failed("clipping", "each tensor is clipped by its own norm"),
        failed("numbers-stay-finite", "step 3: the loss is finite, and the gradient of w is not"),
    ]
    diagnosis, explained = diagnose_training(Program(*events()), records)
    assert [finding.where for finding in diagnosis.findings] == ["numbers", "clipping"]
    assert [[record.check.name for record in own] for own in explained] == [
        ["numbers-stay-finite", "plateau-of-the-next-token"],
        ["clipping"],
    ]


def test_one_cause_in_several_rehearsals_is_one_finding():
    hint = "the learning rate follows: cosine without a warm-up"
    records = [failed("lr-at-each-step", hint), failed("lr-at-each-step", hint, other="past-horizon")]
    diagnosis, explained = diagnose_training(Program(*events()), records)
    assert len(diagnosis.findings) == 1
    assert len(explained[0]) == 2


@pytest.mark.parametrize(
    ("hint", "line"),
    [
        ("step 3: the gradient of the step before is still in it: no zero_grad", "train.py:40"),
        ("step 3: the gradient is 2 times that of the mean loss of its batch", "train.py:30"),
    ],
)
def test_the_cause_decides_between_the_lines_of_an_event(hint, line):
    diagnosis, _ = diagnose_training(Program(*events()), [failed("gradient-is-of-this-batch", hint)])
    (finding,) = diagnosis.findings
    assert finding.source == line
    assert finding.cause == hint.removeprefix("step 3: ")


SOURCE = '''\
import math
warmup, peak = 3, 1e-3
# range(0, 10, block_size) in a comment


def get_lr(step):
    """The warm-up, and then a cosine."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(step))


def validate():
    model(x)


for step in range(max_steps):
    lr = get_lr(step)
    for group in optimizer.param_groups:
        group["lr"] = lr
starts = range(0, n, block_size)
'''


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SOURCE)
    return [tmp_path / "train.py"]


def test_the_line_of_a_learning_rate_is_in_the_function_that_computes_it(files):
    assert Source(files).of_the_rate("cosine without a warm-up").startswith("train.py:8:")
    assert Source(files).of_the_rate("cosine to 0: the minimum is ignored").startswith("train.py:10:")
    assert Source(files).of_the_rate("cosine, with steps counted in micro-batches").startswith("train.py:20:")
    assert Source().of_the_rate("cosine") == ""


def test_lines_of_the_source_are_found_by_what_they_do(files):
    assert Source(files, {"max_steps"}).of_the_number_of_steps() == "train.py:17: for step in range(max_steps):"
    assert Source(files).like(r"block_size", near="train.py:3: #") == "train.py:21: starts = range(0, n, block_size)"
    assert Source(files).like(r"nothing like it") == ""
    assert Source(files).around("train.py:14: model(x)") == "train.py:13: def validate():"
    assert Source(files).around("train.py:2: warmup") == ""


def test_a_scheduler_of_torch_is_followed_to_the_function_that_it_is_given(files):
    files[0].write_text("def shape(k):\n    return min(1, k / warmup)\n\nscheduler = LambdaLR(opt, lr_lambda=shape)\n")
    assert Source(files).of_the_rate("linear without a warm-up").startswith("train.py:2:")


def test_what_a_checkpoint_loses_is_looked_for_where_it_is_saved_or_loaded(files):
    files[0].write_text(
        'state = {"model": model.state_dict(), "iter": it}\ntorch.save(state)\nc = torch.load()\nload(c["optimizer"])\n'
    )
    save = Save(order=0, step=1, path="a.pt", keys=("model", "iter", "optimizer"), line="train.py:2: torch.save(state)")
    load = Load(order=1, step=1, path="a.pt", keys=(), line="train.py:3: c = torch.load()")
    program = Program(save, load)
    source = Source(files)
    for lost, line in (("learning rate", 1), ("moments", 4), ("random state", 1)):
        diagnosis, _ = diagnose_training(program, [failed("checkpoint-is-complete", f"lost: {lost}")], source)
        assert diagnosis.findings[0].source == f"train.py:{line}", lost


def test_a_position_that_is_saved_and_never_read_again_is_placed_where_the_others_are_loaded(files):
    files[0].write_text(
        'torch.save({"rng": rng, "batches_seen": n})\nc = torch.load()\nset_rng_state(c["rng"])\nstep = c["step"]\n'
    )
    save = Save(order=0, step=1, path="a.pt", keys=("rng", "batches_seen"), line="train.py:1: torch.save")
    program = Program(save, Load(order=1, step=1, path="a.pt", keys=(), line="train.py:2: c = torch.load()"))
    lost = [failed("checkpoint-is-complete", "lost: batch")]
    assert diagnose_training(program, lost, Source(files))[0].findings[0].source == "train.py:4"
    files[0].write_text(files[0].read_text() + 'n = c["batches_seen"]\n')
    assert diagnose_training(program, lost, Source(files))[0].findings[0].source == "train.py:3", "the random state"


def test_a_mode_that_is_not_set_back_is_placed_at_the_end_of_its_function(files):
    files[0].write_text("def validate():\n    model.eval()\n    loss = model(x)\n    return loss\n\nvalidate()\n")
    hint = "training passes not in training mode: train.py:9: model(x), since train.py:2: model.eval()"
    record = replace(failed("validation-is-pure"), details={"hint": hint, "line": "train.py:2: model.eval()"})
    found = diagnose_training(Program(*events()), [record], Source(files))[0].findings[0]
    assert found.source == "train.py:4"
