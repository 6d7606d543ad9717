"""The learning rate of each step: a linear warm-up, then a cosine, a line or a constant."""

import math

from gpt.training.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    Step k of the warm-up has lr (k + 1) / warmup, so that the first step moves the weights and step warmup - 1 has lr.
    The decay then goes from lr at step `warmup` to min_lr at the horizon, and stays there. A horizon inside the
    warm-up does not shorten it. A constant schedule has no horizon.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    horizon = config.horizon or config.steps
    if step >= horizon:
        return config.min_lr
    progress = (step - config.warmup) / (horizon - config.warmup)  # 0 at `warmup`, 1 at the horizon
    remaining = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_lr + remaining * (config.lr - config.min_lr)
