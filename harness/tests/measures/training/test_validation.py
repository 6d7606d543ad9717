"""The measures of validation: what is right passes, and each mistake is named."""

from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import Trainer, passes, recording, text, windows
from harness.training.events import Forward, Printed


def validated(change=lambda number, forwards: forwards, *, printed=None, losses=(3.0, 2.0), lengths=(4, 1), start=3000):
    """Return a run with a validation of two passes before steps 0 and 2."""
    events = list(Trainer().run().events)
    tokens = text()
    for step in (0, 2):
        before = min(e.order for e in events if isinstance(e, Forward) and e.step == step)
        starts = [[100 * i + start for i in range(length)] for length in lengths]
        forwards = [
            replace(passes(tokens, [row], phase="eval", loss=loss)[0], step=step, order=before - 1 + i / 10)
            for i, (row, loss) in enumerate(zip(starts, losses, strict=True))
        ]
        events += change(step, forwards)
        if printed:
            lines = enumerate(printed.split("\n"))
            events += [Printed(order=before - 0.5 + i / 100, step=step, text=line) for i, line in lines]
    return recording(events)


def test_validation_in_eval_mode_without_gradients_passes(judge):
    run = validated()
    for check in ("validation-is-pure,rehearsal=validate-often", "validation-set-stays"):
        assert judge(f"training::{check}", validate_often=run).verdict == "pass"


def test_validation_in_training_mode_is_found(judge):
    run = validated(lambda step, forwards: [replace(f, mode="train") for f in forwards])
    record = judge("training::validation-is-pure,rehearsal=validate-often", validate_often=run)
    assert record.where == ("validation passes not in eval mode",)


def test_training_that_goes_on_in_eval_mode_is_found(judge):
    run = validated()
    events = (replace(e, mode="eval") if isinstance(e, Forward) and e.step > 2 else e for e in run.events)
    record = judge(
        "training::validation-is-pure,rehearsal=validate-often", validate_often=replace(run, events=tuple(events))
    )
    assert record.where == ("training passes not in training mode",)


def test_validation_with_gradients_is_found(judge):
    run = validated(
        lambda step, forwards: [replace(f, phase="train", mode="eval") for f in forwards] if step else forwards
    )
    record = judge("training::validation-is-pure,rehearsal=validate-often", validate_often=run)
    assert record.where == ("validation passes with gradients",)
    assert record.value[record.where[0]] == 2


class LogsWithGradients(Trainer):
    """Has a second pass with gradients before each step, for its log, that no backward pass uses."""

    def train_step(self):
        ids, targets = windows(self.tokens, [3000])
        self.record(Forward, phase="train", ids=ids, targets=targets, loss=9.0, mode="train", line="train.py:9: log(x)")
        super().train_step()


def test_a_pass_with_gradients_for_the_log_at_every_step_is_no_micro_batch(judge):
    run = LogsWithGradients(settings={"steps": 4, "accumulation": 1, "batch_size": 3}).run()
    record = judge("training::validation-is-pure,rehearsal=validate-often", validate_often=run)
    assert record.value["validation passes with gradients"] == 4
    assert record.details["hint"] == "validation passes with gradients: train.py:9: log(x)"
    for check in ("steps-and-tokens", "printed-loss,rehearsal=accumulate"):
        assert judge(f"training::{check}", accumulate=run).verdict == "pass"
    assert judge("data::batches-differ", plain=run).verdict == "pass", "the rows of the log come again"


def with_an_estimate(*, of, losses=(9.0, 8.0)):
    """Return a run with a validation of two passes, and an estimate on as many windows that are trained on: `of`."""

    def change(step, forwards):
        rows = [of(step) for _ in forwards]
        estimate = [
            replace(f, ids=ids, targets=targets, loss=loss, order=f.order - 0.3)
            for f, (ids, targets), loss in zip(forwards, rows, losses, strict=True)
        ]
        return [*estimate, *forwards]

    return validated(change, printed="train loss 8.5000, val loss 2.8000", start=3996 - 4 * 100)


def test_an_estimate_of_the_training_loss_may_be_on_other_windows_each_time(judge):
    draw = torch.Generator().manual_seed(3)
    run = with_an_estimate(of=lambda step: windows(text(), torch.randint(3000, (4,), generator=draw).tolist()))
    for check in ("validation-set-stays", "printed-validation-loss,rehearsal=validate-often"):
        record = judge(f"training::{check}", validate_often=run)
        assert record.verdict == "pass", record.message


def test_other_validation_windows_are_found(judge):
    run = validated(lambda step, forwards: [replace(f, ids=f.ids + (step > 0)) for f in forwards])
    record = judge("training::validation-set-stays", validate_often=run)
    assert record.where == ("validation before step 2",)


# Passes of 4 and 1 windows with losses of 3 and 2: 2.8 over the targets, 2.5 over the passes.
@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("val loss 2.8000", "pass"),
        ("val loss 2.8", "pass"),
        ("val loss 2.5000", "fail"),
        ("val loss nan", "fail"),
        ("validation 16.445 (perplexity), loss 2.80", "pass"),
        ("train loss 2.8000\nval loss 2.7", "fail"),  # a line with "val" counts, if there is one
        ("train loss 2.7\nval loss 2.8000", "pass"),
    ],
)
def test_a_printed_validation_loss_is_the_mean_over_the_targets(judge, printed, verdict):
    run = validated(printed=printed)
    record = judge("training::printed-validation-loss,rehearsal=validate-often", validate_often=run)
    assert record.verdict == verdict, record.message
    if "2.5" in printed:
        assert "the mean of the batches' means" in record.details["hint"]
    if "nan" in printed:
        assert "printed nan, which is no loss" in record.details["hint"]


@pytest.mark.parametrize(("printed", "verdict"), [("2.8000 (weights), 1.8000 (mean)", "pass"), ("2.3000", "fail")])
def test_a_validation_of_two_models_prints_the_loss_of_either_and_not_their_mean(judge, printed, verdict):
    def twice(step, forwards):
        return forwards + [replace(f, loss=f.loss - 1, order=f.order + 0.2) for f in forwards]

    run = validated(twice, printed=f"val loss {printed}")
    record = judge("training::printed-validation-loss,rehearsal=validate-often", validate_often=run)
    assert record.verdict == verdict, record.message


def with_more_at_the_end(starts, *, weights=("best",), shown=True):
    """Return a run with two validations; after the last one, and its print, there are passes on these starts."""

    def change(step, forwards):
        own = [replace(each, weights=("w", str(step))) for each in forwards]
        if not step:
            return own
        last = own[-1].order
        more = [
            replace(
                passes(text(), [row], phase="eval", loss=2.0)[0], step=step, order=last + 0.2 + i / 100, weights=weights
            )
            for i, row in enumerate(starts)
        ]
        return [*own, *([Printed(order=last + 0.1, step=step, text="val loss 2.8")] if shown else []), *more]

    return validated(change)


def test_what_is_evaluated_after_the_last_validation_is_no_part_of_it(judge):
    check = "training::validation-set-stays"
    other = [[3000, 3100, 3200, 3300], [3500]]
    assert judge(check, validate_often=with_more_at_the_end(other)).verdict == "pass"
    assert judge(check, validate_often=with_more_at_the_end(other, shown=False)).verdict == "fail"


def test_a_validation_that_is_made_again_is_one(judge):
    check = "training::validation-set-stays"
    again = with_more_at_the_end([[3000, 3100, 3200, 3300], [3000]], weights=("w", "2"), shown=False)
    assert judge(check, validate_often=again).verdict == "pass"
