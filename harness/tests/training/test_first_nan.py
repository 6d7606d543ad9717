"""The first NaN of a step: which call of torch makes it, as the recorder sees it."""

from harness.tests.training.tiny import record, script


def test_the_call_that_makes_the_first_nan_of_a_step_is_recorded(tmp_path):
    """A NaN that is made of no tensor, as memory that is only allocated may have by chance, is not it."""
    line = "scores = torch.full((3, 4), float('nan')); ratio = model.hidden.bias * 0 / 0"
    found = record(tmp_path, script(before_step=line)).made_nan
    assert [(each.step, each.function) for each in found] == [(0, "div"), (1, "div"), (2, "div")]
    assert found[0].line.endswith(f": {line}")


def test_numbers_that_cannot_be_read_are_not_looked_for(tmp_path):
    """`gpt.train` builds a model on the meta device: looking for NaN in it ended the program."""
    line = "torch.ones(2, device='meta').exp(); torch.vmap(lambda x: x.exp())(model.hidden.weight)"
    found = record(tmp_path, script(before_step=line))
    assert (found.ended, len(found.steps), found.made_nan) == ("finished", 3, [])
