"""MNIST's training loop and this one side by side: the same five lines, and what is around them."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.markdown import code, escape, table

# What a line does, MNIST's, this one's.
LINES = (
    ("a batch", "for images, labels in loader:", "for ids, targets in loader:"),
    ("forward", "logits = model(images)  # (B, 10)", "logits = model(ids)  # (B, T, V)"),
    (
        "loss",
        "loss = F.cross_entropy(logits, labels)",
        "loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())",
    ),
    ("backward", "loss.backward()", "loss.backward()"),
    ("", "", "clip_grad_norm_(model.parameters(), 1.0)"),
    ("", "", 'for group in optimizer.param_groups: group["lr"] = learning_rate(step)'),
    ("step", "optimizer.step()", "optimizer.step()"),
    ("clear", "optimizer.zero_grad()", "optimizer.zero_grad()"),
)
WORDS = (
    ("an example", "an image and its digit", "a position and the token after it: a window of T tokens has T examples"),
    ("who labels it", "a person", "nobody: the text itself, one position on"),
    ("classes", "10", "V, the vocabulary: 50,257 for GPT-2"),
    ("loss before training", "ln 10 = 2.30", "ln V = 10.82, and a little more with GPT-2's initialisation"),
    ("what a forward pass sees", "one image", "a whole window; the mask hides what comes after each position"),
    ("held-out measure", "accuracy", "the mean loss per token; its exponential is the perplexity"),
    ("length", "epochs", "steps or tokens; large corpora are seen once"),
    ("around the loop", "nothing", "warm-up and cosine, clipping, accumulation, bfloat16, checkpoints"),
)  # fmt: skip


def section() -> Iterator[str]:
    """Yield both loops as a table, and then what the same words mean in each."""
    yield from ("The five lines that train a classifier of digits train a GPT. What is new stands alone.", "")
    rows = [[escape(what), code(mnist), code(gpt)] for what, mnist, gpt in LINES]
    yield from table(["", "MNIST", "this loop"], rows)
    yield from table(["", "MNIST", "this loop"], [[escape(cell) for cell in row] for row in WORDS])
