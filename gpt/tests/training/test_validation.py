"""Validation: what it computes, and that the training does not notice it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt.tests.training.small_trainer import corpus, everything, in_float64, same, trainer
from gpt.training.ranks import Ranks
from gpt.training.validation import spread


def test_the_loss_is_the_mean_over_all_tokens_of_the_validation_part():
    """The last window has 3 of 8 targets and the last batch one window: a mean of means would count them more."""
    made = in_float64(trainer(eval_batches=0, text=corpus(validation=8 * 8 + 4)))
    validation = made.corpus.validation.long()
    losses = []
    for start in range(0, len(validation) - 1, 8):
        window = validation[start : start + 9]
        logits, _ = made.model.eval()(window[None, :-1])
        losses.append(F.cross_entropy(logits[0], window[1:], reduction="none"))
    assert len(torch.cat(losses)) == 67
    assert made.evaluate() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)


def test_some_batches_are_windows_spread_over_the_whole_part():
    made, seen = trainer(eval_batches=2, batch_size=3), []
    made.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    first = made.evaluate()
    assert [len(ids) for ids in seen] == [3, 3]
    windows = made.corpus.validation[: 8 * (200 // 8)].view(-1, 8)
    assert torch.equal(torch.cat(seen).long(), windows[spread(25, 6)].long())
    assert made.evaluate() == first


def test_spread_windows_are_different_and_reach_from_the_start_to_the_end():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(4, 4) == spread(4, 9) == spread(4, 0) == [0, 1, 2, 3]
    assert all(len(set(spread(97, wanted))) == wanted for wanted in range(1, 97))


def test_validation_has_no_dropout_no_gradient_and_restores_the_training_mode():
    made, seen = trainer(dropout=0.5), []
    frozen = made.model.get_submodule("transformer.h.0.attn").eval()  # its own mode must come back too
    modes = {name: module.training for name, module in made.model.named_modules()}
    made.model.register_forward_hook(
        lambda module, _, out: seen.append((any(part.training for part in module.modules()), out[1].requires_grad))
    )
    assert made.evaluate() == made.evaluate()
    assert set(seen) == {(False, False)}
    assert {name: module.training for name, module in made.model.named_modules()} == modes
    assert not frozen.training
    assert all(parameter.grad is None for parameter in made.model.parameters())


@pytest.mark.parametrize("along_the_way", ["evaluate", "sample"])
def test_validation_and_samples_leave_no_trace_in_the_training(along_the_way):
    """With a shared generator or loader the weights would part after the first validation."""
    ends = []
    for often in (False, True):
        made = trainer(dropout=0.2, order="random")
        for _ in range(4):
            if often:
                getattr(made, along_the_way)()
            made.train_step()
        ends.append(everything(made))
    assert same(*ends)


def test_the_global_generators_are_neither_read_nor_advanced():
    made = trainer(dropout=0.2)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append((made.evaluate(), made.sample()))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


def test_each_rank_computes_its_part():
    """The sums of the two ranks, added by hand, are those of one process."""
    parts = []

    class Half(Ranks):
        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            parts.append(tensor.tolist())
            return tensor

    made = in_float64(trainer(eval_batches=0))
    expected = made.evaluate()
    for rank in range(2):
        made.ranks = Half(rank, 2)
        made.evaluate()
    losses, counts = (sum(column) for column in zip(*parts, strict=True))
    assert counts == 199
    assert losses / counts == pytest.approx(expected, rel=1e-12)


def test_a_sample_is_the_prompt_and_new_tokens_from_the_seed_alone():
    made, other = trainer(sample_prompt="ab"), trainer(sample_prompt="ab")
    assert made.sample() == other.sample() == made.sample()
    assert made.sample().startswith("ab")
    assert made.sample() != trainer(sample_prompt="ab", seed=1).sample()
    modes = [module.training for module in made.model.modules() if isinstance(module, nn.Module)]
    assert all(modes)
