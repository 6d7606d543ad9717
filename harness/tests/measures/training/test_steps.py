"""The measures of steps, on a bigram model that records itself: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.measures.training.steps import clipping, gradients, optimizer_step, schedule_forms
from harness.tests.measures.training.hand_made import Program, T, Trainer, cosine, rates, windows
from harness.training.recording import Parameter


class Accumulating(Trainer):
    """Two micro-batches, the second of which has a short window."""

    accumulation = 2

    def batches(self):
        first, (ids, targets) = super().batches()
        targets[0, 2:] = -100
        return [first, (ids, targets)]


# gradients


class NoZeroGrad(Trainer):
    def zero_grad(self):
        pass


class StaleBatch(Trainer):
    """Trains on the batch before, whose pass it does after the recorded one."""

    def batches(self):
        self.last, now = getattr(self, "now", None), super().batches()
        self.now = now
        return now

    def loss(self, ids, targets, dtype=None):
        if self.last is None:
            return super().loss(ids, targets, dtype)
        return super().loss(*self.last[0], dtype)


class NotDivided(Accumulating):
    def weight(self, targets, total):
        return 1.0


class MeanOfMeans(Accumulating):
    def weight(self, targets, total):
        return 0.5


class LastMicroBatchOnly(Accumulating):
    def weight(self, targets, total):
        return float(int((targets != -100).sum()) < 3 * T) / 2


class DividedTwice(Trainer):
    accumulation = 2

    def weight(self, targets, total):
        return 0.25


@pytest.mark.parametrize("trainer", [Trainer, Accumulating], ids=lambda kind: kind.__name__)
def test_the_gradient_of_the_mean_over_all_targets_passes(judge, trainer):
    record = judge("training::accumulation-is-one-batch", accumulate=trainer().run(6))
    assert record.verdict == "pass", record.message
    assert max(record.value.values()) < 2


WRONG_GRADIENTS = [
    (NoZeroGrad, "step 1", "no zero_grad"),
    (StaleBatch, "step 1", "the gradient is that of the batch before"),
    (NotDivided, "step 0", "the cosine to it is"),
    (DividedTwice, "step 0", "the gradient is 0.5 times that of the mean loss of its 2 micro-batches"),
    (MeanOfMeans, "step 0", "the cosine to it is"),
    (LastMicroBatchOnly, "step 0", "the cosine to it is"),
]


@pytest.mark.parametrize(
    ("trainer", "place", "cause"), WRONG_GRADIENTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_another_gradient_fails_and_its_first_step_and_cause_are_named(judge, trainer, place, cause):
    record = judge("training::accumulation-is-one-batch", accumulate=trainer().run(4))
    assert (record.verdict, record.where[0]) == ("fail", place), record.value
    assert cause in record.details["hint"]


def test_a_missing_gradient_counts_as_zero(judge):
    recording = Trainer().run(2)
    del recording.steps[1].tensors["unclipped"]["bias"]
    record = judge("training::gradient-is-of-this-batch", plain=recording)
    assert record.where == ("step 1",)


@pytest.mark.parametrize("name", ["table", "bias"])
def test_a_gradient_that_is_nan_does_not_pass(judge, name):
    recording = Trainer().run(2)
    recording.steps[1].tensors["unclipped"][name] *= math.nan
    assert judge("training::gradient-is-of-this-batch", plain=recording).where == ("step 1",)


# clipping


class ByTensor(Trainer):
    def clip_gradients(self):
        for p in self.parameters.values():
            nn.utils.clip_grad_norm_(p, self.clip)


class ByValue(Trainer):
    clip = 0.01

    def clip_gradients(self):
        nn.utils.clip_grad_value_(self.parameters.values(), self.clip)


class AfterTheStep(Trainer):
    def clip_gradients(self):
        return torch.tensor(math.nan)


class WithoutTheBias(Trainer):
    def clip_gradients(self):
        nn.utils.clip_grad_norm_([self.parameters["table"]], self.clip)


class ByHand(Trainer):
    """Without the 1e-6 of PyTorch, which is a convention."""

    def clip_gradients(self):
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.parameters.values()))
        for p in self.parameters.values():
            p.grad *= min(1.0, self.clip / norm)


class AlwaysScaled(Trainer):
    clip = 5.0

    def clip_gradients(self):
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters.values()))
        for p in self.parameters.values():
            p.grad *= self.clip / (norm + 1e-6)


@pytest.mark.parametrize("trainer", [Trainer, ByHand], ids=lambda kind: kind.__name__)
def test_clipping_by_the_global_norm_passes(judge, trainer):
    record = judge("training::clipping", plain=trainer(settings={"clip": trainer.clip}).run())
    assert record.verdict == "pass", record.message


WRONG_CLIPPING = [
    (ByTensor, "each tensor is clipped by its own norm"),
    (ByValue, "each value is clipped, which changes the direction"),
    (AfterTheStep, "not clipped before the step"),
    (WithoutTheBias, "the cosine between them"),
]


@pytest.mark.parametrize(("trainer", "cause"), WRONG_CLIPPING, ids=lambda value: getattr(value, "__name__", ""))
def test_other_clipping_fails_with_its_cause(judge, trainer, cause):
    record = judge("training::clipping", plain=trainer(settings={"clip": trainer.clip}).run())
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    assert cause in record.details["hint"]


def test_clipping_that_never_happens_is_a_skip_and_not_a_pass(judge):
    record = judge("training::clipping", plain=Trainer(settings={"clip": 1e6}).run())
    assert (record.verdict, "above the limit" in record.message) == ("skip", True)


def test_a_norm_that_is_nan_is_no_reason_to_skip(judge):
    trainer = Trainer(settings={"clip": 1e6})
    trainer.clip = 1e6
    recording = trainer.run()
    for part in ("unclipped", "gradient"):
        recording.steps[1].tensors[part]["bias"] *= math.nan
    assert judge("training::clipping", plain=recording).where == ("step 1",)


def test_a_program_without_clipping_is_skipped(judge):
    recording = Trainer().run()
    without = replace(recording, events=tuple(e for e in recording.events if type(e).__name__ != "Clip"))
    assert judge("training::clipping", plain=without).verdict == "skip"


def test_gradients_below_the_limit_stay_as_they_are(judge):
    program = AlwaysScaled(settings={"clip": 5.0}).run(2)
    big = {name: 1e3 * g for name, g in program.steps[1].tensors["unclipped"].items()}
    program.steps[1].tensors["unclipped"] = big  # so that clipping is judged at all
    assert "scaled up" in judge("training::clipping", plain=program).details["hint"]


# the learning rate

SETTINGS = {"lr": 1e-2, "min_lr": 1e-3, "warmup": 3, "horizon": 10, "accumulation": 2}
SCHEDULES = {
    "nanoGPT": cosine,
    "k/w": lambda k: 1e-2 * k / 3 if k < 3 else cosine(k),
    "(k+1)/w": lambda k: 1e-2 * (k + 1) / 3 if k < 3 else cosine(k),
    "cosine over the whole run": lambda k: (
        1e-2 * (k + 1) / 3 if k < 3 else 1e-3 + 4.5e-3 * (1 + math.cos(math.pi * min(k / 10, 1)))
    ),
    "linear": lambda k: 1e-2 * (k + 1) / 3 if k < 3 else 1e-2 - 9e-3 * min((k - 3) / 7, 1),
    "stable, then linear": lambda k: 1e-2 * (k + 1) / 3 if k < 3 else 1e-2 - 9e-3 * min(max(k - 6, 0) / 4, 1),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("known", [(), ("min_lr",), ("min_lr", "lr")], ids=["given", "no minimum", "no rates"])
def test_every_convention_of_a_schedule_passes(judge, schedule, known):
    given = {word: value for word, value in SETTINGS.items() if word not in known}
    record = judge(
        "training::lr-at-each-step,rehearsal=past-horizon",
        past_horizon=rates([schedule(k) for k in range(14)], **given),
    )
    assert record.verdict == "pass", record.message


@pytest.mark.parametrize("known", [(), ("min_lr", "lr")], ids=["given", "no rates"])
def test_a_learning_rate_that_is_nan_does_not_pass(judge, known):
    given = {word: value for word, value in SETTINGS.items() if word not in known}
    values = [cosine(k) if k != 5 else math.nan for k in range(14)]
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=rates(values, **given))
    assert "step 5" in record.where


def test_the_form_of_a_schedule_is_said(judge):
    record = judge(
        "training::lr-at-each-step,rehearsal=past-horizon", past_horizon=rates(map(cosine, range(14)), **SETTINGS)
    )
    assert record.details["form"] == "warm-up (k+1)/(w+1) of 3 steps, then cosine by (k-w)/(h-w) to step 10"


def test_a_constant_rate_passes_where_no_other_was_declared(judge):
    check = "training::lr-at-each-step,rehearsal=past-horizon"
    warm = [min(1.0, (k + 1) / 3) * 1e-2 for k in range(9)]
    assert judge(check, past_horizon=rates(warm, lr=1e-2, warmup=3)).verdict == "pass"
    assert judge(check, past_horizon=rates([1e-2] * 9)).verdict == "pass"
    assert judge(check, past_horizon=rates(warm, lr=1e-2, warmup=3, steps=9)).verdict == "pass", "no horizon as such"


def unclamped(k):
    return cosine(k) if k < 3 else 1e-3 + 4.5e-3 * (1 + math.cos(math.pi * (k - 3) / 7))


WRONG_SCHEDULES = {
    "no warm-up": (lambda k: cosine(k) if k >= 3 else 1e-2, "step 0", "the peak in place of the warm-up"),
    "not applied": (lambda k: 1e-2, "step 0", "the peak at every step"),
    "warm-up never ends": (lambda k: 1e-2 * (k + 1) / 4, "step 4", "the warm-up never ends"),
    "no decay": (lambda k: 1e-2 * min(1, (k + 1) / 4), "step 10", "no decay follows"),
    "warm-up down": (lambda k: cosine(2 - k) if k < 3 else cosine(k), "step 0", "a warm-up that goes down"),
    "rises past the horizon": (unclamped, "step 11", "goes on past the horizon"),
    "minimum ignored": (lambda k: cosine(k, floor=0.0), "step 4", "the minimum is ignored"),
    "micro-batches": (lambda k: cosine(2 * k), "step 1", "steps counted in micro-batches"),
    "horizon too long": (lambda k: cosine(k, horizon=80), "step 4", "a horizon of 80 steps"),
    "half a period": (
        lambda k: cosine(k) if k < 3 or k >= 10 else 1e-3 + 4.5e-3 * (1 + math.cos(math.pi * (k - 3) / 14)),
        "step 4",
        "half its period",
    ),
    "no 1 +": (
        lambda k: cosine(k) if k < 3 or k >= 10 else 1e-3 + 9e-3 * math.cos(math.pi * (k - 3) / 7),
        "step 4",
        "without the 1 +",
    ),
    "one step early": (lambda k: cosine(k + 1), "step 0", "one step early"),
}


@pytest.mark.parametrize(("schedule", "place", "cause"), WRONG_SCHEDULES.values(), ids=WRONG_SCHEDULES)
def test_another_schedule_fails_and_its_first_step_and_cause_are_named(judge, schedule, place, cause):
    recording = rates([schedule(k) for k in range(14)], **SETTINGS)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=recording)
    assert record.verdict == "fail", record.details
    assert cause in record.details["hint"]
    assert place in record.where


@pytest.mark.parametrize("mistake", ["not applied", "no decay", "warm-up never ends"])
@pytest.mark.parametrize("known", [("min_lr",), ("min_lr", "lr")], ids=["no minimum", "no rates"])
def test_a_rate_that_never_decays_is_found_also_where_no_minimum_was_declared(judge, mistake, known):
    """A free minimum that may be the peak fits every one of them."""
    schedule, _, cause = WRONG_SCHEDULES[mistake]
    given = {word: value for word, value in SETTINGS.items() if word not in known}
    recording = rates([schedule(k) for k in range(14)], **given)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=recording)
    assert record.verdict == "fail", record.details
    assert cause in record.details["hint"]


# the optimizer's step


class SGD(Trainer):
    lr = 0.1

    def make_optimizer(self):
        return torch.optim.SGD(self.parameters.values(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=0.1)


class PlainAdam(Trainer):
    def make_optimizer(self):
        return torch.optim.Adam(self.parameters.values(), lr=self.lr, weight_decay=0.1)


class Fused(Trainer):
    def make_optimizer(self):
        return torch.optim.AdamW(self.parameters.values(), lr=self.lr, fused=True, amsgrad=True)


@pytest.mark.parametrize("trainer", [Trainer, SGD, PlainAdam, Fused], ids=lambda kind: kind.__name__)
def test_the_rules_of_pytorch_s_optimizers_pass(judge, trainer):
    recording = trainer().run(10)
    record = judge("training::optimizer-step,steps=10", plain=recording)
    assert record.verdict == "pass", record.message
    assert max(record.value.values()) < 2
    assert list(judge("training::optimizer-step,steps=1", plain=recording).value) == ["step 0"]


class OwnAdamW(torch.optim.Optimizer):
    """AdamW by hand, with a mistake that `wrong` names."""

    def __init__(self, parameters, wrong, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.wrong = wrong

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.update(p, group)

    def update(self, p, group):
        state = self.state[p]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        (b1, b2), lr, g = group["betas"], group["lr"], p.grad
        if self.wrong == "betas":
            b1, b2 = b2, b1
        if self.wrong == "beta2":
            b2 = 0.999
        if self.wrong == "L2":
            g = g + group["weight_decay"] * p
        state["step"] += 1
        t = int(state["step"])
        m, v = state["exp_avg"].lerp_(g, 1 - b1), state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
        if self.wrong not in ("L2", "decay after", "no decay"):
            p *= 1 - lr * group["weight_decay"]
        if self.wrong == "decay twice":
            p *= 1 - lr * group["weight_decay"]
        correct = (1.0, 1.0) if self.wrong == "no correction" else (1 - b1**t, 1 - b2**t)
        below = (v / correct[1] + 1e-8).sqrt() if self.wrong == "eps" else (v / correct[1]).sqrt() + 1e-8
        if self.wrong == "eps early":
            below = (v.sqrt() + 1e-8) / correct[1] ** 0.5
        p -= lr * (m / correct[0]) / below
        if self.wrong == "decay after":
            p *= 1 - lr * group["weight_decay"]


def own_adamw(mistake):
    class Own(Trainer):
        def make_optimizer(self):
            kind = type("AdamW", (OwnAdamW,), {})  # the name is what the recording has
            table, bias = self.parameters.values()
            return kind([{"params": [table]}, {"params": [bias], "weight_decay": 0.0}], mistake)

    return Own


def test_adamw_by_hand_passes(judge):
    assert judge("training::optimizer-step,steps=10", plain=own_adamw("")().run(10)).verdict == "pass"


WRONG_STEPS = {
    "betas": "the betas are swapped",
    "beta2": "the step used beta2 = 0.999",
    "L2": "the decay is in the gradient (L2)",
    "decay after": "the decay comes after the update",
    "decay twice": "the weights decay twice",
    "no decay": "the weights do not decay",
    "no correction": "there is no bias correction",
    "eps": "eps is inside the square root",
    "eps early": "eps is added before the bias correction",
}


@pytest.mark.parametrize(("mistake", "cause"), WRONG_STEPS.items(), ids=WRONG_STEPS)
def test_another_rule_fails_at_its_first_step_with_its_cause(judge, mistake, cause):
    record = judge("training::optimizer-step,steps=10", plain=own_adamw(mistake)().run(10))
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    assert cause in record.details["hint"], record.details["hint"]
    assert min(record.value[place] for place in record.where) > 30


def test_the_bounds_of_hints_are_those_of_the_checks(shipped):
    for bound, checks in (
        (optimizer_step.ROUNDING, ("optimizer-step,steps=1", "optimizer-step,steps=10")),
        (gradients.NOISE, ("gradient-is-of-this-batch", "accumulation-is-one-batch", "ranks-are-one-batch")),
        (clipping.EXACT, ("clipping",)),
        (schedule_forms.EXACT, tuple(f"lr-at-each-step,rehearsal={name}" for name in ("past-horizon", "accumulate"))),
    ):
        assert {shipped[f"training::{check}"].expected["at_most"] for check in checks} == {bound}


@pytest.mark.parametrize("name", ["table", "bias"])  # the first parameter and the last one
def test_an_update_that_writes_nan_does_not_pass(judge, name):
    recording = Trainer().run(3)
    recording.steps[1].tensors["after"][name][0] = math.nan
    record = judge("training::optimizer-step,steps=10", plain=recording)
    assert (record.verdict, record.where) == ("fail", ("step 1",))
    assert f"step 1, {name}: " in record.details["hint"]


def test_an_optimizer_without_a_known_rule_is_skipped(judge):
    class Other(Trainer):
        def make_optimizer(self):
            return torch.optim.Adagrad(self.parameters.values())

    record = judge("training::optimizer-step,steps=1", plain=Other().run(1))
    assert (record.verdict, "Adagrad" in record.message) == ("skip", True)


# groups


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


def test_a_parameter_in_two_groups_is_named(judge):
    recording = Trainer().run(1)
    twice = tuple(replace(group, names=("table", "bias")) for group in recording.steps[0].groups)
    step = replace(recording.steps[0], groups=twice)
    recording = replace(recording, events=(*recording.events[:-2], step))
    assert judge("training::every-parameter-once", plain=recording).where == ("table", "bias")


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


# types


class PureBfloat16(Trainer):
    dtype, lr = torch.bfloat16, 1e-4


def test_float32_weights_lose_no_update_and_bfloat16_weights_do(judge):
    assert judge("training::weights-and-moments-are-float32", plain=Trainer().run()).verdict == "pass"
    assert judge("training::few-updates-are-lost", plain=Trainer().run()).verdict == "pass"
    recording = PureBfloat16().run()
    record = judge("training::weights-and-moments-are-float32", plain=recording)
    assert record.where == ("parameters", "gradients", "moments")
    record = judge("training::few-updates-are-lost", plain=recording)
    assert record.verdict == "fail"
    assert "of table" in record.details["hint"]


def test_the_program_of_the_tests_is_what_measures_ask_for():
    from harness.training.protocols import Trains

    assert isinstance(Program(), Trains)
    assert windows(torch.arange(20), [0])[1].tolist() == [list(range(1, T + 1))]
