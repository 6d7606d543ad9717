"""Subjects that misbehave: the reference with one line put into its construction or its forward pass."""

import textwrap

HEAD = """\
import ctypes, logging, os, random, re, signal, sys, time, warnings
import numpy, torch
import torch.nn.functional as F
import transformers.activations as HF
import gpt as reference
from gpt import GPTConfig

KEPT = []


class GPT(reference.GPT):
"""

CONSTRUCTION = """\
    def __init__(self, config, **options):
        super().__init__(config, **options)
        LINE
"""

FORWARD = """\
    def forward(self, idx, targets=None, **options):
        LINE
        return super().forward(idx, targets, **options)
"""

ANSWER = """\
    def forward(self, idx, targets=None, **options):
        logits, loss = super().forward(idx, targets, **options)
        LINE
        return logits, loss
"""


AT = (HEAD + FORWARD).splitlines().index(" " * 8 + "LINE") + 1  # where the line stands in the file


def subject(folder, where, line, name="naughty"):
    """The file, and what to give as --subject. `line` may be several."""
    path = folder / f"{name}.py"
    path.write_text(HEAD + where.replace("LINE", textwrap.indent(line, " " * 8).strip()))
    return f"{path}:GPT"
