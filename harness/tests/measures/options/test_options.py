"""Options that do what their names say pass; those that do something else fail, and the message says what."""

import pytest

from harness.faults.catalogue import read_catalogue
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

CATALOGUE = {fault.id: fault for fault in (*read_catalogue().faults, *read_catalogue().controls)}
LOSS = "expected at most 1e-09"
# A fault, the check that must kill it, and what its message must say.
KILLED = [
    ("positions-not-followed", "positions-are-followed,case=shifted", "row 0 from position 3"),
    ("last-logits-of-one-position", "last-logits-are-the-last", "logits_to_keep=3: nan"),
    ("use-cache-shifts-positions", "cache-flag-changes-no-logits", "use_cache=True"),
    ("reduction-sum-is-mean", "loss-reduction-by-definition", "reduction=sum"),
    ("ignored-targets-in-the-mean", "ignored-targets-by-definition", "ignore_index=7"),
    ("label-smoothing-added", "label-smoothing-by-definition", "label_smoothing=0.1"),
    ("stop-token-ends-all-rows", "stop-token-ends-its-row", "the other rows of the batch: ends after"),
    ("finished-rows-go-on", "stop-token-ends-its-row", "the row of a batch that ends: goes on after its stop token"),
    ("stop-token-of-the-prompt", "stop-token-ends-its-row", "a stop token in the prompt"),
    ("pad-token-not-used", "stop-token-ends-its-row", "pad_token_id=3: is filled with"),
    ("sequences-are-one", "several-sequences-are-independent", "independent draws: 6 pairs of sequences are the same"),
    ("repetition-penalty-divides-negatives", "penalty-by-definition,penalty=repetition", "step 0"),
    ("frequency-penalty-counts-once", "penalty-by-definition,penalty=frequency", "step 0"),
    ("presence-penalty-counts-each", "penalty-by-definition,penalty=presence", "step 0"),
    ("min-p-not-scaled", "min-p-by-definition", "step 0"),
    ("top-k-zero-is-greedy", "top-k-of-zero-filters-nothing", "step 0"),
    ("sampling-off-draws", "sampling-off-is-greedy", "temperature 3"),
]


@pytest.fixture
def options(shipped):
    return {name.removeprefix("options::"): check for name, check in shipped.items() if name.startswith("options::")}


def with_change(tmp_path, name):
    path = tmp_path / f"{name.replace('-', '_')}.py"
    path.write_text(CATALOGUE[name].source_text(), encoding="utf-8")
    return adapt(f"{path}:GPT")


@pytest.mark.parametrize(("fault", "check", "said"), KILLED, ids=[row[0] for row in KILLED])
def test_a_fault_is_killed_by_its_check_and_the_message_says_what_is_wrong(tmp_path, options, fault, check, said):
    record = run(options[check], with_change(tmp_path, fault))
    assert record.verdict == "fail", record.message
    assert said in record.message


@pytest.mark.parametrize(("control", "skipped"), [("options-of-forward", 7), ("options-of-generate", 7)])
def test_options_that_do_what_they_say_pass(tmp_path, options, control, skipped):
    subject = with_change(tmp_path, control)
    records = [run(check, subject) for check in options.values()]
    assert not [f"{record.check.id}: {record.message}" for record in records if record.verdict in ("fail", "error")]
    assert sum(record.verdict == "skip" for record in records) == skipped


RIGHT = "harness.tests.measures.options.right_conventions:"
STOP, PENALTY = "stop-token-ends-its-row", "penalty-by-definition,penalty="
# A right GPT, the check that must pass, and what its details must say of the convention.
CONVENTIONS = [
    ("OnePositionsForAllRows", "positions-are-followed,case=shifted", "(25,)"),
    ("LastAlone", "last-logits-are-the-last", ""),
    ("SmoothsOverTheOthers", "label-smoothing-by-definition", "over the other tokens"),
    ("CutsOffTheStopToken", STOP, "is cut off"),
    ("StopsOneRowOnly", STOP, "refused"),
    ("SequencesInTurn", "several-sequences-are-independent", "in turn"),
    ("SequencesOfEachPrompt", "several-sequences-are-independent", "side by side"),
    ("MeanOrNone", "loss-reduction-by-definition", "reduction 'sum'"),
    ("PenalisesWhatIsNew", f"{PENALTY}frequency", "the prompt does not count"),
    ("PenalisesWhatIsNew", f"{PENALTY}presence", "the prompt does not count"),
    ("DrawsByInversion", "min-p-by-definition", "1000 draws"),
]


@pytest.mark.parametrize(("right", "check", "said"), CONVENTIONS, ids=[f"{row[0]}, {row[1]}" for row in CONVENTIONS])
def test_another_convention_passes_and_is_said(options, right, check, said):
    record = run(options[check], adapt(RIGHT + right))
    assert record.verdict == "pass", record.message
    assert said in str(record.details)


def test_filters_that_are_on_by_default_are_no_mistake_of_sampling(shipped):
    """A default top-k of 50 once failed the checks that ask for no filter."""
    record = run(shipped["generation::sampling-distribution,temperature=2.0"], adapt(f"{RIGHT}PenalisesWhatIsNew"))
    assert record.verdict == "pass", record.message


def test_what_no_check_judges_is_named(shipped):
    conditions = shipped["conditions::right-under-every-condition,size=debug,over=shapes and modes"]
    record = run(conditions, adapt(f"{RIGHT}WithWhatNobodyJudges"))
    assert record.verdict == "pass"
    assert record.details["not judged"]["options"] == "forward(router, soft_cap), generate(num_beams)"
    assert "options" not in run(conditions, adapt(f"{RIGHT}StopsOneRowOnly")).details["not judged"]


def test_an_error_for_a_top_k_of_zero_is_a_refusal(tmp_path, options):
    record = run(options["top-k-of-zero-filters-nothing"], with_change(tmp_path, "the-specimen"))
    assert record.verdict == "pass"
    assert "size of tensor" in record.details["refused"]


@pytest.mark.parametrize("right", ["CutsOffTheStopToken", "SequencesOfEachPrompt"])
def test_rows_in_a_list_are_an_answer_of_generate(shipped, right):
    """A list of rows was once taken for a tuple whose first item is the answer."""
    record = run(shipped["generation::answer-lengths"], adapt(RIGHT + right))
    assert record.verdict in ("pass", "skip"), record.message
