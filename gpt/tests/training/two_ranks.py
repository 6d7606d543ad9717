"""What each of two ranks does in the tests of ranks: `run(rank, port, folder)` writes what it found to `folder`."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from gpt.errors import NonFinite
from gpt.tests.training.small_trainer import corpus, everything, in_float64, trainer
from gpt.training.ranks import Ranks, join
from gpt.training.trainer import Trainer

STEPS = 7
TOKENS = 142
"""18 windows of 8, one of them with 5 targets: of the fifth batch of 4 in an epoch, rank 0 has two and rank 1 none."""


def made(ranks: Ranks | None, **changes: Any) -> Trainer:
    """Return a trainer whose global batch is 4 windows in each of 2 micro-batches, on one rank or on two."""
    batch_size = 4 // (ranks.size if ranks else 1)
    return trainer(
        ranks,
        **{"text": corpus(TOKENS), "batch_size": batch_size, "accumulation": 2, "clip": 0.7, "lr": 1e-2} | changes,
    )


def numbers(one: Trainer, steps: int = STEPS) -> dict[str, Any]:
    """Train, and return what every rank must agree about."""
    results = [one.train_step() for _ in range(steps)]
    return {
        "losses": [result.loss for result in results],
        "norms": [result.norm for result in results],
        "targets": [result.targets for result in results],
        "tokens": one.tokens,
        "validation": one.evaluate(),
        "weights": {name: weight.clone() for name, weight in one.weights().items()},
    }


def run(rank: int, port: int, folder: str) -> None:
    """Be one of the two ranks."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} | address
    with join("cpu") as ranks:
        found = {
            "place": [ranks.rank, ranks.size],
            "float64": numbers(in_float64(made(ranks))),
            "float32": numbers(made(ranks)),
            "dropout": dropout(ranks),
            "resumed": resumed(ranks),
            "nonfinite": nonfinite(ranks),
            "texts": ranks.gather(["", "zwei: ß"][rank]),
            "any": [ranks.any(rank == 1), ranks.any(False)],
            "summed": summed(ranks).tolist(),
        }
        torch.save(found, Path(folder, f"{rank}.pt"))
        ranks.any(False)  # no rank ends before the other one is done with it


def dropout(ranks: Ranks) -> dict[str, Any]:
    """Return one step's numbers and this rank's masks."""
    one = made(ranks, dropout=0.5)
    return {"mask": torch.rand(8)} | numbers(one, 2)


def resumed(ranks: Ranks) -> dict[str, Any]:
    """Return the end of a run of four steps, and of the same run that was saved and loaded after two."""
    straight = made(ranks, dropout=0.2)
    for _ in range(2):
        straight.train_step()
    saved, weights = straight.state_dict(), {name: weight.clone() for name, weight in straight.weights().items()}
    saved["optimizer"] = copied(saved["optimizer"])
    ends = [everything_after(straight)]
    other = made(ranks, dropout=0.2, seed=0)
    torch.rand(17)
    other.load_weights(weights)
    other.load_state_dict(saved)
    return {"straight": ends[0], "resumed": everything_after(other), "random": saved["random"]}


def everything_after(one: Trainer) -> dict[str, Any]:
    """Train two more steps and return all that they may have changed."""
    one.train_step()
    one.train_step()
    return everything(one)


def copied(value: Any) -> Any:
    """Return a copy of nested containers of tensors."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def nonfinite(ranks: Ranks) -> str:
    """Return the message of a NaN that only rank 1 has."""
    one = made(ranks)
    if ranks.rank == 1:
        one.model.get_parameter("transformer.h.1.ln_2.bias").data[0] = math.nan
    try:
        one.train_step()
    except NonFinite as error:
        return str(error)
    return "no error"


def summed(ranks: Ranks) -> torch.Tensor:
    """Return the sum of a gradient in bfloat16, of two more in other types, and of one that rank 1 does not have."""
    parameters = [torch.zeros(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    for number, parameter in enumerate(parameters):
        if ranks.rank == 0 or number != 1:
            parameter.grad = torch.full_like(parameter, [1.0, 0.00390625][ranks.rank])  # 2**-8: half a step of bfloat16
    ranks.sum_gradients(parameters)
    return torch.stack([parameter.grad.double() for parameter in parameters])
