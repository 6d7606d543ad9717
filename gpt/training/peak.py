"""The speed of the device at its best: a square matrix product, measured."""

import time

import torch

SECONDS = 0.3
SIZES = {"cpu": 1024, "cuda": 8192}
"""The side of the matrices: large enough that the product, not the memory, is the limit."""


def measured_peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the FLOPs per second of the fastest of several products, and what was measured.

    The figures on data sheets are for other clocks and other types; this one is of this machine, now.
    """
    size = SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # its own: training must not notice
    # Random: products of equal numbers let a GPU run at a higher clock than training does.
    matrix = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    best, started = float("inf"), time.perf_counter()
    for attempt in range(10_000):
        before = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if attempt > 0:  # the first one sets the library up
            best = min(best, now - before)
        if attempt > 1 and now - started > SECONDS:
            break
    if device.type == "cuda":  # the run's memory is not that of this measurement
        del matrix
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    kind = str(dtype).removeprefix("torch.")
    return 2 * size**3 / best, f"measured matmul peak ({size} x {size}, {kind}, best of {attempt})"
