"""An invalid suite file is an error with file, line and the nearest valid word."""

import pytest

from harness.core.errors import SuiteError
from harness.measures.all_measures import measures
from harness.suites.suite_file import read_suite

GOOD = """\
[suite]
title = "Structure"
about = "Counts."

[[check]]
name = "count"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 1 }
why = "because"
source = "here"
"""


def read(tmp_path, text):
    path = tmp_path / "small.toml"
    path.write_text(text)
    return read_suite(path, measures())


def refused(tmp_path, text):
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, text)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_a_check_has_its_suite_its_parameters_and_its_line(tmp_path):
    (check,) = read(tmp_path, GOOD).checks
    assert (check.suite, check.id, check.line) == ("small", "count", 5)
    assert check.parameters == {"size": "debug"}


def test_a_matrix_gives_one_check_for_each_cell_named_by_what_varies(tmp_path):
    text = GOOD.replace("parameters", "matrix = { tied = [true, false] }\nparameters")
    assert [check.id for check in read(tmp_path, text).checks] == ["count,tied=true", "count,tied=false"]


def test_a_case_has_its_own_expectation(tmp_path):
    text = GOOD.replace(
        "expect = { equals = 1 }",
        "cases = [{ parameters = { tied = true }, expect = { equals = 1 } },\n"
        " { parameters = { tied = false }, expect = { equals = 2 } }]",
    )
    assert [check.expected for check in read(tmp_path, text).checks] == [{"equals": 1}, {"equals": 2}]


def test_no_name_of_a_shipped_check_has_a_bracket(shipped):
    """pytest takes the text before `[` as the name of the test, and then reruns everything under --lf."""
    assert not [name for name in shipped if "[" in name]


# ruff: noqa: E501 - one line a mistake
MISTAKES = {
    "an unknown measure": ("parameter_count", "parameter_cuont", "small.toml:7: unknown measure 'parameter_cuont'; did you mean 'parameter_count'?"),
    "an unknown parameter": ("size =", "sise =", "small.toml:8: unknown parameter 'sise' of parameter_count; did you mean 'size'?"),
    "a parameter of another type": ('"debug"', "3", "small.toml:8: parameter size of parameter_count: expected str, found 3"),
    "an unknown key": ("why", "whi", "small.toml:10: unknown key 'whi'; did you mean 'why'?"),
    "an unknown expectation": ("equals", "equal", "small.toml:9: count: unknown expectation 'equal'; did you mean 'equals'?"),
    "two expectations": ("equals = 1", "equals = 1, at_most = 2", "small.toml:9: count: expected exactly one of"),
    "no expectation": ("expect = { equals = 1 }", "", "small.toml:5: count: expected exactly one of"),
    "a tolerance that is no number": ("equals = 1", 'at_most = "1"', "small.toml:9: count: at_most: expected a finite number, found '1'"),
    "an infinite tolerance": ("equals = 1", "at_most = inf", "small.toml:9: count: at_most: expected a finite number, found inf"),
    "a tolerance that takes anything": ("equals = 1", 'noise = "different"', "small.toml:9: count: noise: expected 'equal' or 'rounding'"),
    "a missing why": ('why = "because"', "", "small.toml:5: a check needs a why, as a string"),
    "a missing parameter": ('size = "debug"', "", "small.toml:8: parameter_count needs the parameter 'size'"),
    "no suite table": ("[suite]", "[suit]", "small.toml:1: expected a [suite] table"),
    "an unknown size": ('"debug"', '"125M"', "small.toml:8: unknown size '125M'; did you mean '124M'?"),
    "an expectation that is no table": ("{ equals = 1 }", '"rounding"', "small.toml:9: count: expect: expected a table"),
    "an unknown dtype": ("equals = 1", "at_most = { float33 = 1.0 }", "small.toml:9: count: at_most: expected a value for each of the dtypes"),
    "a bound for no dtype": ("equals = 1", "at_most = {}", "small.toml:9: count: at_most: expected a value for each"),
    "single brackets": ("[[check]]", "[check]", "small.toml:5: expected [[check]], in double brackets"),
    "a case that is no table": ("expect = { equals = 1 }", "cases = [1]", "small.toml:9: a case is a table with parameters and expect; found 1"),
    "a count of nothing": ('measure = "parameter_count"\nparameters = { size = "debug" }', 'measure = "rows_mixing"\nparameters = { size = "debug", length = 0 }', "small.toml:8: parameter length of rows_mixing: expected 1 or more, in 64 bits, found 0"),
    "a check that is made less often than never": ('measure = "parameter_count"\nparameters = { size = "debug" }', 'measure = "answers_differing"\nparameters = { size = "debug", times = -5 }', "small.toml:8: parameter times of answers_differing: expected 1 or more, in 64 bits, found -5"),
    "a rate that is no number": ('measure = "parameter_count"\nparameters = { size = "debug" }', 'measure = "dropout_sites"\nparameters = { size = "debug", rate = nan }', "small.toml:8: parameter rate of dropout_sites: expected a finite number, found nan"),
    "an unknown work": ('measure = "parameter_count"\nparameters = { size = "debug" }', 'measure = "arm_error"\nparameters = { size = "debug", arm = "bf16", control = "fp32", work = "foward" }', "small.toml:8: unknown work 'foward'; did you mean 'forward'?"),
    "an unknown arm": ('measure = "parameter_count"\nparameters = { size = "debug" }', 'measure = "arm_error"\nparameters = { size = "debug", arm = "bf61", control = "fp32", work = "forward" }', "small.toml:8: unknown arm 'bf61'; did you mean 'bf16'?"),
    "broken TOML": ("title = ", "title ", "small.toml:2: not TOML"),
    "a name with capitals": ('"count"', '"Count it"', "small.toml:6: name 'Count it': expected lower-case words joined by '-'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_with_file_and_line(tmp_path, mistake):
    before, after, message = MISTAKES[mistake]
    assert before in GOOD
    assert refused(tmp_path, GOOD.replace(before, after)).startswith(message)


def test_two_checks_of_one_name_are_refused(tmp_path):
    assert "a second check 'count'; the first is in line 5" in refused(tmp_path, GOOD + GOOD[GOOD.index("[[check]]") :])


def test_a_suite_of_no_checks_is_refused(tmp_path):
    assert "a suite without checks" in refused(tmp_path, GOOD[: GOOD.index("[[check]]")])


def test_a_byte_order_mark_is_accepted_and_other_bytes_are_an_error(tmp_path):
    path = tmp_path / "small.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_suite(path, measures()).name == "small"
    path.write_bytes(GOOD.encode() + b"\xff")
    with pytest.raises(SuiteError, match="not UTF-8"):
        read_suite(path, measures())


def test_a_suite_with_the_name_of_a_pytest_marker_is_refused(tmp_path):
    """A suite called `skip` once skipped itself, without a record."""
    path = tmp_path / "skip.toml"
    path.write_text(GOOD)
    with pytest.raises(SuiteError, match="rename the file"):
        read_suite(path, measures())
