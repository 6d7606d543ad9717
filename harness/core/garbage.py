"""Keep Python's garbage collection away from what stays until the process ends: torch's and transformers' objects."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_objects() -> Iterator[None]:
    """Import packages inside the block: nothing is collected meanwhile, and what exists then is never looked at again.

    A million objects, in which each full collection looks for garbage for 0.2 s, and there is none.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
