"""The operations of a profiler trace, each with the operation that called it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_GRAPH = "## Call CompiledFxGraph"


@dataclass(eq=False)
class Operation:
    """A span of the trace that ran on the host: an operator, a compiled graph, or an annotation.

    `caller` is the span that it ran inside of, and `own_time` its duration in microseconds without the spans that ran
    inside of it. `is_operator` is False for annotations and compiled graphs.
    """

    event: dict[str, Any]
    caller: Operation | None
    own_time: float
    is_operator: bool = field(init=False)

    def __post_init__(self) -> None:
        # Operators have a namespace; so have two of autograd's spans, which are no operators.
        self.is_operator = "::" in self.name and not self.name.startswith(("autograd::", "torch::autograd"))

    @property
    def name(self) -> str:
        """The name in the trace: `aten::mm`."""
        name: str = self.event["name"]
        return name

    @property
    def sizes(self) -> list[list[int]]:
        """The sizes of each argument; empty for one that is no tensor."""
        sizes: list[list[int]] = self.event.get("args", {}).get("Input Dims", [])
        return sizes

    @property
    def types(self) -> list[str]:
        """The C++ type of each argument."""
        types: list[str] = self.event.get("args", {}).get("Input type", [])
        return types

    @property
    def is_graph(self) -> bool:
        """Whether this is a call of a graph that Inductor compiled."""
        return self.name.startswith(_GRAPH)

    def sizes_of(self, argument: int) -> tuple[int, ...]:
        """Return the sizes of an argument, or () if the trace has none."""
        return tuple(self.sizes[argument]) if argument < len(self.sizes) else ()

    def nearest_caller(self, condition: Callable[[Operation], bool]) -> Operation | None:
        """Return the innermost caller that satisfies `condition`, or None."""
        caller = self.caller
        while caller is not None and not condition(caller):
            caller = caller.caller
        return caller

    @property
    def graph(self) -> Operation | None:
        """The compiled graph that issued this operation, or None."""
        return self.nearest_caller(lambda caller: caller.is_graph)


def operations(events: Sequence[dict[str, Any]]) -> Iterator[Operation]:
    """Yield the spans of a trace that ran on the host, each with its caller, in the order in which they began."""
    spans = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation") and "dur" in event]
    open_spans: dict[Any, list[tuple[float, Operation]]] = defaultdict(list)  # by thread: end, operation
    for event in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        stack = open_spans[event["tid"]]
        while stack and stack[-1][0] <= event["ts"]:
            stack.pop()
        caller = stack[-1][1] if stack else None
        if caller is not None:
            caller.own_time -= event["dur"]
        operation = Operation(event, caller, event["dur"])
        stack.append((event["ts"] + event["dur"], operation))
        yield operation
