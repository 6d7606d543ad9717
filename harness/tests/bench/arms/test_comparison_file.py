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
        *("attention", "batching", "compile", "experts", "generation", "parallel", "peers", "precision"),
        *("speculation", "startup", "training"),
    }
    for one in declared:
        assert one.arms[0] == one.control
        assert all(isinstance(arm_specs()[arm], ArmSpec) for arm in one.arms)
        assert one.work in work_kinds()


HEAD = '[suite]\ntitle = "t"\nabout = "a"\n'
GOOD = 'name = "n"\nwork = "forward"\narms = ["fp32"]\naxis = "tokens"\npoints = [8]\nwhy = "w"\n'


@pytest.mark.parametrize(
    ("line", "becomes", "number", "message"),
    [
        ('work = "forward"', 'work = "foward"', 7, "unknown work 'foward'; did you mean 'forward'"),
        ('["fp32"]', '["fp23"]', 8, "unknown arm 'fp23'; did you mean 'fp32'"),
        ('["fp32"]', '["fp32", [[]]]', 8, "unknown arm '[[]]'; known: "),
        ('["fp32"]', '["fp32", "fp32"]', 8, "arms: expected each once"),
        ('arms = ["fp32"]', "arms = []", 8, "arms: expected a list"),
        ('axis = "tokens"', 'axis = "token"', 9, "unknown parameter of forward 'token'; did you mean 'tokens'"),
        ('axis = "tokens"', "axis = {}", 5, "unknown parameter of forward '{}'"),
        ("points = [8]", "points = []", 10, "expected counts along tokens"),
        ("points = [8]", "points = 3", 10, "points: expected a list of counts of 1 or more, found 3"),
        ("points = [8]", "points = [true]", 10, "points: expected a list of counts of 1 or more, found [True]"),
        ("points = [8]", 'points = ["8"]', 10, "points: expected a list of counts of 1 or more"),
        ("points = [8]", f"points = [{'9' * 5000}]", 10, "a number has more than 4300 digits"),
        ('why = "w"', 'why = ""', 11, "needs a why"),
        ('why = "w"', "why = 'w'\nexpect = [3]", 12, "expect: expected a list of tables, found 3 in it"),
        ('why = "w"', "why = 'w'\nexpect = 3", 12, "expect: expected a list, found 3"),
        ('why = "w"', "why = 'w'\nweight = inf", 12, "weight: expected a positive number, found inf"),
        ('why = "w"', "why = 'w'\nparameters = { batch = -5 }", 12, "parameter batch: expected 1 or more, found -5"),
        ('why = "w"', "why = w", 11, "not TOML"),
        ('why = "w"', f"why = {'[' * 3000}", 11, "nested too deep"),
        ('name = "n"', 'name = "n"\nwieght = 2', 7, "unknown key 'wieght'; did you mean 'weight'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_an_error_with_its_line(tmp_path, line, becomes, number, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}\n[[comparison]]\n{GOOD.replace(line, becomes)}")
    with pytest.raises(SuiteError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}:{number}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_utf8_is_an_error_with_its_line_and_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "mine.toml"
    text = f"{HEAD}\n[[comparison]]\n{GOOD}".encode()
    path.write_bytes(b"\xef\xbb\xbf" + text)
    assert len(read_file(path)) == 1
    path.write_bytes(text + b"\xff")
    with pytest.raises(SuiteError, match=r"mine\.toml:12: not UTF-8"):
        read_file(path)


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
