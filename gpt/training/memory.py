"""The memory of a run: an estimate by closed form before anything is built, and what is there and used."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpt.errors import DoesNotFit
from gpt.training.config import TrainConfig

SLACK = 0.95
"""The share of the available memory that a run may plan with; the allocator and the program need the rest."""


@dataclass(frozen=True)
class Memory:
    """The bytes of a run on one rank, by what needs them."""

    weights: int
    gradients: int
    moments: int
    """AdamW's two means of each parameter."""
    activations: int
    """What the forward pass of a micro-batch stores for the backward pass, logits aside."""
    logits: int
    """The logits of a micro-batch, their log-probabilities and the gradient of these."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits


def parameter_count(config: TrainConfig, vocab_size: int) -> int:
    """Return N = V C + T C + L (12 C² + 13 C) + 2 C, with a tied head; without biases L (12 C² + 2 C) + C.

    With E experts a block has E feed-forward networks of 8 C² + 5 C (8 C² without biases) and a router of E C.
    """
    C, L = config.n_embd, config.n_layer
    blocks = L * (12 * C * C + (13 if config.bias else 2) * C) + (2 if config.bias else 1) * C
    if config.n_experts:
        blocks += L * ((config.n_experts - 1) * _feed_forward_parameters(config) + config.n_experts * C)
    return (vocab_size + config.block_size) * C + blocks


def active_parameter_count(config: TrainConfig, vocab_size: int) -> int:
    """Return how many parameters compute a token: without the E - k experts of each block that it is not sent to."""
    idle = config.n_experts - config.experts_per_token if config.n_experts else 0
    return parameter_count(config, vocab_size) - config.n_layer * idle * _feed_forward_parameters(config)


def _feed_forward_parameters(config: TrainConfig) -> int:
    return 8 * config.n_embd**2 + (5 * config.n_embd if config.bias else 0)


def flops_per_token(config: TrainConfig, vocab_size: int) -> int:
    """Return the FLOPs of forward and backward for one token, 6 (N - T C) + 12 L C T.

    Every weight but the table of positions is multiplied with each token: 2 FLOPs forward, 4 backward. Attention's
    scores and sums are counted over the whole window, as in PaLM (Chowdhery et al. 2022, appendix B). Of experts,
    N has those that compute the token.
    """
    C, T = config.n_embd, config.block_size
    return 6 * (active_parameter_count(config, vocab_size) - T * C) + 12 * config.n_layer * C * T


def estimate(config: TrainConfig, vocab_size: int, device: str = "cpu") -> Memory:
    """Return the memory of a run on a kind of device, within some 20%."""
    N = parameter_count(config, vocab_size)
    stored = 2 if config.precision == "pure-bfloat16" else 4
    autocast = config.precision in ("bfloat16", "float16")
    tokens = config.batch_size * config.block_size
    layer = _layer_bytes(config, device, stored=stored, autocast=autocast)
    layers = config.n_layer * layer
    if config.gradient_checkpointing:  # the input of each block, and one block at a time in full
        layers = config.n_layer * config.n_embd * stored + layer
    return Memory(
        weights=N * stored + (N * 2 if autocast else 0),  # autocast keeps 16-bit copies of the weights in a step
        gradients=N * stored,
        moments=2 * N * stored,
        activations=tokens * layers,
        logits=tokens * vocab_size * 12,  # float32: twice in the forward pass; then their gradient
    )


def _layer_bytes(config: TrainConfig, device: str, *, stored: int, autocast: bool) -> int:
    """Return the bytes that a block stores for a token."""
    C, product = config.n_embd, 2 if autocast else stored
    # The two inputs of LayerNorm, in the type of the residual stream. In the type of products: the normed inputs of
    # c_attn and c_fc (2 C), queries, keys and values (3 C), attention's output and its copy by position (2 C), and
    # the wide layer before and after GELU (8 C).
    total = 2 * C * stored + 15 * C * product
    if config.n_experts:  # for each of a token's experts: its input, the wide layer twice, its output and that gated
        total += (11 * config.experts_per_token - 9) * C * product + 4 * config.n_experts * 4
    total += 2 * C if config.dropout else 0  # two masks of bytes
    row = config.n_head * config.block_size * (stored + 1)  # of attention's weights, in every head, with a mask
    if config.attention != "flash":
        return total + (2 * row if config.dropout else row)
    # With dropout, PyTorch's fused attention on a CPU computes the formula and stores the weights.
    return total + (2 * row if config.dropout and device == "cpu" else 0)


# ---------------------------------------------------------------------------- what is there


def available_memory(device: torch.device, ranks_here: int = 1) -> int | None:
    """Return the bytes that one of the ranks of this machine may use, None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [limit for limit in (_meminfo("MemAvailable"), _cgroup_room()) if limit is not None]
    return min(limits) // ranks_here if limits else None


def used_memory(device: torch.device) -> int:
    """Return the bytes in use: the peak of PyTorch's allocator on CUDA, else this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # not Linux: the peak, in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


CGROUP = Path("/sys/fs/cgroup")


def _cgroup_room() -> int | None:
    """Return what a container's limit leaves, None without a limit.

    The page cache counts as used until something needs its memory. `inactive_file`, the files that nobody has read
    lately, is the part of it that goes without cost: a training text just read must not stop a run.
    """
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        pairs = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + next((int(size) for name, size in pairs if name == "inactive_file"), 0)
    except (OSError, ValueError):  # no container, or "max"
        return None


# ---------------------------------------------------------------------------- what fits


def check_fit(config: TrainConfig, vocab_size: int, available: int | None, device: str = "cpu") -> Memory:
    """Return the estimate of a run. Raises `DoesNotFit`, with what would fit, if it is more than is available."""
    needed = estimate(config, vocab_size, device)
    if available is None or needed.total <= available * SLACK:
        return needed
    raise DoesNotFit(
        f"the run needs about {gigabytes(needed.total)} ({gigabytes(needed.activations + needed.logits)} of it for the "
        f"activations of {config.batch_size} windows), and {gigabytes(available)} are available; "
        f"{what_fits(config, vocab_size, available, device)}"
    )


def what_fits(config: TrainConfig, vocab_size: int, available: int, device: str = "cpu") -> str:
    """Return the advice for a run that does not fit: flags with the same tokens in a step, if there are any."""
    for smaller in _smaller(config):
        needed = estimate(smaller, vocab_size, device).total
        if needed <= available * SLACK:
            flags = f"--batch-size {smaller.batch_size} --accumulation {smaller.accumulation}"
            flags += " --gradient-checkpointing" if smaller.gradient_checkpointing else ""
            return f"the same steps fit with {flags} (about {gigabytes(needed)})"
    return (
        "not even one window at a time with --gradient-checkpointing fits: choose a smaller --n-layer, --n-embd or "
        "--block-size, or a device with more memory"
    )


def _smaller(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield configurations of the same step that need less memory, the fastest ones first."""
    parts = [part for part in range(config.batch_size, 0, -1) if config.batch_size % part == 0]
    for checkpointing in sorted({config.gradient_checkpointing, True}):
        for part in parts:
            accumulation = config.accumulation * config.batch_size // part
            yield replace(config, batch_size=part, accumulation=accumulation, gradient_checkpointing=checkpointing)


def gigabytes(count: int) -> str:
    """Return a number of bytes as text: 1.5 GB, or 20 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
