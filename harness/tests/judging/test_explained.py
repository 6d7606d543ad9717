"""Failures are explained by a cause if they pass once it is declared, or if GPT-2 with that cause fails them too."""

import pytest

from harness.judging.explained import SECONDS, as_deviations, explained
from harness.judging.runner import make_runner
from harness.tests.subjects.altered_styles import altered

PARITY = "parity::debug,weights=probe,compare=logits"
NO_MASK = (".masked_fill(self.mask.bool()[:n, :n], -torch.inf)", "")


def explained_of(shipped, spec, names, *faults, seconds=SECONDS):
    """The names of the checks that fail, and those of them that the faults explain, with the counts by fault."""
    runner = make_runner(spec)
    try:
        failed = [record for name in names if (record := runner.run(shipped[name])).verdict == "fail"]
        rows = [record.as_row() for record in failed]
        again = make_runner(spec, deviations=as_deviations([{"fault": fault} for fault in faults]))
        found = explained(rows, [{"fault": fault} for fault in faults], again.as_expected, seconds=seconds)
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
    name = next(name for name in shipped if name.startswith("attention::no-future-leak"))
    failing, by_cause, found = explained_of(shipped, spec, [name], "mask-missing")
    assert (failing, by_cause, found.by_finding) == ([name], [name], (1,))
    assert explained_of(shipped, spec, [name], "mlp-relu")[1] == []


def test_what_there_was_no_time_to_judge_again_is_not_explained(shipped, tmp_path):
    spec = altered(tmp_path, "dict_config:GPTModel", *NO_MASK)
    _, by_cause, found = explained_of(shipped, spec, [PARITY], "mask-missing", seconds=-1.0)
    assert (by_cause, found.judged) == ([], 0)


@pytest.mark.parametrize("finding", [{"fault": ""}, {"fault": "no-such-id"}, {}])
def test_a_finding_that_cannot_be_declared_explains_nothing(finding):
    assert as_deviations([finding]) == []
