"""The measure of PyTorch's kernels of attention: each that the device has, by name, against float64."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import ChoosesAttention, Subject
from harness.suites.measure_registry import Reading, measure

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# The errors of scaled_dot_product_attention, on CUDA and on the CPU, if the only kernel allowed cannot do it.
NO_KERNEL = ("No available kernel", "No viable backend")
FUNCTION = nn.functional.scaled_dot_product_attention  # also where a subject replaces the name by its own
FUSED = "flash"  # the harness's name for attention by scaled_dot_product_attention


@measure
def attention_kernel_error(
    subject: Subject, *, size: str, dtype: Literal["float32", "bfloat16", "float16"], length: int = 24
) -> Reading:
    """Return the error of the logits with each kernel of attention over that of Hugging Face's plain attention.

    Both errors are root mean squares against the float64 oracle, and both models are in `dtype`. A kernel that the
    device does not have for this call is left out, and `details` says why. Raises MissingAbility for a subject that
    does not call `torch.nn.functional.scaled_dot_product_attention`.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    given = state(size, "probe")
    expected, theirs = model_cache.cached_if_small(
        size,
        ("attention kernels", dtype, length),
        lambda: (_logits(oracle(SIZES[size], given, "float64"), ids), _logits(oracle(SIZES[size], given, dtype), ids)),
    )
    options: dict[str, Any] = {}
    if isinstance(subject, ChoosesAttention) and FUSED in subject.attentions:
        options["attention"] = FUSED
    model = build_with_weights(subject, SIZES[size], given, dtype, **options)
    with _FusedCalls() as calls:
        _logits(model, ids)
    if not calls.count:
        raise MissingAbility(f"{subject.name} does not call torch.nn.functional.scaled_dot_product_attention")
    found, unavailable = dict[str, float](), dict[str, str]()
    for name, kernel in KERNELS.items():
        with warnings.catch_warnings(record=True) as reasons, sdpa_kernel(kernel):
            warnings.simplefilter("always")
            try:
                own = _logits(model, ids)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_KERNEL):
                    raise
                unavailable[name] = "; ".join(str(each.message).splitlines()[0] for each in reasons) or str(error)
                continue
        found[name] = _rms(own, expected) / _rms(theirs, expected)
    return Reading(found, "of Hugging Face's error", {"not available": unavailable})


class _FusedCalls(TorchFunctionMode):
    """Count the calls of scaled_dot_product_attention inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is FUNCTION
        return function(*args, **(kwargs or {}))


def _logits(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(ids).double()


def _rms(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt())
