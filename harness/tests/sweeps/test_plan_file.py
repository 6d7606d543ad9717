"""Plans are data, and mistakes in them are errors with file and line."""

import pytest

from harness.core.errors import HarnessError
from harness.sweeps.plan_file import read_plan
from harness.tests.sweeps.small_plan import SMALL


@pytest.mark.parametrize("name", ["quick", "full", "long"])
def test_the_shipped_plans_are_read(name):
    plan = read_plan(name)
    assert plan.name == name
    assert all(len(budget.widths) >= 3 for source in plan.sources for budget in source.budgets)


def test_the_full_sweep_has_five_sizes_three_budgets_and_several_seeds_on_two_sources():
    plan = read_plan("full")
    assert [source.name for source in plan.sources] == ["markov", "text"]
    assert len(plan.seeds) > 1
    for source in plan.sources:
        assert len(source.budgets) == 3
        assert {len(budget.widths) for budget in source.budgets} == {5}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("heads = 2", "haeds = 2", r":7: unknown key 'haeds' of a plan; did you mean 'heads'"),
        ("layers = 1\n", "", "the plan lacks the key 'layers'"),
        ("layers = 1", "layers = true", r":6: 'layers' of a plan has a value of type bool"),
        ("flops = 3e7", "flops = -3e7", "'flops' is -30000000.0; expected more than 0"),
        ("widths = [2, 4, 8]", "widths = [2, 2]", "expected whole numbers, each once"),
        ("symbols = 16\n", "", "the source 'markov' needs a text, or symbols of a Markov source"),
        ("characters = 20000\n", "", "needs characters: how much is drawn from it"),
        ("seeds = [0, 1]", "seeds = [0, 1", "not TOML"),
    ],
)
def test_a_mistake_in_a_plan_is_an_error_with_file_and_line(tmp_path, old, new, message):
    path = tmp_path / "plan.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(HarnessError, match=message) as raised:
        read_plan(str(path))
    assert str(raised.value).startswith(f"{path}:")


def test_an_unknown_plan_is_an_error_that_says_what_there_is():
    with pytest.raises(HarnessError, match=r"no sweep is called 'fulll', nor is it a \.toml file; did you mean 'full'"):
        read_plan("fulll")
