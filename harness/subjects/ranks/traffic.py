"""What a rank sends: the payload of its collectives, and the bytes that the kernel has sent through its sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BYTES_SENT = 200  # the offset of tcpi_bytes_sent in Linux's struct tcp_info, since 4.19 (include/uapi/linux/tcp.h)
TCP_INFO = 11
# The share of a tensor's bytes that each of n ranks sends in a ring, by the operation and the tensor that is counted:
# the whole one. Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH".
RING: dict[str, Callable[[int], float]] = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "allgather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: (n - 1) / n,  # on average over the ranks, pipelined
    "alltoall": lambda n: (n - 1) / n,
}
# What sends from one rank to another, or between one and all: no ring, and what a rank sends depends on its rank.
NO_RING = ("reduce", "gather", "scatter", "send", "recv", "p2p")


@dataclass
class Traffic(TorchDispatchMode):
    """Counts the collectives inside the block: by operation, the bytes of the whole tensors, and what a ring sends.

    `others` are operations that no ring does, by name: of them the bytes are not counted.
    """

    ranks: int
    payload: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a collective, and run it."""
        answer = function(*args, **(kwargs or {}))
        namespace, _, name = function._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional"):
            plain = name.replace("_", "")  # all_reduce, allreduce_
            operation = next((each for each in RING if each.replace("_", "") in plain), None)
            if operation is not None:
                size = _whole(operation, namespace, args, answer)
                self.payload[operation] = self.payload.get(operation, 0) + size
                self.calls[operation] = self.calls.get(operation, 0) + 1
            elif other := next((each for each in NO_RING if each in plain), None):
                self.others[other] = self.others.get(other, 0) + 1
        return answer

    def by_ring(self) -> float:
        """Return the bytes that this rank would send if every collective were a ring."""
        return sum(RING[operation](self.ranks) * size for operation, size in self.payload.items())


def _whole(operation: str, namespace: str, args: Any, answer: Any) -> int:
    """Return the bytes of the whole tensor of a collective: of its result if it gathers, else of its input."""
    if operation == "allgather":
        return _bytes(args[0]) if namespace == "c10d" else _bytes(answer)
    if operation == "reduce_scatter" and namespace == "c10d":
        return _bytes(args[1])  # (output, input, ...)
    return _bytes(args[0])


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def sent_bytes() -> int | None:
    """Return the bytes that the kernel has sent through this process's TCP sockets so far; None if it does not say."""
    total, known = 0, False
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError, struct.error):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(descriptor))) as each:
                    info = each.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
                total += int(struct.unpack_from("Q", info, BYTES_SENT)[0])
                known = True
    return total if known else None


@contextlib.contextmanager
def counted(ranks: int) -> Iterator[dict[str, Any]]:
    """Fill in, at the end of the block: `payload`, `calls`, `others`, `ring`, and `wire`, the bytes sent inside it."""
    found: dict[str, Any] = {}
    before = sent_bytes()
    with Traffic(ranks) as traffic:
        yield found
    after = sent_bytes()
    found |= {"payload": dict(traffic.payload), "calls": dict(traffic.calls), "others": dict(traffic.others)}
    found["ring"] = traffic.by_ring()
    found["wire"] = -1 if before is None or after is None else after - before
