"""The variant: one way to compute an operation of GPT-2 differently."""

from __future__ import annotations

from dataclasses import dataclass

from harness.oracle.formula import Operation


@dataclass(frozen=True)
class Variant:
    """One way to compute an operation of GPT-2 differently: one row of a table.

    Attributes:
        fault: The id in harness/faults/catalogue.toml that a diagnosis names.
        operation: The operation of the formula that the variant replaces, a key of `OPERATIONS`.
        says: One sentence about the mistake, for the diagnosis.
        function: What the variant computes. It is called as the operation is: with `At` and the operation's inputs.
        where: The component that is wrong, if that is not the operation itself.
        harmless: True if float32 cannot distinguish the variant from GPT-2. The diagnosis does not report it.
        bound: True if it has numbers of one pass, so that it is right for the ids of that pass only.
    """

    fault: str
    operation: str
    says: str
    function: Operation
    where: str = ""
    harmless: bool = False
    bound: bool = False

    @property
    def component(self) -> str:
        """The component that a diagnosis names."""
        return self.where or self.operation
