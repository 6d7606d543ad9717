"""The measures of the learning rate: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest

from harness.tests.measures.training.hand_made import cosine, rates

SETTINGS = {"lr": 1e-2, "min_lr": 1e-3, "warmup": 3, "horizon": 10, "accumulation": 2}
SCHEDULES = {
    "nanoGPT": cosine,
    "k/w": lambda k: 1e-2 * k / 3 if k < 3 else cosine(k),
    "(k+1)/w": lambda k: 1e-2 * (k + 1) / 3 if k < 3 else cosine(k),
    "cosine over the whole run": lambda k: (
        1e-2 * (k + 1) / 3 if k < 3 else 1e-3 + 4.5e-3 * (1 + math.cos(math.pi * min(k / 10, 1)))
    ),
    "warm-up times cosine": lambda k: (
        (min(1, (k + 1) / 3)) * (1e-3 + 4.5e-3 * (1 + math.cos(math.pi * min(k / 10, 1))))
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


def test_a_decay_to_zero_may_be_cut_at_the_minimum(judge):
    values = [1e-2 * (k + 1) / 3 if k < 3 else max(1e-3, 1e-2 * (1 - min((k - 3) / 7, 1))) for k in range(14)]
    check = "training::lr-at-each-step,rehearsal=past-horizon"
    assert judge(check, past_horizon=rates(values, **SETTINGS)).verdict == "pass"
    values[8] *= 1.001
    assert judge(check, past_horizon=rates(values, **SETTINGS)).verdict == "fail"


def test_another_peak_or_minimum_than_the_declared_is_named(judge):
    run = rates([0.5 * cosine(k) for k in range(14)], **SETTINGS)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=run)
    assert "a peak of 0.005 and a minimum of 0.0005; declared are 0.01 and 0.001" in record.details["hint"]


def test_what_a_factor_of_a_scheduler_is_relative_to_is_named(judge):
    """LambdaLR multiplies what its function returns by the peak: a learning rate, or a minimum that is one."""
    rate = [cosine(k) for k in range(14)]
    floor = [rate[k] / 1e-2 if k < 3 else (rate[k] - 1e-3) / 9e-3 for k in range(14)]
    for values, what in (
        ([1e-2 * value for value in rate], "times the peak"),
        (
            [1e-2 * (1e-3 + (1 - 1e-3) * share) if k >= 3 else rate[k] for k, share in enumerate(floor)],
            "to the minimum",
        ),
    ):
        record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=rates(values, **SETTINGS))
        assert what in record.details["hint"]
        assert "relative to the peak" in record.details["hint"]


def test_a_final_decay_that_is_divided_by_the_whole_run_is_named(judge):
    given = {"lr": 1e-2, "warmup": 3, "steps": 12, "cooldown": 4}

    def right(k, length):
        return 1e-2 * (k + 1) / 3 if k < 3 else 1e-2 * (1 - max(0, k - 8) / length)

    record = judge("training::lr-at-each-step,rehearsal=plain", plain=rates([right(k, 4) for k in range(12)], **given))
    assert record.verdict == "pass", record.message
    record = judge("training::lr-at-each-step,rehearsal=plain", plain=rates([right(k, 12) for k in range(12)], **given))
    assert "linear over the last 4 steps as a part of all 12" in record.details["hint"]


def test_a_decay_every_so_many_steps_is_no_final_decay(judge):
    """`decay_steps` of StepLR: the name is also that of the length of a final decay."""
    given = {"lr": 1e-2, "warmup": 3, "steps": 12, "cooldown": 4}
    values = [1e-2 * (k + 1) / 3 if k < 3 else 1e-2 * 0.5 ** (k // 4) for k in range(12)]
    assert judge("training::lr-at-each-step,rehearsal=plain", plain=rates(values, **given)).verdict == "skip"


def test_a_schedule_that_is_stepped_once_an_epoch(judge):
    """A rate for each epoch is right; one that goes on by a step of the warm-up only is named."""
    given = {"lr": 1e-2, "epochs": 3, "warmup": 6, "horizon": 12}
    stuck = [1e-2 * (k // 4 + 1) / 6 for k in range(12)]
    record = judge("training::lr-at-each-step,rehearsal=epochs", epochs=rates(stuck, **given))
    assert "goes on by one an epoch, which has 4" in record.details["hint"]
    halved = [1e-2 * 0.5 ** (k // 4) for k in range(12)]
    record = judge("training::lr-at-each-step,rehearsal=epochs", epochs=rates(halved, **given))
    assert record.verdict == "skip"
    assert "between epochs only" in record.message


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


@pytest.mark.parametrize("end", [40, 731, 5000])
def test_a_schedule_that_ends_long_after_the_run_is_found_by_its_first_steps(judge, end):
    known = {word: SETTINGS[word] for word in ("lr", "min_lr", "warmup")}
    recording = rates([cosine(k, horizon=end) for k in range(14)], **known)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=recording)
    assert record.verdict == "pass", record.message
    assert f"to step {end}" in record.details["form"]


def test_a_schedule_that_no_form_fits_is_not_judged_where_its_end_is_not_known(judge):
    recording = rates([1e-2 / (k + 1) ** 0.5 for k in range(14)], lr=1e-2, warmup=0)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=recording)
    assert record.verdict == "skip"
    assert "the end of the schedule of" in record.message


@pytest.mark.parametrize("first", [0, 2], ids=["before the first batch", "after the first batch"])
def test_a_warm_up_in_micro_batches_is_found_where_the_end_is_not_known(judge, first):
    """The decay of another horizon would fit; the warm-up is declared."""
    known = {word: SETTINGS[word] for word in ("lr", "min_lr", "warmup", "accumulation")}
    recording = rates([cosine(2 * k + first, horizon=90) for k in range(14)], **known)
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=recording)
    assert record.verdict == "fail", record.message


def of_groups(**second):
    """Return a run of two groups that step with one learning rate, of which the second one has these fields."""
    run = rates([cosine(k) for k in range(14)], **SETTINGS)
    steps = [
        replace(step, groups=(replace(step.groups[0], built_lr=1e-2), replace(step.groups[0], **second)))
        for step in run.steps
    ]
    return replace(run, events=tuple(steps))


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"built_lr": 1e-2}, "pass"),
        ({"built_lr": 3e-2}, "fail"),
        ({"built_lr": 1e-2, "options": {"betas_of": 3.0}}, "pass"),
    ],
    ids=["the same", "built with another", "another option"],
)
def test_a_group_that_loses_its_own_learning_rate_is_found(judge, fields, verdict):
    record = judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=of_groups(**fields))
    assert record.verdict == verdict
    if verdict == "fail":
        assert "3 times the learning rate of group 0 of its own" in record.details["hint"]


def test_an_option_of_a_group_is_its_own_learning_rate(judge):
    run = of_groups(options={"base_lr": 3e-2}, built_lr=1e-2)
    steps = [replace(s, groups=(replace(s.groups[0], options={"base_lr": 1e-2}), s.groups[1])) for s in run.steps]
    made = replace(run, events=tuple(steps))
    assert judge("training::lr-at-each-step,rehearsal=past-horizon", past_horizon=made).verdict == "fail"


def test_a_schedule_that_ends_with_the_plain_run_ends_with_the_others(judge):
    """Its length counts micro-batches: right without accumulation, too long with it."""

    def to(end):
        return lambda k: 5.5e-3 + 4.5e-3 * math.cos(math.pi * min(k / end, 1))

    known = {"lr": 1e-2, "min_lr": 1e-3, "warmup": 0}
    plain = rates([to(12)(k) for k in range(12)], steps=12, **known)
    check = "training::lr-at-each-step,rehearsal=accumulate"
    right = rates([to(5)(k) for k in range(5)], steps=5, accumulation=3, **known)
    assert judge(check, plain=plain, accumulate=right).verdict == "pass"
    wrong = rates([to(15)(k) for k in range(5)], steps=5, accumulation=3, **known)
    assert judge(check, plain=plain, accumulate=wrong).verdict == "fail"
