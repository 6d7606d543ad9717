"""The trainer: everything that a training step changes, and the step."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from gpt.data import Batch, Corpus, Loader, Windows
from gpt.errors import CheckpointMismatch, NonFinite, TextTooShort, UnknownCharacter, WeightsError
from gpt.experts import Routing, balance_loss
from gpt.generate import check_prompt
from gpt.model import GPT
from gpt.token_ids import IGNORED
from gpt.training.batch_text import describe_windows
from gpt.training.clipping import Clipped, clip
from gpt.training.config import TrainConfig
from gpt.training.expert_load import ExpertLoad
from gpt.training.gradient_checkpointing import recompute_blocks
from gpt.training.lost_updates import WeightSample
from gpt.training.nonfinite import FirstNonFinite, first_nonfinite_gradient
from gpt.training.optimizer import adamw
from gpt.training.precision import Precision
from gpt.training.randomness import RandomState, derived_seed
from gpt.training.ranks import Ranks
from gpt.training.samples import sample_text
from gpt.training.schedule import learning_rate
from gpt.training.spikes import SpikeGuard
from gpt.training.validation import validation_loss


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step: the numbers that a log has. With several ranks they are those of all ranks together."""

    step: int
    """The number of the step, from 0."""
    loss: float
    """The mean cross entropy over all targets of the step, in nats, before the update; the balance loss is apart."""
    lr: float
    norm: float
    """The global norm of the gradient before clipping."""
    clipped_norm: float
    """The global norm of the gradient that the optimizer used."""
    clip_cosine: float | None
    """The cosine between the gradient before and after clipping; None if it was not clipped."""
    targets: int
    """The targets that the loss counted."""
    tokens: int
    """The targets of all steps so far, this one included."""
    seconds: float
    """The time of the step, with its batches."""
    lost_updates: float | None
    """The share of weights that are bitwise unchanged though their gradient was not 0; None unless measured."""
    spike: str | None
    """A sentence with the batch if the norm was a spike, else None."""
    skipped: bool
    """True if a float16 gradient overflowed: the weights are unchanged, and the next loss is scaled less."""
    balance: float | None = None
    """The experts' balance loss, without its weight: 1 for even loads; None without experts."""
    expert_shares: list[list[float]] | None = None
    """For each layer, the share of the choices that each expert has; None without experts."""
    dropped: float | None = None
    """The share of choices that were dropped, because an expert was full; None without experts."""


class Trainer:
    """A GPT in training on one of the ranks: the model, the optimizer, the batches and their position.

    The weights, the order of the batches, dropout and samples each have their own random numbers, all from
    `config.seed`. Dropout uses torch's global generator, which is seeded here, differently on each rank; validation
    and samples neither read nor advance it. With several ranks, all methods but `sample` are collective.

    Raises `ConfigError` for a precision that the device does not have, `TextTooShort` for a part of the corpus that is
    shorter than a window, and the errors of `sample_text` for a prompt that cannot be continued.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, ranks: Ranks | None = None) -> None:
        self.config, self.corpus, self.ranks = config, corpus, ranks or Ranks()
        self.device = self.ranks.device
        self.precision = Precision(config.precision, self.device)
        corpus.require_windows(config.block_size)
        if config.sample_every:  # an error now, not after 500 steps
            prompt = _encoded_prompt(config, corpus)[None]
            check_prompt(prompt, corpus.vocabulary.size, config.block_size)

        # The weights are drawn on the CPU, so that every device starts from the same ones.
        self.model = GPT(config.model(corpus.vocabulary.size), seed=config.seed, device="cpu")
        self.model.to(self.device, self.precision.weights).train()
        if config.gradient_checkpointing:
            recompute_blocks(self.model)
        # The compiled module shares the model's parameters; its state dict would have other names.
        self.forward: Any = torch.compile(self.model) if config.compile else self.model
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.model, config)
        self.scaler = self.precision.scaler()
        self.loader = Loader(
            corpus.train,
            length=config.block_size,
            batch_size=config.batch_size,
            order=config.order,
            seed=config.seed,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            workers=config.workers,
            limit=config.overfit_batches,
        )
        self.validation = Windows(corpus.validation, config.block_size, every="stride") if self.can_evaluate else None
        self.spikes = SpikeGuard(config.spike_factor)
        self.step = 0
        """The optimizer steps completed."""
        self.tokens = 0
        """The targets trained on, over all ranks."""
        torch.manual_seed(derived_seed(config.seed, "dropout", self.ranks.rank))

    # ------------------------------------------------------------------------ the step

    def train_step(self, *, measure_lost_updates: bool = False) -> StepResult:
        """Do one optimizer step and return its numbers, with the share of lost updates if that is to be measured.

        The gradient is that of the mean cross entropy over all targets of the step, whichever micro-batch and rank
        they are in. It is summed over the ranks, unscaled, measured and clipped, in this order.

        Raises `NonFinite` for a loss or a gradient that is NaN or infinite. Until the optimizer's step begins, a
        failure of any kind leaves the trainer as it was: weights, moments, random states and the place in the data.
        """
        started = time.perf_counter()
        with self._undone_on_failure() as random:
            batches = self._batches()
            loss, targets, load = self._gradient(batches, random)
            clipped, skipped = self._clip()
        sample = WeightSample(self.parameters) if measure_lost_updates and not skipped else None
        lr = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)  # the optimizer's own step, unless a float16 gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

        spike = self.spikes.check(clipped.norm)
        number, self.step, self.tokens = self.step, self.step + 1, self.tokens + targets
        lost = sample.lost_share() if sample else None
        balance, shares, dropped = load.summed(self.ranks)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be that of queueing the update
        return StepResult(
            step=number,
            loss=loss,
            lr=lr,
            norm=clipped.norm,
            clipped_norm=clipped.clipped_norm,
            clip_cosine=clipped.cosine,
            targets=targets,
            tokens=self.tokens,
            seconds=time.perf_counter() - started,
            lost_updates=lost,
            spike=spike and f"step {number}: {spike}; {describe_windows(batches, self.corpus.vocabulary)}",
            skipped=skipped,
            balance=balance,
            expert_shares=shares,
            dropped=dropped,
        )

    def _batches(self) -> list[Batch]:
        """Return the micro-batches of the next step."""
        batches = [next(self.loader) for _ in range(self.config.accumulation)]
        if self.step != self.config.inject_spike_at:
            return batches
        # The last token of the vocabulary: GPT-2's <|endoftext|>, a byte that no text has, or the last character.
        token = self.corpus.vocabulary.size - 1
        return [
            replace(
                batch,
                ids=torch.full_like(batch.ids, token),
                targets=batch.targets.masked_fill(batch.targets != IGNORED, token),
            )
            for batch in batches
        ]

    def _gradient(self, batches: Sequence[Batch], before: RandomState) -> tuple[float, int, ExpertLoad]:
        """Leave the gradient of the step's mean loss in the parameters; return the loss and the number of targets.

        With experts, their balance loss is added to what is differentiated, and not to the loss that is returned.
        `before` is the random state of the first forward pass, to find out where a loss was first not finite.
        """
        counts = [int((batch.targets != IGNORED).sum()) for batch in batches]
        total = int(self.ranks.sum(torch.tensor(sum(counts), device=self.device)))
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self.device)
        load = ExpertLoad()
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            if count == 0:  # the mean over no targets is 0 / 0
                continue
            # A mean over this micro-batch's targets, weighted by their share of the step's. Dividing by the number of
            # micro-batches instead would be wrong as soon as one of them has fewer targets.
            share = count / total
            loss, routings = self._loss(batch)
            losses[number] = loss.detach() * share
            if routings:
                balance = balance_loss(routings)
                load.add(routings, balance, share)  # before the backward pass, in which a block may run again
                loss = loss + self.config.balance_weight * balance
            scaled: Any = self.scaler.scale(loss * share)  # backward is untyped in torch
            scaled.backward()
        mean = float(self.ranks.sum(losses.sum()))
        if not math.isfinite(mean):
            self._raise_nonfinite_loss(mean, losses.tolist(), batches, before)
        self.ranks.sum_gradients(self.parameters)
        return mean, total, load

    def _loss(self, batch: Batch) -> tuple[Tensor, list[Routing]]:
        """Return the mean cross entropy over the targets of one micro-batch, and where its tokens were sent."""
        routings: list[Routing] = []
        ids = batch.ids.to(self.device, non_blocking=True)  # (B, T)
        targets = batch.targets.to(self.device, non_blocking=True)  # (B, T)
        with self.precision.autocast():
            wanted = {"routings": routings} if self.config.n_experts else {}
            loss: Tensor = self.forward(ids, targets, **wanted)[1]
        return loss, routings

    def _clip(self) -> tuple[Clipped, bool]:
        """Unscale and clip the gradient; return its norms, and True if a float16 gradient overflowed."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        clipped = clip(gradients, self.config.clip)
        if math.isfinite(clipped.norm):
            return clipped, False
        if self.scaler.is_enabled() and self.scaler.get_scale() >= 1:  # the scaler skips the step and scales less
            return clipped, True
        name = first_nonfinite_gradient(self.model)
        found = (
            f"the gradient of {name} is not finite, the first one in the backward pass"
            if name
            else "every gradient is finite, but too large for the sum of squares"
        )
        raise NonFinite(
            f"step {self.step}: the gradient norm is {clipped.norm} and the loss is finite; {found}. "
            "Expected finite gradients: lower the learning rate or use precision='float32'"
        )

    # ------------------------------------------------------------------------ failures

    @contextmanager
    def _undone_on_failure(self) -> Iterator[RandomState]:
        """Take back what the block did to the trainer if it fails; yield the random state before it."""
        random, loader, scaler = RandomState.now(self.device), self.loader.state_dict(), self.scaler.state_dict()
        try:
            yield random
        except BaseException:  # Ctrl-C too: what is saved then is the last complete step
            self.optimizer.zero_grad(set_to_none=True)
            random.restore(self.device)
            self.loader.load_state_dict(loader)
            self.scaler = self.precision.scaler()  # a new one, without the marks of a step that has begun
            self.scaler.load_state_dict(scaler)
            raise

    def _raise_nonfinite_loss(
        self, mean: float, losses: Sequence[float], batches: Sequence[Batch], before: RandomState
    ) -> NoReturn:
        """Raise `NonFinite` with the same message on every rank: that of the first rank that has found something."""
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        found = ""
        if bad:
            where = self._first_nonfinite_module(batches[: bad[0] + 1], before)
            windows = describe_windows([batches[bad[0]]], self.corpus.vocabulary)
            found = f"{where}; micro-batch {bad[0]} of rank {self.ranks.rank} has {windows}"
        found = next((message for message in self.ranks.gather(found) if message), "no micro-batch shows it alone")
        raise NonFinite(
            f"step {self.step}: the loss is {mean}; {found}. Expected a finite loss: start again from the last "
            "checkpoint with a lower learning rate, or look for damage in the weights or the text"
        )

    @torch.no_grad()
    def _first_nonfinite_module(self, batches: Sequence[Batch], before: RandomState) -> str:
        """Compute the forward passes again, with the same dropout, and say what was first not finite in the last."""
        before.restore(self.device)
        watch = FirstNonFinite()
        for batch in batches[:-1]:
            if (batch.targets != IGNORED).any():  # as in the step, so that dropout is the same
                self._loss(batch)
        ids, targets = batches[-1].ids.to(self.device), batches[-1].targets.to(self.device)
        with watch.watching(self.model), self.precision.autocast():
            self.model(ids, targets)
        if watch.where is None:
            return "every module's output is finite when the forward pass is computed again"
        return f"the first values that are not finite are {watch.where}"

    # ------------------------------------------------------------------------ along the way

    @property
    def can_evaluate(self) -> bool:
        """True if the corpus has a validation part."""
        return len(self.corpus.validation) > 0

    def evaluate(self) -> float:
        """Return the mean loss per token over the validation windows, in nats; they are the same each time.

        Raises `TextTooShort` if the corpus has no validation part.
        """
        if self.validation is None:
            raise TextTooShort("the corpus has no validation part; choose validation_fraction above 0")
        return validation_loss(
            self.model,
            self.validation,
            batches=self.config.eval_batches,
            batch_size=self.config.batch_size,
            ranks=self.ranks,
            autocast=self.precision.autocast,
        )

    def sample(self) -> str:
        """Return the prompt and a sample after it, drawn with the same random numbers each time."""
        with self.precision.autocast():
            return sample_text(
                self.model,
                self.corpus.vocabulary,
                prompt=self.config.sample_prompt,
                tokens=self.config.sample_tokens,
                seed=derived_seed(self.config.seed, "sample"),
            )

    # ------------------------------------------------------------------------ saving

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters by name, not copied; a tied head is left out, since it is the embedding."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights` into the model, all of them or none. Raises `WeightsError` if names, shapes or types differ.

        Another type is an error, since a run that continues in another precision is another run.
        """
        own = self.weights()
        for name in sorted(own.keys() | weights.keys()):
            expected, found = (_described(tensors.get(name)) for tensors in (own, weights))
            if expected != found:
                raise WeightsError(
                    f"the weights of {name} are {found}, and this model's are {expected}; "
                    "load them with the configuration of the run that saved them"
                )
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes but the weights; the same on every rank, and read by `weights_only`.

        It has the random states of all ranks, which makes it collective.
        """
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": self.ranks.gather(RandomState.now(self.device).to_json()),  # one for each rank
            "scaler": self.scaler.state_dict(),
            "spikes": self.spikes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was saved; load its weights too.

        Raises `CheckpointMismatch` if it is of another number of ranks, `LoaderError` if it is of other batches.
        """
        if len(state["random"]) != self.ranks.size:
            raise CheckpointMismatch(
                f"the state is of a run on {len(state['random'])} ranks, and this one is on {self.ranks.size}; "
                "each rank has its own random state: resume on as many ranks"
            )
        self.loader.load_state_dict(state["loader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.spikes.load_state_dict(state["spikes"])
        self.step, self.tokens = state["step"], state["tokens"]
        RandomState.from_json(state["random"][self.ranks.rank]).restore(self.device)


def _encoded_prompt(config: TrainConfig, corpus: Corpus) -> Tensor:
    try:
        return corpus.vocabulary.encode(config.sample_prompt)
    except UnknownCharacter as error:
        raise UnknownCharacter(
            f"sample_prompt={config.sample_prompt!r} has a character that the text has not; give --sample-prompt with "
            "characters of the text, or --sample-every 0 for no samples"
        ) from error


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
