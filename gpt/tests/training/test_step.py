"""The training step: the gradient it uses, accumulation, the numbers it returns, and what it leaves behind."""

import copy
import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.data import Batch
from gpt.errors import ContextError, TextTooShort
from gpt.tests.training.small_trainer import corpus, everything, in_float64, ragged, same, trainer
from gpt.training.schedule import learning_rate
from gpt.training.trainer import Trainer


class Recorded:
    """The loader of a trainer, and the batches that it has given."""

    def __init__(self, made: Trainer) -> None:
        self.loader, self.batches = made.loader, []
        made.loader = self

    def __next__(self) -> Batch:
        self.batches.append(next(self.loader))
        return self.batches[-1]

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)


def used_gradients(made: Trainer) -> list[dict[str, Tensor]]:
    """Return a list that gets the gradient of each step, as the optimizer sees it."""
    found: list[dict[str, Tensor]] = []
    made.optimizer.register_step_pre_hook(
        lambda *_: found.append({name: p.grad.clone() for name, p in made.model.named_parameters()})
    )
    return found


def with_batches(made: Trainer, batches: list[Batch]) -> Trainer:
    """Return the trainer with these batches instead of its loader's."""

    class Given:
        def __init__(self) -> None:
            self.left: Iterator[Batch] = iter(batches)

        def __next__(self) -> Batch:
            return next(self.left)

        def state_dict(self) -> dict:
            return {}

    made.loader = Given()
    return made


# ---------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_step_uses_the_gradient_of_its_own_batches_and_logs_their_loss(accumulation):
    """A gradient left from the step before, a stale batch or the last micro-batch's loss would show here."""
    made = in_float64(trainer(accumulation=accumulation, clip=0.0))
    seen, gradients = Recorded(made), used_gradients(made)
    for step in range(3):
        model = copy.deepcopy(made.model)
        result = made.train_step()
        batches = seen.batches[step * accumulation :]
        assert len(batches) == accumulation
        ids, targets = torch.cat([batch.ids for batch in batches]), torch.cat([batch.targets for batch in batches])
        loss = F.cross_entropy(model(ids)[0].flatten(0, 1), targets.flatten())
        loss.backward()
        assert result.loss == pytest.approx(loss.item(), rel=1e-12)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[step][name], parameter.grad, rtol=1e-10, atol=1e-13)


def test_micro_batches_with_ragged_targets_are_one_batch_of_all_their_targets():
    """Dividing by the number of micro-batches would count the three targets of the second like 32."""
    plain = trainer().loader
    batches = [next(plain), ragged(next(plain), kept=3), ragged(next(plain), kept=0)]
    joined = Batch(
        *(torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "targets", "starts")), 0, 0
    )
    made = [
        with_batches(in_float64(trainer(accumulation=3, clip=0.0)), batches),
        with_batches(in_float64(trainer(clip=0.0)), [joined]),
    ]
    gradients = [used_gradients(one) for one in made]
    several, one = (each.train_step() for each in made)
    assert several.targets == one.targets == 32 + 3
    assert several.loss == pytest.approx(one.loss, rel=1e-12)
    for name, expected in gradients[1][0].items():
        torch.testing.assert_close(gradients[0][0][name], expected, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_clipped_before_the_step_and_all_numbers_are_returned():
    made = in_float64(trainer(clip=0.25))
    gradients = used_gradients(made)
    result = made.train_step()
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients[0].values()))
    assert result.norm > 0.25
    assert norm == pytest.approx(result.clipped_norm, rel=1e-12)
    assert result.clipped_norm == pytest.approx(0.25, rel=1e-5)
    assert result.clip_cosine == pytest.approx(1.0, abs=1e-12)
    assert not result.skipped
    assert result.seconds > 0


def test_each_step_has_its_learning_rate_and_counts_its_targets():
    made = trainer(accumulation=2, batch_size=3, steps=6)
    lrs = []
    made.optimizer.register_step_pre_hook(lambda *_: lrs.append([g["lr"] for g in made.optimizer.param_groups]))
    results = [made.train_step() for _ in range(8)]
    assert [result.step for result in results] == list(range(8))
    assert lrs == [[learning_rate(step, made.config)] * 2 for step in range(8)]
    assert [result.lr for result in results] == [lr for lr, _ in lrs]
    assert [result.targets for result in results] == [2 * 3 * 8] * 8
    assert [result.tokens for result in results] == [48 * (step + 1) for step in range(8)]
    assert (made.step, made.tokens) == (8, 8 * 48)


def test_a_step_leaves_no_gradient_behind():
    made = trainer()
    made.train_step()
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_one_batch_is_overfitted_to_its_floor():
    """The first letters of each row can be guessed only by their frequency; everything after them can be learned."""
    made = trainer(overfit_batches=1, steps=150, warmup=5, batch_size=2, lr=3e-2)
    results = [made.train_step() for _ in range(150)]
    assert results[0].loss > 5
    assert results[-1].loss < 0.2


# ---------------------------------------------------------------------------- randomness


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others():
    results, weights = [], []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)  # nothing outside may matter
        torch.rand(5)
        made = trainer(seed=seed, dropout=0.2, order="random")
        results.append([(result.loss, result.norm) for result in (made.train_step() for _ in range(4))])
        weights.append(everything(made))
    assert results[0] == results[1]
    assert same(weights[0], weights[1])
    assert results[0][0] != results[2][0]


def test_dropout_is_drawn_anew_in_each_step():
    made = trainer(dropout=0.5, overfit_batches=1, lr=1e-9, min_lr=1e-9)  # the same batch, and no movement to speak of
    assert len({made.train_step().loss for _ in range(3)}) == 3


# ---------------------------------------------------------------------------- memory and compilation


def saved_bytes(made: Trainer) -> int:
    """Return the bytes that a forward pass stores for the backward pass."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    batch = next(made.loader)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made.model(batch.ids, batch.targets)
    return total


def test_gradient_checkpointing_stores_less_and_changes_no_number_and_no_name():
    """With dropout: a recomputation that draws other masks gives another gradient."""
    plain, recomputed = (trainer(dropout=0.2, n_layer=4, gradient_checkpointing=flag) for flag in (False, True))
    assert list(plain.model.state_dict()) == list(recomputed.model.state_dict())
    assert saved_bytes(recomputed) < 0.5 * saved_bytes(plain)
    found = []
    for flag in (False, True):  # one after the other: dropout is drawn from the global generator
        made = trainer(dropout=0.2, n_layer=4, gradient_checkpointing=flag)
        found.append([made.train_step().norm for _ in range(3)] + [made.sample(), made.evaluate()])
    assert found[0] == found[1]


def test_a_copy_of_a_checkpointed_model_computes_with_its_own_weights():
    """A forward that is a closure over the block would still be the original's in the copy."""
    made = trainer(gradient_checkpointing=True)
    ids = next(made.loader).ids
    expected = made.model(ids)[0].detach()
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    assert torch.equal(other(ids)[0], expected)


def test_a_compiled_trainer_has_the_names_and_the_numbers_of_the_plain_one(monkeypatch):
    """The backend is the one that runs what was traced as it is; the real one takes a minute."""
    plain = trainer()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = trainer(compile=True)
    found, expected = ([one.train_step().loss for _ in range(2)] for one in (compiled, plain))
    assert found == pytest.approx(expected, rel=1e-6)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert compiled.weights().keys() == plain.weights().keys()
    assert compiled.evaluate() == pytest.approx(plain.evaluate(), rel=1e-6)


# ---------------------------------------------------------------------------- failures


def test_an_interrupted_step_leaves_the_trainer_as_it_was():
    """Ctrl-C in the middle of a step: the checkpoint that is saved then must be that of the last complete step."""
    untouched = trainer(dropout=0.2, accumulation=2)
    expected = [untouched.train_step().norm for _ in range(2)]
    made = trainer(dropout=0.2, accumulation=2)
    assert made.train_step().norm == expected[0]
    before, forward = everything(made), made.forward

    def interrupted(ids: Tensor, targets: Tensor) -> Tensor:
        forward(ids, targets)[1].backward()
        raise KeyboardInterrupt

    made.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.train_step()
    assert same(everything(made), before)
    made.forward = forward
    assert made.train_step().norm == expected[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text": corpus(train=8)}, TextTooShort, "the training part has 8 of the text's 208 tokens"),
        ({"text": corpus(validation=8)}, TextTooShort, "the validation part has 8 of the text's 1008 tokens"),
        ({"sample_prompt": "123456789"}, ContextError, "the prompt has 9 tokens and the context 8"),
    ],
)
def test_a_trainer_that_would_fail_later_is_refused_at_once(changes, error, message):
    with pytest.raises(error, match=message):
        trainer(**changes)


def test_a_corpus_without_validation_part_trains_and_says_what_to_do_on_evaluation():
    made = trainer(text=corpus(validation=0))
    made.train_step()
    assert not made.can_evaluate
    with pytest.raises(TextTooShort, match="validation_fraction"):
        made.evaluate()
