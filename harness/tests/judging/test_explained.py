"""Failures are explained by a cause if they pass once it is declared, or if GPT-2 with that cause fails them too."""

import dataclasses

import pytest

from harness.judging.explained import SECONDS, explained
from harness.judging.runner import make_runner
from harness.tests.subjects.altered_styles import altered

PARITY = "parity::debug,weights=probe,compare=logits"
FUTURE = "attention::no-future-leak,weights=probe"
NO_MASK = (".masked_fill(self.mask.bool()[:n, :n], -torch.inf)", "")


def explained_of(shipped, spec, names, *faults, seconds=SECONDS, two_processes=False):
    """The names of the checks that fail, and those of them that the faults explain, with the counts by fault."""
    runner = make_runner(spec)
    try:
        failed = [record for name in names if (record := runner.run(shipped[name])).verdict == "fail"]
        rows = [record.as_row() for record in failed]
        causes = [{"fault": fault} for fault in faults]
        found = explained(rows, causes, runner.judge, runner.limits, seconds=seconds, two_processes=two_processes)
    finally:
        runner.close()
    names_of = {row["id"]: f"{row['suite']}::{row['id'].split('::')[1]}" for row in rows}
    return list(names_of.values()), sorted(names_of[each] for each in found.checks), found


def test_a_failure_that_the_cause_computes_away_is_explained_and_another_is_not(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    failing, by_cause, found = explained_of(shipped, spec, [PARITY], "mask-missing")
    assert (failing, by_cause, found.by_finding) == ([PARITY], [PARITY], (1,))
    _, by_another, found = explained_of(shipped, spec, [PARITY], "post-norm")
    assert (by_another, found.by_finding, found.judged) == ([], (0,), 1)


def test_a_check_that_asks_no_oracle_is_explained_if_gpt2_with_the_cause_fails_it_too(shipped, tmp_path):
    """A missing mask shows in the checks of the future, whatever GPT-2 the subject is compared with."""
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    failing, by_cause, found = explained_of(shipped, spec, [FUTURE], "mask-missing")
    assert (failing, by_cause, found.by_finding) == ([FUTURE], [FUTURE], (1,))
    assert explained_of(shipped, spec, [FUTURE], "mlp-relu")[1] == []


def test_a_gpt_without_a_mask_is_expected_to_answer_each_length_by_itself(shipped, tmp_path):
    """The answers to the first tokens are not the first of the answers, as they are of GPT-2."""
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    names = [name for name in shipped if name.startswith("conditions::right-")]
    failing, by_cause, _ = explained_of(shipped, spec, names, "mask-missing")
    assert sorted(failing) == by_cause == sorted(names)
    assert explained_of(shipped, spec, names, "mlp-relu")[1] == []


def test_two_processes_find_what_one_finds(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    names = [PARITY, FUTURE, PARITY.replace("logits", "loss"), PARITY.replace("logits", "blocks")]
    names += ["attention::no-derivative-by-the-future"]
    one, two = (explained_of(shipped, spec, names, "mask-missing", two_processes=both) for both in (False, True))
    assert one == two
    assert len(one[1]) == len(names)


def test_what_there_was_no_time_to_judge_again_is_not_explained(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    _, by_cause, found = explained_of(shipped, spec, [PARITY], "mask-missing", seconds=-1.0)
    assert (by_cause, found.judged) == ([], 0)


def test_what_gpt2_without_the_cause_fails_too_is_not_explained_by_it(shipped, tmp_path):
    """The GPT-2 that stands for the subject has the weights of one seed: it fails what asks for others."""
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    check = dataclasses.replace(shipped[FUTURE], expected={"at_most": -1.0})  # which nothing passes
    failing, by_cause, _ = explained_of({FUTURE: check}, spec, [FUTURE], "mask-missing")
    assert (failing, by_cause) == ([FUTURE], [])


@pytest.mark.parametrize("fault", ["", "no-such-id", "init-uniform"])
def test_a_finding_for_which_no_gpt2_can_be_computed_explains_nothing(shipped, tmp_path, fault):
    """An id of the initialisation, declared, excuses its whole suite: that is no explanation of any failure."""
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    _, by_cause, found = explained_of(shipped, spec, [PARITY, "initialisation::weight-std,size=debug"], fault)
    assert (by_cause, found.judged) == ([], 0)


def test_a_larger_size_and_a_claim_are_not_judged_again_and_so_not_explained(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    runner = make_runner(spec)
    row = runner.run(shipped[PARITY]).as_row()
    rows = [{**row, "parameters": {**row["parameters"], "size": "124M"}}, {**row, "claim": {"claimed": 1}}]
    assert explained(rows, [{"fault": "mask-missing"}], runner.judge, runner.limits).judged == 0
