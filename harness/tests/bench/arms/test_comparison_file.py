"""Comparison files: those of the project are read, mistakes are errors with their line, points fit the model."""

from pathlib import Path

import pytest

from harness.bench.arms import ArmSpec, arm_specs, read_comparisons, work_kinds
from harness.bench.arms.comparison_file import read_file
from harness.core.errors import SuiteError
from harness.core.sizes import SIZES

ROOT = Path(__file__).parents[4]
DEBUG = SIZES["debug"]


def test_every_comparison_of_the_project_is_read_and_has_arms_that_exist():
    declared = read_comparisons(ROOT / "benchmarks")
    assert {d.suite for d in declared} == {
        *("attention", "compile", "generation", "peers", "precision", "speculation", "startup", "training"),
    }
    for one in declared:
        assert one.arms[0] == one.control
        assert all(isinstance(arm_specs()[arm], ArmSpec) for arm in one.arms)
        assert one.work in work_kinds()


HEAD = '[suite]\ntitle = "t"\nabout = "a"\n'
GOOD = 'name = "n"\nwork = "forward"\narms = ["fp32"]\naxis = "tokens"\npoints = [8]\nwhy = "w"\n'


@pytest.mark.parametrize(
    ("line", "becomes", "message"),
    [
        ('work = "forward"', 'work = "foward"', "unknown work 'foward'; did you mean 'forward'"),
        ('["fp32"]', '["fp23"]', "unknown arm 'fp23'; did you mean 'fp32'"),
        ('axis = "tokens"', 'axis = "token"', "unknown parameter of forward 'token'; did you mean 'tokens'"),
        ("points = [8]", "points = []", "expected counts along tokens"),
        ("points = [8]", 'points = ["8"]', "expected counts along tokens"),
        ('why = "w"', 'why = ""', "needs a why"),
        ('name = "n"', 'name = "n"\nwieght = 2', "unknown key 'wieght'; did you mean 'weight'"),
        ('arms = ["fp32"]', "arms = []", "arms: expected a list"),
    ],
)
def test_a_mistake_is_an_error_with_its_line(tmp_path, line, becomes, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}\n[[comparison]]\n{GOOD.replace(line, becomes)}")
    with pytest.raises(SuiteError, match=r"mine\.toml:5: ") as caught:
        read_file(path)
    assert message in str(caught.value)


def test_a_comparison_in_single_brackets_is_an_error_with_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}\n[comparison]\n{GOOD}")
    with pytest.raises(SuiteError, match=r"mine\.toml:1: .*\[\[comparison\]\]"):
        read_file(path)


def test_no_points_with_quick_leave_a_comparison_out():
    """An empty list became the whole context once: the longest point of all, with --quick."""
    declared = {d.label: d for d in read_comparisons(ROOT / "benchmarks")}
    assert declared["training backward"].points_for(DEBUG, quick=True) == ()
    assert declared["peers generate"].points_for(DEBUG, quick=True) == ()


def test_a_point_beyond_the_context_becomes_the_longest_that_fits():
    declared = {d.label: d for d in read_comparisons(ROOT / "benchmarks")}
    assert declared["peers forward"].points_for(DEBUG, quick=False) == (DEBUG.context,)
    assert declared["attention forward"].points_for(DEBUG, quick=False)[-1] == 4096, "attention alone has no context"
    assert max(declared["generation decode"].points_for(DEBUG, quick=False)) <= DEBUG.context - 8
