"""The functions with which a program trains on several ranks, by the names that people give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.errors import MissingAbility, SubjectError

DATA, SHARDED, TENSOR = "data", "sharded", "tensor"
KINDS = (DATA, SHARDED, TENSOR)

# What a function does, and what it is called. The first three make a model of several ranks out of a model.
NAMES: Mapping[str, tuple[str, ...]] = {
    DATA: (
        *("data_parallel", "to_ddp", "setup_ddp", "wrap_ddp", "apply_ddp", "make_ddp", "ddp", "ddp_model"),
        *("apply_replicate", "distribute_data", "wrap_data_parallel"),
    ),
    SHARDED: (
        *("fully_sharded", "apply_fsdp", "to_fsdp", "setup_fsdp", "wrap_fsdp", "make_fsdp", "fsdp", "fsdp_model"),
        *("apply_fsdp2", "shard_model", "shard", "shard_parameters"),
    ),
    TENSOR: (
        *("tensor_parallel", "apply_tp", "to_tp", "setup_tp", "wrap_tp", "make_tp", "tp", "tp_model"),
        *("apply_tensor_parallel", "tensor_parallelize", "parallelize_tensor"),
    ),
    "gradients": (
        *("accumulate_gradients", "forward_backward", "forward_and_backward", "compute_gradients", "accumulate"),
        *("backward_micro_batches", "gradient_step", "forward_backward_step"),
    ),
    "average": (
        *("average_gradients", "sync_gradients", "synchronize_gradients", "all_reduce_gradients", "reduce_gradients"),
        *("allreduce_gradients", "average_grads", "sync_grads", "all_reduce_grads", "allreduce_grads", "reduce_grads"),
        *("finish_gradient_synchronization", "finish_grad_sync", "wait_for_gradients"),
    ),
    "clip": ("clip_gradients", "clip_grad_norm", "clip_grad_norm_", "clip_grads", "clip_gradient_norm"),
    "state": (
        *("full_state_dict", "get_full_state_dict", "gather_state_dict", "full_weights", "consolidated_state_dict"),
        *("get_state_dict", "state_dict_of", "gather_weights", "collect_state_dict"),
    ),
    "save": ("save_checkpoint", "save_sharded", "save_shards", "write_checkpoint", "save_distributed", "dcp_save"),
    "load": ("load_checkpoint", "load_sharded", "load_shards", "read_checkpoint", "load_distributed", "dcp_load"),
    "seed": ("seed_ranks", "seed_everything", "seed_all", "set_seed", "set_seeds", "seed_rank"),
    "share": ("share_of_rank", "rank_share", "shard_batch", "local_batch", "rank_batch", "split_batch", "my_rows"),
}
# Functions whose name says that they wrap, and not how: the words in their source say that.
WRAPS = ("parallelize", "parallelize_model", "parallelize_gpt", "distribute", "wrap", "wrap_model", "setup_parallel")
WORDS: Mapping[str, tuple[str, ...]] = {
    TENSOR: ("parallelize_module", "ColwiseParallel", "RowwiseParallel", "tensor_parallel"),
    SHARDED: ("fully_shard", "FullyShardedDataParallel", "FSDP"),
    DATA: ("DistributedDataParallel", "DDP(", "replicate("),
}

# What a parameter takes, and what it is called.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "module", "net", "gpt", "wrapped", "network", "m"),
    "mesh": ("mesh", "device_mesh", "tp_mesh", "dp_mesh", "fsdp_mesh", "world_mesh"),
    "data rank": ("data_rank", "dp_rank"),
    "rank": ("rank", "local_rank", "device_id", "process_rank", "process_index", "tp_rank"),
    "ranks": (
        *("world_size", "ranks", "n_ranks", "num_ranks", "world", "num_processes", "dp_size", "tp_size", "n_gpus"),
    ),
    "group": ("group", "process_group", "pg", "tp_group", "dp_group"),
    "device": ("device",),
    "seed": ("seed",),
    "batches": ("batches", "micro_batches", "microbatches"),
    "limit": ("limit", "max_norm", "grad_clip", "max_grad_norm", "clip", "clip_norm"),
    "optimizer": ("optimizer", "optim", "opt"),
    "path": ("folder", "path", "directory", "dir", "checkpoint_dir", "ckpt_dir", "checkpoint_path", "file"),
    "batch": ("batch", "ids", "x", "tensor", "rows", "tokens", "inputs"),
    "parameters": ("parameters", "params"),
}


@dataclass(frozen=True)
class RankFunction:
    """A function of a program, with what each of its parameters takes."""

    function: Callable[..., Any]
    takes: Mapping[str, str]  # parameter -> a key of PARAMETERS

    @classmethod
    def of(cls, function: Callable[..., Any]) -> RankFunction | None:
        """Return the function; None if it needs an argument whose name says nothing."""
        takes: dict[str, str] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            meaning = next((what for what, names in PARAMETERS.items() if name in names), None)
            if meaning is None and parameter.default is parameter.empty:
                return None
            if meaning is not None:
                takes[name] = meaning
        return cls(function, takes)

    @property
    def line(self) -> tuple[str, int]:
        """The file and the line of its `def`."""
        code = inspect.unwrap(self.function).__code__
        return code.co_filename, code.co_firstlineno

    @property
    def text(self) -> str:
        """Its name with its parameters."""
        return f"{self.function.__name__}({', '.join(self.takes)})"

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Call it with the values of what its parameters take; one with a default stays without a value.

        Raises SubjectError for a parameter without a default that has no value here.
        """
        signature = inspect.signature(self.function).parameters
        missing = [name for name, what in self.takes.items() if what not in values]
        if needed := [name for name in missing if signature[name].default is signature[name].empty]:
            raise SubjectError(f"{self.text} needs {needed[0]}, which a check of ranks does not have")
        given = {name: values[what] for name, what in self.takes.items() if name not in missing}
        positional = [given.pop(n) for n, p in signature.items() if p.kind is p.POSITIONAL_ONLY and n in given]
        return self.function(*positional, **given)


@dataclass(frozen=True)
class ParallelProgram:
    """The functions of a program for several ranks, by what they do (the keys of NAMES)."""

    functions: Mapping[str, RankFunction]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of parallelism that it has: "data", "sharded", "tensor"."""
        return tuple(kind for kind in KINDS if kind in self.functions)

    def function(self, role: str) -> RankFunction:
        """Return the function for a role. Raises MissingAbility if the program has none."""
        if role not in self.functions:
            raise MissingAbility(f"it has no function for {role!r}: looked for {', '.join(NAMES[role][:5])} ...")
        return self.functions[role]
