"""A log of the trainer becomes the row of a run."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from harness.lessons.run_row import EXPLOSION, MOST_POINTS, exploded_at, run_row
from harness.lessons.training_log import NOT_FINITE, read_training_log
from harness.tests.lessons.training_logs import RUN, header, step, write_log

FALLING = [4.2 - 0.05 * number for number in range(30)]


def row_of(path):
    return run_row(RUN, read_training_log(path), seconds=12.5, made={"git_commit": "abc"})


def test_a_row_has_the_losses_the_curves_and_what_the_trainer_said_of_itself(tmp_path):
    validation = [{"event": "validation", "step": s, "loss": loss} for s, loss in ((0, 4.2), (15, 3.1), (30, 3.3))]
    row = row_of(write_log(tmp_path, FALLING, events=validation))
    assert (row["name"], row["lesson"], row["arm"], row["seed"]) == ("schedule-cosine-seed-0", "schedule", "cosine", 0)
    assert (row["steps"], row["tokens"], row["ended"], row["seconds"]) == (30, 300, "finished", 12.5)
    assert row["first_loss"] == 4.2
    assert row["last_loss"] == pytest.approx(sum(FALLING[-20:]) / 20)  # not the last step's alone
    assert row["best_validation"] == 3.1
    assert row["curve"][3] == [3, FALLING[3], 1e-3, 0.5]
    assert row["validation"][1] == [15, 3.1]
    assert (row["vocabulary_size"], row["parameters"], row["tokens_per_second"]) == (65, 348_096, 100.0)
    assert row["exploded_at"] is None


def test_a_long_curve_is_thinned_and_keeps_both_ends_and_the_spike(tmp_path):
    path = write_log(tmp_path, [3.0] * 1503)
    lines = path.read_text().splitlines(keepends=True)
    lines[776] = lines[776].replace('"norm": 0.5, "clipped_norm"', '"norm": 12.3, "clipped_norm"')
    path.write_text("".join(lines))
    row = row_of(path)
    for curve in (row["curve"], row["clipping"]):
        steps = [point[0] for point in curve]
        assert len(steps) <= MOST_POINTS
        assert (steps[0], steps[-1]) == (0, 1502)
        assert 775 in steps
        assert max(b - a for a, b in pairwise(steps)) <= 5
    assert [point[1] for point in row["clipping"] if point[0] == 775] == [12.3]


def test_a_sample_has_the_loss_of_the_steps_around_it(tmp_path):
    samples = [{"event": "sample", "step": s, "loss": 9.9, "text": "To be"} for s in (0, 10, 30)]
    row = row_of(write_log(tmp_path, FALLING, events=samples))
    assert [sample["loss"] for sample in row["samples"]] == pytest.approx(
        [FALLING[0], FALLING[10], sum(FALLING[25:]) / 5]
    )


def test_lost_updates_and_clipping_are_kept_where_they_were_measured(tmp_path):
    events = [step(2, 3.0, lost_updates=0.25), step(3, 3.0, norm=12.3, clipped_norm=1.0, clip_cosine=1.0)]
    row = row_of(write_log(tmp_path, [4.0, 3.5], events=events))
    assert row["lost_updates"] == [[2, 0.25]]
    assert row["clipping"][-1] == [3, 12.3, 1.0, 1.0]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (FALLING, None),
        ([4.2, 4.3, 4.1] * 10, None),  # noise
        ([*FALLING, 15.0, *FALLING[::-1][:20]], None),  # one bad batch is a spike
        ([4.2, *[3.0] * 20, *[5.0] * 20], 26),  # a jump for good, at once but for the median
        ([4.2, *[30.0] * 20], 9),  # it never was below its start: the first step with a full window
        ([4.2, 30.0, 20.0, *FALLING[3:]], None),  # two steps are no median
        ([4.2, 30.0, 20.0, 15.0], None),
        ([*[2.0] * 15, *[2.0 + 0.1 * n for n in range(30)]], 30),  # a slow rise above the lowest
        ([*[2.0] * 15, *[2.9] * 30], None),
    ],
)
def test_an_explosion_is_a_lasting_rise_above_the_lowest_loss(tmp_path, losses, expected):
    assert exploded_at(read_training_log(write_log(tmp_path, losses))) == expected
    assert "median loss of the last 10 steps is more than 1 nat above" in EXPLOSION


def test_a_run_whose_loss_is_not_finite_exploded_there(tmp_path):
    message = "step 30: the loss is nan; the first values that are not finite are in h.0"
    log = read_training_log(write_log(tmp_path, FALLING, ending="failed", message=message))
    assert (log.ended, exploded_at(log)) == (NOT_FINITE, 30)
    other = read_training_log(write_log(tmp_path, FALLING, ending="failed", message="the disk is full"))
    assert (other.ended, exploded_at(other)) == ("failed", None)
    null = read_training_log(write_log(tmp_path, [4.2, None, 4.0]))
    assert exploded_at(null) == 1
    assert math.isnan(null.losses[1])


def test_a_log_that_is_being_written_or_is_missing_can_be_read(tmp_path):
    path = write_log(tmp_path, FALLING[:3], ending="")
    with path.open("a") as file:
        file.write('{"event": "step", "step": 3, "lo')
    log = read_training_log(path)
    assert (len(log.steps), log.ended) == (3, "")
    assert read_training_log(tmp_path / "none").steps == ()
    assert run_row(RUN, read_training_log(tmp_path / "none"), seconds=0.0, made={})["first_loss"] is None


def test_an_end_that_a_resumed_run_left_behind_is_no_end(tmp_path):
    path = write_log(tmp_path, FALLING[:3], ending="interrupted")
    with path.open("a") as file:
        file.write('{"event": "resume", "step": 3}\n')
    assert read_training_log(path).ended == ""


def test_steps_that_a_log_has_twice_count_once(tmp_path):
    log = read_training_log(write_log(tmp_path, [4.0, 3.0], events=[step(1, 2.9), header(parameters=1)]))
    assert log.losses == [4.0, 2.9]
    assert log.header["parameters"] == 348_096


def test_the_settings_are_those_that_the_trainer_resolved_and_a_part_of_a_text_has_the_text_s_name(tmp_path):
    path = write_log(tmp_path, [4.0])
    config = {"n_layer": 12, "clip": 9.0, "text": "/somewhere/part.txt"}
    path.write_text(json.dumps(header(config=config)) + "\n" + path.read_text())
    row = run_row(replace(RUN, text_characters=60000), read_training_log(path), seconds=1.0, made={})
    assert row["settings"] == {"steps": 30, "clip": 1.0, "n_layer": 12, "text": "tinyshakespeare"}
    assert row["text_characters"] == 60000
