"""The measure of the best checkpoint: it is the one of the lowest validation loss, or else by what it was chosen."""

import pytest

from harness.tests.measures.training.hand_made import passes, recording, text
from harness.training.events import Save

LOSSES = [4.0, 3.0, 3.5, 3.2, 2.9, 3.1]  # of the validations before steps 0, 2, 4 ...


def run(*saved, losses=LOSSES, path="out/best.pt", training=None):
    """Return a run with a validation before every second step, and saves at these numbers of a validation."""
    tokens = text()
    events = []
    for number, loss in enumerate(losses):
        step = 2 * number
        given = {"step": step, "loss": loss}
        events += passes(tokens, [[3000, 3100]], phase="eval", first=100 * number, **given)
        if number in saved:
            events.append(Save(order=100 * number + 1, step=step, path=path, keys=("model",), line="train.py:9: save"))
        for later in (step, step + 1):
            loss = 3.0 if training is None else training[later]
            events += passes(tokens, [[10 * later]], first=100 * number + 10 + later, step=later, loss=loss)
    return recording(events)


@pytest.fixture
def best(judge):
    return lambda made: judge("training::best-checkpoint-is-the-best", fluctuating=made)


def test_the_lowest_so_far_passes_whether_or_not_the_first_is_saved(best):
    assert best(run(0, 1, 4)).verdict == best(run(1, 4)).verdict == "pass"


@pytest.mark.parametrize(
    ("saved", "cause"),
    [
        ((0, 1, 3, 4), "the validation loss is lower than the one before it"),
        ((0, 2, 5), "the validation loss is higher than the one before it"),
        ((0, 1, 2, 3, 4, 5), "the validation loss is lower than the first one"),
        ((0,), "the validation loss is the highest so far"),
        ((0, 4), "not saved after the validation before step 2"),
    ],
)
def test_another_choice_is_found_and_said(best, saved, cause):
    record = best(run(*saved))
    assert record.verdict == "fail"
    assert cause in record.details["hint"]
    assert record.details["line"] == "train.py:9: save"


def test_a_choice_by_the_training_loss_is_named(best):
    record = best(run(0, 1, 2, 3, training=[9.0, 5.0, 4.0, 4.0, 3.0, 3.0, 6.0, 6.0, 6.0, 7.0, 2.0, 2.5]))
    assert "the loss of the last training batch is" in record.details["hint"]


def test_nothing_is_judged_without_such_a_file_or_if_each_loss_is_the_lowest(best):
    assert best(run(1, 4, path="out/best-run/last.pt")).verdict == "skip"
    assert best(run(0, 1, 2, losses=[4.0, 3.0, 2.0, 1.0])).verdict == "skip"
    assert "at the end only" in best(run(5)).message


# the weights in it


def kept(*saved, losses=LOSSES, weights=lambda step: (f"w{step}",)):
    """Return a run whose validation before each second step is of the weights of then; `saved`: (after, weights)."""
    tokens = text()
    events = []
    for number, loss in enumerate(losses):
        step = 2 * number
        given = {"step": step, "loss": loss, "weights": weights(step)}
        events += passes(tokens, [[3000, 3100]], phase="eval", first=100 * number, **given)
        for after, inside in saved:
            if after == step:
                more = {"weights": inside, "trained": (f"w{step}",), "state_line": "train.py:8: state_dict()"}
                events.append(Save(order=100 * number + 1, step=step, path="best.pt", keys=(), line="9: save", **more))
    return recording(events)


@pytest.fixture
def weights(judge):
    return lambda made: judge("training::best-checkpoint-has-its-weights", fluctuating=made)


def test_the_weights_of_the_lowest_loss_pass_whenever_they_are_saved(weights):
    assert weights(kept((8, ("w8", "other")))).verdict == "pass"
    assert weights(kept((10, ("w8", "other")))).verdict == "pass", "at the end of the run"
    assert weights(kept((2, ("w2",)), (8, ("w8",)))).verdict == "pass"


def test_the_last_weights_in_place_of_the_best_are_found(weights):
    record = weights(kept((10, ("w10",))))
    assert "the weights of the validation before step 10, which are not the best" in record.details["hint"]
    assert "the best are those of the validation before step 8" in record.details["hint"]


def test_the_trained_weights_in_place_of_their_mean_are_found(weights):
    record = weights(kept((8, ("w8",)), weights=lambda step: (f"mean{step}",)))
    assert "the weights that are trained, which no validation was of" in record.details["hint"]
    assert weights(kept((8, ("w8", "mean8")), weights=lambda step: (f"mean{step}",))).verdict == "pass", "both"


def test_weights_in_another_type_and_a_best_that_is_the_last_are_not_judged(weights):
    assert weights(kept((8, ("half of w8",)))).verdict == "skip"
    assert weights(kept((10, ("w10",)), losses=[4.0, 3.0, 3.5, 3.2, 2.9, 2.8])).verdict == "skip"
