"""Text of others, made harmless for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text without characters that steer a terminal or turn its direction: each as its escape, `\\x1b`."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text
    )
