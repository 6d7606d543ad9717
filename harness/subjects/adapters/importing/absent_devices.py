"""The devices that a program names and this machine lacks, replaced by the CPU in its syntax tree."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch

DEVICE = re.compile(r"(cuda|mps|xpu|hpu|npu|mlu)(:\d+)?")
TAKES_DEVICE = ("to", "device", "set_default_device")  # calls whose first argument may be a device


class AbsentDevices(ast.NodeTransformer):
    """Puts "cpu" in place of each absent device that a program would compute on; `found` has the words replaced.

    A device stays that is only compared, as in `x.device.type == "cuda"`, that says where autocast applies, or that is
    used only if it is available.
    """

    def __init__(self) -> None:
        self.found: dict[str, int] = {}  # device -> the first line with it

    def visit_Compare(self, node: ast.Compare) -> Any:
        """Leave what is compared as it is."""
        return node

    def visit_If(self, node: ast.If) -> Any:
        """Leave what runs only if the device is there."""
        if "is_available" in ast.unparse(node.test):
            node.orelse = [self.visit(child) for child in node.orelse]
            return node
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        """Replace the value of `device = "mps"`, of each branch too."""
        node.value = self._value(node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        """Replace the value of `device: str = "mps"`."""
        node.value = None if node.value is None else self._value(node.value)
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> Any:
        """Replace the default of a parameter."""
        node.defaults = [self._value(value) for value in node.defaults]
        node.kw_defaults = [None if value is None else self._value(value) for value in node.kw_defaults]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        """Replace `device="cuda"`, the argument of `x.to("cuda")` and of `torch.device("cuda")`, and `x.cuda()`."""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in TAKES_DEVICE:
            node.args[:1] = [self._value(value) for value in node.args[:1]]
        for keyword in node.keywords:
            if keyword.arg == "device":
                keyword.value = self._value(keyword.value)
        if isinstance(node.func, ast.Attribute) and not is_present(called):
            self.found.setdefault(called, node.lineno)
            node.func.attr, node.args = "cpu", []
        return self.generic_visit(node)

    def _value(self, node: ast.expr) -> ast.expr:
        """Return the expression with "cpu" for an absent device, also in a choice that does not ask if it is there."""
        if isinstance(node, ast.IfExp) and "is_available" not in ast.unparse(node.test):
            node.body, node.orelse = self._value(node.body), self._value(node.orelse)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not is_present(node.value):
            self.found.setdefault(node.value, node.lineno)
            return ast.copy_location(ast.Constant("cpu"), node)
        return node


def is_present(word: str) -> bool:
    """Return True if this machine has the device, or if the word is none that a machine may lack."""
    kind, _, number = word.partition(":")
    if not DEVICE.fullmatch(word):
        return True
    backend = torch.get_device_module(kind) if hasattr(torch, kind) else None
    return backend is not None and backend.is_available() and int(number or 0) < backend.device_count()
