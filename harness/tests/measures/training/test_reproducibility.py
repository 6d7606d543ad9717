"""The measures of a run that is repeated or resumed: what is right passes, and each mistake is named."""

from dataclasses import replace

import pytest

from harness.tests.measures.training.hand_made import Trainer, passes, windows
from harness.training.events import Forward
from harness.training.optimizer_steps import Step


def test_two_runs_with_one_seed_are_equal_and_two_seeds_differ(judge):
    one = Trainer().run()
    assert judge("training::repeatable", plain=one, again=Trainer().run()).verdict == "pass"
    assert judge("training::seed-matters", plain=one, other_seed=Trainer(seed=1).run()).verdict == "pass"
    record = judge("training::seed-matters", plain=one, other_seed=Trainer().run())
    assert record.where == ("the weights at the start", "the batches")


class OtherBatchAtStep2(Trainer):
    def batches(self):
        found = super().batches()
        return [windows(self.tokens, [5, 6, 7])] if self.number == 2 else found


class OtherRateAtStep2(Trainer):
    def rate(self, step):
        return self.lr * (2 if step == 2 else 1)


class MomentsLostAtStep2(Trainer):
    def step_optimizer(self):
        if self.number == 2:
            for state in self.optimizer.state.values():
                state["exp_avg_sq"] *= 1.5
        super().step_optimizer()


class NoiseAtStep2(Trainer):
    def step_optimizer(self):
        super().step_optimizer()
        if self.number == 2:
            self.parameters["bias"].data += 1e-7


def without_hashes(event):
    return replace(event, hashes={}) if isinstance(event, Step) else event


FIRST_DIFFERENCES = [
    (OtherBatchAtStep2, "the batch differs"),
    (OtherRateAtStep2, "the learning rate differs"),
    (MomentsLostAtStep2, "the optimizer's moments differ"),
    (NoiseAtStep2, "the weights after it differ"),
]


@pytest.mark.parametrize(("trainer", "what"), FIRST_DIFFERENCES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("hashed", [True, False], ids=["hashes", "tensors"])
def test_the_first_event_that_differs_is_named(judge, trainer, what, hashed):
    runs = [Trainer().run(), trainer().run()]
    if not hashed:
        runs = [replace(run, events=tuple(map(without_hashes, run.events))) for run in runs]
    record = judge("training::repeatable", plain=runs[0], again=runs[1])
    assert record.where[0] == "step 2"
    assert record.value["step 2"] == what


def test_a_run_that_ends_early_is_another_run(judge):
    record = judge("training::repeatable", plain=Trainer().run(4), again=Trainer().run(3))
    assert record.details["hint"] == "'plain' has 4 optimizer steps and 'again' 3"


def resumed(kind=Trainer, *, at=2, steps=4, change=lambda trainer: None):
    """Return a straight run, and one that continues from step `at`; `change` is what the resume loses."""
    trainer = kind()
    for _ in range(at):
        trainer.train_step()
    trainer.events = [trainer.events[0]]
    change(trainer)
    return Trainer().run(steps), trainer.run(steps - at)


def lose_moments(trainer):
    trainer.optimizer.state.clear()


def lose_rng(trainer):
    trainer.generator.manual_seed(5)


def lose_weights(trainer):
    trainer.parameters["table"].data *= 1.01


RESUMES = [
    (lambda trainer: None, None, set()),
    (lose_moments, "the optimizer's moments differ", {"moments"}),
    (lose_rng, "the batch differs", {"batch"}),
    (lose_weights, "the weights before it differ", {"weights"}),
]


@pytest.mark.parametrize(("change", "what", "lost"), RESUMES, ids=["complete", "moments", "rng", "weights"])
def test_what_a_resume_loses_is_named(judge, change, what, lost):
    straight, other = resumed(change=change)
    record = judge("training::resume-is-continuation", straight=straight, resumed=other)
    assert (record.verdict == "pass") == (what is None), record.message
    assert what is None or record.value["step 2"] == what
    record = judge("training::checkpoint-is-complete", straight=straight, resumed=other)
    assert {place for place, value in record.value.items() if value == "lost"} == lost


def test_a_validation_that_differs_after_a_resume_is_found(judge):
    """The weights that are validated are an average of the trained ones, which the checkpoint does not have."""
    run = Trainer().run(4)
    order = min(event.order for event in run.events if isinstance(event, Forward) and event.step == 3)
    (validation,) = passes(run.streams[0].ids, [[100, 200]], phase="eval")

    def validated(loss):
        return replace(run, events=(*run.events, replace(validation, step=3, order=order - 1, loss=loss)))

    resumed = replace(validated(2.0), events=tuple(e for e in validated(2.0).events if getattr(e, "number", 9) > 1))
    check = "training::resume-is-continuation"
    assert judge(check, straight=validated(2.0), resumed=resumed).verdict == "pass"
    record = judge(check, straight=validated(2.5), resumed=resumed)
    assert record.where == ("validation before step 3",)


def test_a_step_that_is_done_twice_after_a_resume_is_found(judge):
    straight, other = resumed()
    longer = Trainer()
    longer.number = 2
    record = judge("training::resume-is-continuation", straight=straight, resumed=longer.run(3))
    assert "number of steps" in record.where
    assert "3 steps after the checkpoint, and 2 without a stop" in record.details["hint"]
    assert len(other.steps) == 2
