"""lessons.toml: what is in it, and what a mistake in it says."""

import pytest

from harness.core.errors import HarnessError
from harness.lessons.lesson_file import chosen, flags, read_full_size, read_lessons

HEAD = "[settings]\nsteps = 10\nseed_of = 1\n"
HEAD += '[full_size]\nname = "f"\ntitle = ""\nclaim = ""\nabout = ""\nseconds = 1\narm = []\n'
LESSON = (
    '[[lesson]]\nname = "a"\ntitle = ""\nclaim = ""\nabout = ""\nseconds = 1\nsettings = { lr = 1.0, steps = 20 }\n'
)


def write(folder, text):
    path = folder / "lessons.toml"
    path.write_text(text)
    return path


def test_the_shipped_lessons_have_the_arms_and_seeds_that_the_lessons_claim():
    lessons = {lesson.name: lesson for lesson in read_lessons()}
    assert set(lessons) == {"schedule", "loss-and-text", "clipping", "masters", "experts"}
    seeds = {}
    for run in lessons["schedule"].runs:
        seeds.setdefault(run.arm, []).append(run.seed)
    assert [seeds[arm] for arm in ("cosine", "constant-6e-4", "constant-1e-5")] == [[0, 1, 2]] * 3
    rates = {run.arm: run.settings["lr"] for run in lessons["schedule"].runs}
    assert (rates["cosine"], rates["constant-6e-4"], rates["constant-1e-5"]) == (6e-4, 6e-4, 1e-5)
    settings = [{key: v for key, v in run.settings.items() if key != "clip"} for run in lessons["clipping"].runs]
    assert settings[0] == settings[1]  # clipping is the only difference
    weights = {run.arm: run.settings.get("balance_weight") for run in lessons["experts"].runs}
    assert weights == {"balanced": 0.01, "unbalanced": 0.0, "dense": None}
    assert {run.settings["precision"] for run in lessons["masters"].runs} == {
        "float32", "bfloat16", "pure-bfloat16"
    }  # fmt: skip


def test_the_shipped_runs_take_less_than_half_an_hour_on_two_cores():
    runs = chosen(read_lessons())
    assert max(max(run.seconds for run in runs), sum(run.seconds for run in runs) / 2) < 30 * 60


def test_an_arm_has_its_own_settings_over_its_lesson_s_and_those_over_the_common_ones(tmp_path):
    arm = '[[lesson.arm]]\nname = "x"\nseeds = [3, 4]\nsettings = { lr = 2.0 }\n'
    (lesson,) = read_lessons(write(tmp_path, HEAD + LESSON + arm))
    assert [run.name for run in lesson.runs] == ["a-x-seed-3", "a-x-seed-4"]
    assert lesson.runs[0].settings == {"steps": 20, "seed_of": 1, "lr": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + LESSON + '[[lesson.arm]]\nname = "x"\nseed = [1]\n', ":20: unknown key 'seed' of arm; did you mean"),
        (HEAD + LESSON + "arm = 3\n", r":18: 'arm' of lesson has a value of type int"),
        (HEAD + LESSON, ":12: the lesson lacks the key 'arm'"),
        (HEAD + LESSON + '[[lesson.arm]]\nname = "x"\nseeds = [1, 1]\n', "two runs are called a-x-seed-1"),
        ("\nlesson = =\n", ":2: not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(HarnessError, match=message):
        read_lessons(write(tmp_path, text))


def test_runs_are_chosen_by_lesson_and_by_arm():
    lessons = read_lessons()
    assert {run.lesson for run in chosen(lessons, ["clipping", "masters"])} == {"clipping", "masters"}
    names = {run.name for run in chosen(lessons, ["masters"], ["pure-*"])}
    assert names == {f"masters-pure-bfloat16-seed-{seed}" for seed in (0, 1, 2)}
    with pytest.raises(HarnessError, match="no lesson is called 'cliping'; did you mean 'clipping'"):
        chosen(lessons, ["cliping"])
    with pytest.raises(HarnessError, match="--only cosin: these lessons have no such arm; did you mean 'cosine'"):
        chosen(lessons, ["schedule"], ["cosin"])


def test_a_run_at_full_size_is_called_by_its_preset():
    runs = read_full_size("gpt2-124m").runs
    assert [run.name for run in runs][:2] == ["gpt2-124m-cosine-seed-0", "gpt2-124m-constant-6e-4-seed-0"]
    assert list(flags(runs[1].settings)) == [
        "--preset", "gpt2-124m", "--schedule", "constant", "--warmup", "0"
    ]  # fmt: skip


def test_settings_become_flags():
    assert list(flags({"n_layer": 3, "lr": 1e-5, "bias": False, "compile": True})) == [
        "--n-layer", "3", "--lr", "1e-05", "--no-bias", "--compile"
    ]  # fmt: skip
