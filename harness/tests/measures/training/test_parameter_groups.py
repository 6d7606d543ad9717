"""The measures of parameter groups, and of the weights' type: what is right passes, and each mistake is named."""

from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import PlainAdam, Program, T, Trainer, windows
from harness.training.optimizer_steps import Step
from harness.training.recording import Parameter


def test_each_parameter_in_one_group_passes_and_a_tied_head_is_one_parameter(judge):
    recording = Trainer(settings={"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}).run()
    head = Parameter(shape=(40, 40), dtype="float32", alias_of="table")
    recording = replace(recording, parameters={**recording.parameters, "head": head})
    for check in ("every-parameter-once", "every-parameter-moves", "decay-by-parameter", "optimizer-settings"):
        assert judge(f"training::{check}", plain=recording).verdict == "pass", check


def groups(change):
    class Changed(Trainer):
        def make_optimizer(self):
            table, bias = self.parameters.values()
            return torch.optim.AdamW(change(table, bias), lr=self.lr, betas=self.betas)

    return Changed(settings={"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}).run()


def test_a_parameter_in_no_group_is_named_and_does_not_move(judge):
    recording = groups(lambda table, bias: [{"params": [table], "weight_decay": 0.1}])
    assert judge("training::every-parameter-once", plain=recording).where == ("bias",)
    assert judge("training::every-parameter-moves", plain=recording).where == ("bias",)


def test_parameters_that_get_no_gradient_are_told_from_those_whose_updates_are_lost(judge):
    run = Trainer().run()
    for step in run.steps:
        step.tensors["after"]["bias"] = step.before["bias"]
    record = judge("training::every-parameter-moves", plain=run)
    assert "1 of 2 parameters stay as they are in a step: bias" in record.details["hint"]
    for step in run.steps:
        del step.tensors["gradient"]["bias"]
    assert (
        "1 of 2 parameters get no gradient: bias" in judge("training::every-parameter-moves", plain=run).details["hint"]
    )


@pytest.mark.parametrize(("zero_in", "verdict"), [((0, 1), "pass"), ((2,), "fail"), (range(20), "fail")])
def test_a_gradient_of_zero_in_the_first_steps_moves_nothing(judge, zero_in, verdict):
    """Behind a matrix that starts at zero nothing arrives in the first step; later, or always, a part is dead."""
    recording = Trainer().run()
    events = []
    for event in recording.events:
        if isinstance(event, Step) and event.number in zero_in:
            still = {**event.tensors, "after": event.before, "gradient": {n: g * 0 for n, g in event.gradient.items()}}
            event = replace(event, tensors=still)
        events.append(event)
    assert judge("training::every-parameter-moves", plain=replace(recording, events=tuple(events))).verdict == verdict


def test_a_parameter_in_two_groups_is_named(judge):
    recording = Trainer().run(1)
    twice = tuple(replace(group, names=("table", "bias")) for group in recording.steps[0].groups)
    step = replace(recording.steps[0], groups=twice)
    recording = replace(recording, events=(*recording.events[:-2], step))
    assert judge("training::every-parameter-once", plain=recording).where == ("table", "bias")


@pytest.mark.parametrize(("decay", "verdict"), [(0.0, "pass"), (0.1, "pass"), (0.05, "fail")])
def test_embeddings_without_decay_are_a_convention(judge, decay, verdict):
    """minGPT spares them, GPT-2 and nanoGPT do not."""

    class WithMatrix(Trainer):
        def make_optimizer(self):
            table, bias = self.parameters.values()
            groups = [{"params": [table], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)

    recording = WithMatrix(settings={"weight_decay": 0.1}).run()
    table = replace(recording.parameters["table"], embedding=True)
    recording = replace(recording, parameters={**recording.parameters, "table": table})
    assert judge("training::decay-by-parameter", plain=recording).verdict == verdict


WRONG_DECAY = {
    "everything decays": ((0.1, 0.1), "those of one dimension too"),
    "swapped": ((0.0, 0.1), "the groups are swapped"),
    "none": ((0.0, 0.0), "no parameter decays; matrices should, by 0.1"),
    "another": ((0.2, 0.0), "table has a decay of 0.2, not 0.1"),
}


@pytest.mark.parametrize(("decays", "cause"), WRONG_DECAY.values(), ids=WRONG_DECAY)
def test_another_decay_is_named(judge, decays, cause):
    recording = groups(
        lambda table, bias: [
            {"params": [table], "weight_decay": decays[0]},
            {"params": [bias], "weight_decay": decays[1]},
        ]
    )
    record = judge("training::decay-by-parameter", plain=recording)
    assert record.verdict == "fail"
    assert cause in record.details["hint"]


def test_the_weight_decay_of_adam_is_no_decay(judge):
    record = judge("training::decay-by-parameter", plain=PlainAdam(settings={"weight_decay": 0.1}).run(1))
    assert record.where == ("table",)
    assert "L2" in record.details["hint"]


def test_an_optimizer_of_another_copy_of_the_model_is_named(judge):
    recording = replace(Trainer().run(1), parameters={"other": Parameter(shape=(4, 4), dtype="float32")})
    record = judge("training::every-parameter-once", plain=recording)
    assert "no module of the model owns" in record.details["hint"]
    assert judge("training::decay-by-parameter", plain=recording).verdict == "skip"


def test_swapped_betas_are_found_with_and_without_a_declaration(judge):
    class Swapped(Trainer):
        betas = (0.95, 0.9)

    for settings in ({"beta1": 0.9, "beta2": 0.95}, {}):
        record = judge("training::optimizer-settings", plain=Swapped(settings=settings).run(1))
        assert record.where[0] == "group 0, beta1"


def test_a_step_with_a_learning_rate_of_zero_need_not_move(judge):
    class WarmFromZero(Trainer):
        def rate(self, step):
            return 1e-2 * step / 4

    assert judge("training::every-parameter-moves", plain=WarmFromZero().run()).verdict == "pass"


class PureBfloat16(Trainer):
    dtype, lr = torch.bfloat16, 1e-4


def test_float32_weights_lose_no_update_and_bfloat16_weights_do(judge):
    assert judge("training::weights-and-moments-are-float32,rehearsal=plain", plain=Trainer().run()).verdict == "pass"
    assert judge("training::few-updates-are-lost,rehearsal=plain", plain=Trainer().run()).verdict == "pass"
    recording = PureBfloat16().run()
    record = judge("training::weights-and-moments-are-float32,rehearsal=plain", plain=recording)
    assert record.where == ("parameters", "gradients", "moments")
    record = judge("training::few-updates-are-lost,rehearsal=plain", plain=recording)
    assert record.verdict == "fail"
    assert "of table" in record.details["hint"]


def test_the_program_of_the_tests_is_what_measures_ask_for():
    from harness.training.protocols import Trains

    assert isinstance(Program(), Trains)
    assert windows(torch.arange(20), [0])[1].tolist() == [list(range(1, T + 1))]
