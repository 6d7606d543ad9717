"""The configuration of a training run as one frozen dataclass; every field is a flag of `python -m gpt.train`."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from gpt.config import GPTConfig, check_choice, check_type
from gpt.errors import ConfigError

# PRECISIONS, ORDERS and VOCABULARIES are repeated from precision.TYPES, data/order.py and data/vocabulary.py, whose
# imports (torch, numpy) take seconds: the command line answers --help and mistakes without them. A test compares them.
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16", "float16", "pure-bfloat16")
ORDERS = ("epoch", "random")
VOCABULARIES = ("gpt2", "bytes", "characters")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, from the text to the last checkpoint. The defaults are GPT-2 small's recipe.

    Raises `ConfigError` when a value has the wrong type or describes no run.
    """

    # Data
    text: str = "tinyshakespeare"
    """The text: a published one by its name, or a file in UTF-8."""
    vocabulary: str = "gpt2"
    """The tokens: "gpt2" (byte-pair encoding, 50,257), "bytes" (256) or "characters" (those of the text)."""
    validation_fraction: float = 0.1
    """The share of the text, at its end, that is never trained on; 0 trains on all of it and validates nothing."""
    order: str = "epoch"
    """The windows of a step: "epoch" (every token once an epoch, in a seeded order) or "random" (any start)."""
    workers: int = 0
    """The processes that prepare batches beside the training process."""

    # Model
    n_layer: int = 12
    """The blocks of attention and feed-forward network."""
    n_head: int = 12
    """The attention heads of a block; they share the width evenly."""
    n_embd: int = 768
    """The width: the channels of the residual stream."""
    block_size: int = 1024
    """The length of a window in tokens, which is the model's context."""
    dropout: float = 0.0
    """The share of values dropped at GPT-2's four sites."""
    bias: bool = True
    """Biases in linear layers and LayerNorms, as published GPT-2 has them."""
    attention: str = "flash"
    """The form of attention: "looped" (head by head), "naive" (batched) or "flash" (fused)."""
    init: str = "gpt2"
    """The initialisation: "gpt2", "unscaled", "pytorch" or "kaiming"."""
    n_experts: int = 0
    """The feed-forward networks of a block, of which a router chooses for each token; 0 is one without a router."""
    experts_per_token: int = 2
    """The experts that compute a token, where there are experts."""
    capacity_factor: float = 0.0
    """The most tokens of a batch that an expert computes, in units of its even share; 0 is no limit."""

    # Batch
    batch_size: int = 8
    """The windows of a micro-batch, on each rank."""
    accumulation: int = 1
    """The micro-batches of a step, on each rank."""
    steps: int = 1000
    """The optimizer steps of the run."""
    overfit_batches: int = 0
    """Train on the first N batches again and again, a test of the program; 0 trains on all of the text."""

    # Optimizer
    lr: float = 6e-4
    """The peak of the learning rate."""
    min_lr: float = 6e-5
    """The end of the schedule."""
    schedule: str = "cosine"
    """After the warm-up: "cosine" or "linear" from lr to min_lr, or "constant"."""
    warmup: int = 50
    """The steps of the linear warm-up: step k of it (from 0) has lr * (k + 1) / warmup."""
    horizon: int = 0
    """The step at which the schedule has reached min_lr, where it stays; 0 is the number of steps."""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: float = 0.95
    """AdamW's decay of the mean of squared gradients."""
    eps: float = 1e-8
    """AdamW's addition to the denominator."""
    weight_decay: float = 0.1
    """The decay of matrices; vectors (biases and gains) have none."""
    clip: float = 1.0
    """The largest global norm of a gradient; 0 does not clip."""
    balance_weight: float = 0.01
    """The factor of the experts' balance loss in the loss that is trained on; 0 leaves the routers to themselves."""

    # Precision and memory
    precision: str = "float32"
    """"float32"; "bfloat16" or "float16" (autocast over float32 weights); "pure-bfloat16" (no float32 anywhere)."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of storing what is in it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", or "auto": cuda where there is one."""

    # Along the way
    eval_every: int = 100
    """The steps between two validations, from step 0 on; 0 validates at the end only."""
    eval_batches: int = 20
    """The batches of a validation, the same ones each time; 0 is the whole validation part."""
    sample_every: int = 500
    """The steps between two samples of text, from step 0 on; 0 for none."""
    sample_tokens: int = 64
    """The new tokens of a sample."""
    sample_prompt: str = "\n"
    """The text that a sample continues."""
    save_every: int = 500
    """The steps between two checkpoints; 0 saves at the end only."""
    keep: int = 2
    """The number of latest checkpoints that are kept; the best one is kept beside them."""
    spike_factor: float = 3.0
    """Name the batch of a step whose gradient norm is this many times the running median; 0 for never."""
    inject_spike_at: int = -1
    """Replace the batch of this step (from 0) by one repeated token, to see clipping at work; -1 for never."""
    budget: float = 0.0
    """The longest time in minutes: after it the run saves and stops, and can be resumed; 0 for no limit."""
    log_every: int = 1
    """The steps between two lines of the log."""
    tensorboard: bool = False
    """Write TensorBoard events too; needs the package tensorboard."""
    seed: int = 0
    """Weights, batches, dropout and samples each have a generator of their own, seeded by this."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check_type(field.name, value, field.type)
            if field.type is float:  # `lr = 1` in a TOML file is the same configuration as `lr = 1.0`
                object.__setattr__(self, field.name, float(value))
        for problem in _problems(self):
            raise ConfigError(problem)
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        self.model(vocab_size=1)  # raises ConfigError for a shape that is no GPT's

    def model(self, vocab_size: int) -> GPTConfig:
        """Return the model's configuration with the size of the run's vocabulary."""
        return GPTConfig(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
            bias=self.bias,
            attention=self.attention,
            init=self.init,
            n_experts=self.n_experts,
            experts_per_token=self.experts_per_token,
            capacity_factor=self.capacity_factor,
        )


CHOICES = {"vocabulary": VOCABULARIES, "order": ORDERS, "schedule": SCHEDULES, "precision": PRECISIONS}

AT_LEAST: dict[str, int] = {
    **dict.fromkeys(("batch_size", "accumulation", "steps", "sample_tokens", "keep", "log_every"), 1),
    **dict.fromkeys(
        ("workers", "overfit_batches", "warmup", "horizon", "min_lr", "weight_decay", "clip", "balance_weight"), 0
    ),
    **dict.fromkeys(("eval_every", "eval_batches", "sample_every", "save_every", "spike_factor", "budget", "seed"), 0),
    "inject_spike_at": -1,
}

CHANGES_NUMBERS = frozenset({"horizon", "device", "compile"})
"""The changeable fields on which the numbers depend: another schedule, and another rounding."""

CHANGEABLE = CHANGES_NUMBERS | frozenset(
    {
        # Where the text is. What it says may not change: checkpoints have its checksum.
        "text",
        # How long the run is, and what it shows on its way: the weights after a step do not depend on them.
        *("steps", "budget", "eval_every", "sample_every", "sample_tokens", "sample_prompt"),
        *("save_every", "keep", "log_every", "tensorboard"),
        # How a step is computed: the same weights, bit for bit, on a CPU.
        *("workers", "gradient_checkpointing"),
    }
)
"""The fields that may change when a run is resumed. All others belong to its identity."""


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[object, object]]:
    """Return the fields in which two configurations differ, with the values of both."""
    pairs = {field.name: (getattr(one, field.name), getattr(other, field.name)) for field in fields(TrainConfig)}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def _problems(config: TrainConfig) -> Iterator[str]:
    """Yield what is wrong with the values of a configuration, as messages."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is float and not math.isfinite(value):
            yield f"{field.name}={value} is not a finite number"
        if field.name in AT_LEAST and value < AT_LEAST[field.name]:
            yield f"{field.name}={value} is too small; give at least {AT_LEAST[field.name]}"
        if field.type is str and not value:
            yield f"{field.name} is empty; expected text"
        if field.type is str and any("\ud800" <= character <= "\udfff" for character in value):
            yield f"{field.name}={value!r} is not Unicode text (a part of it is not UTF-8)"
    for name in ("lr", "eps"):
        if getattr(config, name) <= 0:
            yield f"{name}={getattr(config, name)} is not positive"
    for name in ("beta1", "beta2", "validation_fraction"):
        if not 0 <= getattr(config, name) < 1:
            yield f"{name}={getattr(config, name)} is outside [0, 1)"
    if config.seed >= 2**63:  # TOML's and torch's integers have 64 bits with a sign
        yield f"seed={config.seed} is too large; give less than 2**63"
    if config.min_lr > config.lr and config.schedule != "constant":
        yield f"min_lr={config.min_lr} is above lr={config.lr}, the peak; lower min_lr or raise lr"
    if 0 < config.spike_factor <= 1:
        yield f"spike_factor={config.spike_factor} names every step; give more than 1, or 0 for never"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield f"device={config.device!r} is unknown; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
