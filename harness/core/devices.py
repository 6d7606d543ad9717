"""The device that a subject is judged on: whether it is available, and exact arithmetic there."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import HarnessError

CPU = "cpu"


def require_device(name: str) -> None:
    """Raise HarnessError, in one line, if torch has no device of this name on this machine."""
    try:
        torch.empty(1, device=name).fill_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(
            f"--device {name}: not available on this machine or in this build of torch ({reason})"
        ) from error
    if torch.device(name).type == "meta":
        raise HarnessError(f"--device {name}: its tensors have no values, which checks compare")


@functools.cache
def has_float64(device: str) -> bool:
    """Return True if the device computes in float64; mps does not."""
    try:
        torch.empty(1, device=device, dtype=torch.float64).fill_(1)
    except (RuntimeError, TypeError):
        return False
    return True


def device_description(name: str) -> str:
    """Return the device with the name of its hardware, as `cuda:1 (NVIDIA H200)`."""
    if torch.device(name).type == "cuda":
        return f"{name} ({torch.cuda.get_device_name(name)})"
    return name


def why_no_tf32(name: str) -> str:
    """Return why the device has no TF32, as the end of a sentence; "" if it has it."""
    if torch.device(name).type != "cuda" or torch.version.hip:
        return f"a CUDA device has it, and this run is on {name}"
    if torch.cuda.get_device_capability(name) < (8, 0):
        return f"{device_description(name)} is older than compute capability 8.0"
    return ""


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on the device, with the same strides: ids that are a slice or expanded stay so.

    One without values, on the meta device, stays there.
    """
    device = torch.device(device)
    if tensor.device == device or "meta" in (tensor.device.type, device.type):
        return tensor
    if tensor.is_contiguous() or tensor.requires_grad:
        return tensor.to(device)
    numbers = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = tensor.as_strided((numbers,), (1,), 0)
    return memory.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def moved_nest(nest: Any, device: torch.device | str) -> Any:
    """Return the tensors of lists, tuples and dicts on the device; every other object is returned unchanged."""
    if isinstance(nest, Tensor):
        return moved(nest, device)
    if type(nest) is dict:
        return {key: moved_nest(value, device) for key, value in nest.items()}
    if type(nest) in (list, tuple):
        return type(nest)(moved_nest(value, device) for value in nest)
    return nest


Precision = tuple[str | bool, ...]
MIXED = "mixed"  # settings of `torch.backends.*.fp32_precision` that the older functions, used here, have no word for


def float32_products() -> str:
    """Return the precision of float32 matrix products, as `torch.set_float32_matmul_precision` has it, or MIXED."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return MIXED


def set_float32_products(precision: str) -> None:
    """Set the precision of float32 matrix products; nothing for MIXED."""
    if precision != MIXED:
        torch.set_float32_matmul_precision(precision)


def shortcuts() -> tuple[str | bool, ...]:
    """Return if cuDNN has TF32 (or MIXED), and if float16 and bfloat16 products are summed up in 16 bits."""
    matmul = torch.backends.cuda.matmul
    try:
        cudnn: str | bool = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        cudnn = MIXED
    return (
        cudnn,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )


def set_shortcuts(allowed: Sequence[str | bool]) -> None:
    """Set what `shortcuts` returns; what was MIXED is left as it is."""
    cudnn, half, brain = allowed
    if cudnn != MIXED:
        torch.backends.cudnn.allow_tf32 = bool(cudnn)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = bool(half)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = bool(brain)


def arithmetic() -> Precision:
    """Return `float32_products` and `shortcuts`."""
    return float32_products(), *shortcuts()


def set_arithmetic(precision: Precision) -> None:
    """Set what `arithmetic` returns."""
    set_float32_products(str(precision[0]))
    set_shortcuts(precision[1:])


EXACT: Precision = ("highest", False, False, False)
TF32: Precision = ("high", True, False, False)


@contextlib.contextmanager
def arithmetic_of(device: str, precision: Precision = EXACT) -> Iterator[None]:
    """Compute with this precision on the device inside the block; by default without TF32 and reductions in 16 bits.

    A verdict is then about the model and not about the settings. TF32 keeps 10 of float32's 23 bits (NVIDIA's white
    paper of the A100, 2020). On the CPU nothing is switched.
    """
    if device == CPU:
        yield
        return
    before = arithmetic()
    set_arithmetic(precision)
    try:
        yield
    finally:
        set_arithmetic(before)
