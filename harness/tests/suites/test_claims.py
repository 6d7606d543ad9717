"""A claim: which finding a measurement gives, and which mistakes of a ledger are errors with file and line."""

import dataclasses
import json
import math

import pytest

from harness.core.errors import MissingResource, SuiteError
from harness.judging.run_check import run
from harness.measures.all_measures import measures
from harness.subjects.adapters import adapt
from harness.suites.check import Check
from harness.suites.claim import AS_THE_RUN_FINDS, NOT_MEASURABLE, Claim, find
from harness.suites.expectations import expectation_error, judge
from harness.suites.measure_registry import Reading
from harness.suites.suite_file import read_suite

LOSS = Claim(
    lesson="building",
    figure="10.82",
    says="The first loss is 10.82.",
    derived="ln V + s²/2 = 10.978",
    finding="holds with a correction",
    claimed={"close_to": {"value": 10.82, "abs": 0.05}},
    corrected={"close_to": {"value": 10.978, "abs": 0.08}},
    elsewhere={
        "setting": "another start",
        "parameters": {"recipe": "kaiming"},
        "expect": {"close_to": {"value": 10.82, "abs": 0.05}},
    },
)


def finding(claim, here, there=math.nan):
    """Return the finding when the measure gives `here`, and `there` for the other setting."""
    return find(claim, {}, lambda parameters: Reading(there if "recipe" in parameters else here, "nats"))


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        (10.83, math.nan, "holds"),
        (10.99, math.nan, "holds with a correction"),
        (9.0, 10.83, "holds for another setting"),
        (9.0, 9.0, "does not hold"),
        (math.nan, math.nan, "does not hold"),
    ],
)
def test_the_first_expectation_that_is_met_is_the_finding(here, there, found):
    assert finding(LOSS, here, there).value == found


def test_what_was_measured_is_kept_for_each_setting():
    readings = finding(LOSS, 9.0, 10.83).details["readings"]
    assert [(row["setting"], row["value"], row["unit"]) for row in readings] == [
        ("", 9.0, "nats"),
        ("another start", 10.83, "nats"),
    ]


def test_another_setting_is_measured_only_if_the_claim_does_not_hold_in_its_own():
    asked = []

    def read(parameters):
        asked.append(dict(parameters))
        return Reading(10.99)

    find(LOSS, {"size": "124M"}, read)
    assert asked == [{"size": "124M"}]


def test_a_claim_about_one_place_is_compared_there_and_keeps_all_places():
    claim = dataclasses.replace(LOSS, at="block 11", elsewhere={}, claimed={"at_most": 1.0}, corrected={})
    reading = find(claim, {}, lambda _: Reading({"block 0": 5.0, "block 11": 0.5}, "std"))
    assert reading.value == "holds"
    assert reading.details["readings"][0]["value"] == 0.5
    assert reading.details["readings"][0]["places"] == {"block 0": 5.0, "block 11": 0.5}


def test_a_place_that_the_reading_does_not_have_is_an_error_with_the_nearest_one():
    with pytest.raises(SuiteError, match="'block 12' of a reading; did you mean 'block 11'"):
        find(dataclasses.replace(LOSS, at="block 12"), {}, lambda _: Reading({"block 11": 0.5}))


def test_a_missing_resource_is_not_a_finding():
    def read(parameters):
        raise MissingResource("`make lessons` has not run")

    with pytest.raises(MissingResource):
        find(LOSS, {}, read)


def test_a_claim_that_depends_on_the_run_accepts_every_finding_and_no_other_word():
    expected = dataclasses.replace(LOSS, finding=AS_THE_RUN_FINDS).expected
    assert judge(Reading("does not hold"), expected).passed
    assert not judge(Reading("holds, perhaps"), expected).passed
    assert judge(Reading("holds with a correction"), LOSS.expected).passed
    assert not judge(Reading("holds"), LOSS.expected).passed


def test_one_of_expects_a_list_and_tells_true_from_one():
    assert judge(Reading(1), {"one_of": [1, 2]}).passed
    assert not judge(Reading(True), {"one_of": [1, 2]}).passed
    assert "expected a list" in expectation_error({"one_of": []})


LEDGER = """\
[suite]
title = "Claims"
about = "One."

[[claim]]
name = "count"
lesson = "building"
figure = "96,576"
says = "It has 96,576 parameters."
derived = "V·C + ..."
measure = "parameter_count"
parameters = { size = "debug" }
claimed = { equals = 96_576 }
corrected = { equals = 96_577 }
elsewhere = { setting = "an untied head", parameters = { tied = false }, expect = { equals = 96_576 } }
finding = "holds"
why = "because"
source = "here"
"""


def read(tmp_path, text):
    path = tmp_path / "ledger.toml"
    path.write_text(text)
    return read_suite(path, measures()).checks


def test_a_claim_is_read_as_the_check_that_tests_it(tmp_path):
    (check,) = read(tmp_path, LEDGER)
    assert (check.suite, check.id, check.measure, check.line) == ("ledger", "count", "parameter_count", 5)
    assert check.expected == {"equals": "holds"}
    assert check.claim.figure == "96,576"


def test_a_file_may_have_checks_and_claims(tmp_path):
    check = """
[[check]]
name = "count-again"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_576 }
why = "because"
source = "here"
"""
    assert [(c.name, c.line) for c in read(tmp_path, LEDGER + check)] == [("count-again", 20), ("count", 5)]
    with pytest.raises(SuiteError, match="a second check 'count'"):
        read(tmp_path, LEDGER + check.replace("count-again", "count"))


def test_a_check_survives_the_way_to_an_isolated_subject(tmp_path):
    (check,) = read(tmp_path, LEDGER)
    assert Check.from_fields(json.loads(json.dumps(dataclasses.asdict(check)))) == check


def test_a_ledger_that_says_otherwise_than_the_measurement_is_red_and_a_claim_that_does_not_hold_is_not(tmp_path):
    subject = adapt("gpt:GPT", own=False)
    wrong = LEDGER.replace('finding = "holds"', 'finding = "does not hold"')
    record = run(read(tmp_path, wrong)[0], subject)
    assert (record.verdict, record.message) == ("fail", "found holds; expected does not hold")
    assert "claimed 96,576" in record.details["hint"]
    right = wrong.replace("equals = 96_576", "equals = 1").replace("equals = 96_577", "equals = 2")
    assert run(read(tmp_path, right)[0], subject).verdict == "pass"


def test_the_row_of_a_claim_has_its_words_and_what_was_measured(tmp_path):
    row = run(read(tmp_path, LEDGER)[0], adapt("gpt:GPT", own=False)).as_row()
    assert row["value"] == "holds"
    assert row["claim"]["says"] == "It has 96,576 parameters."
    assert row["claim"]["expected_text"] == {"claimed": "96,576", "corrected": "96,577", "elsewhere": "96,576"}
    assert row["details"]["readings"][0]["value"] == 96_576


UNMEASURED = """\
[suite]
title = "Claims"
about = "One."

[[claim]]
name = "exponent"
lesson = "scaling"
figure = "0.05"
says = "The loss falls with compute."
derived = "no closed form"
finding = "not measurable here"
missing = "a grid of runs"
why = "because"
source = "here"
"""


def test_a_claim_that_cannot_be_measured_is_a_skip_that_names_what_is_missing(tmp_path):
    record = run(read(tmp_path, UNMEASURED)[0], adapt("gpt:GPT", own=False))
    assert (record.verdict, record.message) == ("skip", "a grid of runs")
    assert record.as_row()["claim"]["finding"] == NOT_MEASURABLE


# ruff: noqa: E501 - one line a mistake
MISTAKES = {
    "an unknown key": (LEDGER, "figure", "figur", "ledger.toml:8: unknown key 'figur' of a claim; did you mean 'figure'?"),
    "a missing sentence": (LEDGER, 'says = "It has 96,576 parameters."', "", "ledger.toml:5: a claim needs a says, as a string"),
    "an unknown lesson": (LEDGER, '"building"', '"buildings"', "ledger.toml:7: unknown lesson 'buildings'; did you mean 'building'?"),
    "an unknown finding": (LEDGER, 'finding = "holds"', 'finding = "hold"', "ledger.toml:16: unknown finding 'hold'; did you mean 'holds'?"),
    "an unknown measure": (LEDGER, '"parameter_count"', '"parameters_count"', "ledger.toml:11: unknown measure 'parameters_count'; did you mean"),
    "an unknown parameter": (LEDGER, 'size = "debug"', 'sise = "debug"', "ledger.toml:12: unknown parameter 'sise' of parameter_count; did you mean 'size'?"),
    "an unknown parameter elsewhere": (LEDGER, "tied = false", "tide = false", "ledger.toml:15: unknown parameter 'tide' of parameter_count"),
    "no claimed figure": (LEDGER, "claimed = { equals = 96_576 }", "", "ledger.toml:5: claimed: expected exactly one of"),
    "two claimed figures": (LEDGER, "claimed = { equals = 96_576 }", "claimed = { equals = 1, at_most = 2 }", "ledger.toml:13: claimed: expected exactly one of"),
    "a correction without a figure": (LEDGER, 'corrected = { equals = 96_577 }\nelsewhere = { setting = "an untied head", parameters = { tied = false }, expect = { equals = 96_576 } }\nfinding = "holds"', 'finding = "holds with a correction"', "ledger.toml:14: the finding 'holds with a correction' needs the key 'corrected'"),
    "a setting that does not differ": (LEDGER, "parameters = { tied = false }, ", "", "ledger.toml:15: elsewhere: expected parameters or at"),
    "a setting's parameters as a number": (LEDGER, "parameters = { tied = false }", "parameters = 3", "ledger.toml:15: elsewhere: expected a table for parameters, and a string for at"),
    "a setting's place as a number": (LEDGER, "parameters = { tied = false }", "at = 3", "ledger.toml:15: elsewhere: expected a table for parameters, and a string for at"),
    "a setting without words": (LEDGER, 'setting = "an untied head", ', "", "ledger.toml:15: elsewhere: expected { setting = WORDS"),
    "a measured claim that leaves its finding to the run": (LEDGER, 'finding = "holds"', 'finding = "as the run finds"', "ledger.toml:16: 'as the run finds' is for claims by lessons, sweep, bench, pretrained"),
    "a measure of what cannot be measured": (UNMEASURED, "missing =", 'measure = "parameter_count"\nmissing =', "ledger.toml:12: a claim that is not measurable here has no 'measure'"),
    "nothing that is missing": (UNMEASURED, 'missing = "a grid of runs"', "", "ledger.toml:11: 'not measurable here' and the key 'missing'"),
    "single brackets": (LEDGER, "[[claim]]", "[claim]", "ledger.toml:5: expected [[claim]], in double brackets, once for each claim"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_ledger_is_an_error_with_file_and_line(tmp_path, mistake):
    text, before, after, message = MISTAKES[mistake]
    assert before in text
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, text.replace(before, after, 1))
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)
