"""The settings of a training program, from the options of its parser: what each name means beside the others."""

from harness.training.rehearsals import REHEARSALS
from harness.training.settings import read_settings


def test_a_decay_that_is_shorter_than_half_of_the_steps_is_the_final_one():
    rows = [
        {"flags": [flag], "help": False, "takes_value": True, "negated": None, "metavar": None, "choices": None}
        | {"default": default}
        for flag, default in (("--steps", 0), ("--total_steps", 300), ("--decay_steps", 60))
    ]
    settings = read_settings(rows, {}, ())
    arguments = settings.assign({"steps": 12, "horizon": 12, "cooldown": 4}).arguments
    assert arguments == ("--steps=12", "--total_steps=12", "--decay_steps=4")
    rows[-1]["default"] = 300
    assert "--decay_steps=12" in read_settings(rows, {}, ()).assign({"steps": 12, "horizon": 12}).arguments


def test_a_warm_up_below_one_step_and_a_minimum_above_the_peak_are_shares():
    rows = [
        {"flags": [flag], "help": False, "takes_value": True, "negated": None, "metavar": None, "choices": None}
        | {"default": default}
        for flag, default in (("--warmup", 0.08), ("--lr", 1e-3), ("--final_lr", 0.02))
    ]
    values = {"warmup": 3, "warmup_share": 0.25, "lr": 1e-3, "min_lr": 1e-4}
    assert read_settings(rows, {}, ()).assign(values).arguments == ("--warmup=0.25", "--lr=0.001")
    rows[0]["default"], rows[2]["default"] = 100, 1e-5
    assert "--warmup=3" in read_settings(rows, {}, ()).assign(values).arguments
    assert "--final_lr=0.0001" in read_settings(rows, {}, ()).assign(values).arguments


def test_the_tokens_of_training_are_a_part_of_the_text_only_beside_those_of_validation():
    rows = [
        {"flags": [flag], "help": False, "takes_value": True, "negated": None, "metavar": None, "choices": None}
        | {"default": 1000}
        for flag in ("--train_tokens", "--val_tokens")
    ]
    values = {"text_length": 900, "validation_length": 100}
    assert read_settings(rows, {}, ()).assign(values).arguments == ("--train_tokens=900", "--val_tokens=100")
    assert read_settings(rows[:1], {}, ()).assign(values).arguments == ()


def test_every_setting_of_the_rehearsals_is_a_known_word():
    from harness.training.setting_words import WORDS

    used = {word for rehearsal in REHEARSALS.values() for word in (*rehearsal.values, *rehearsal.needs)}
    assert used <= set(WORDS)
    names = [name for word in WORDS.values() for name in word.names]
    assert len(names) == len(set(names)), "a name that is two words"
