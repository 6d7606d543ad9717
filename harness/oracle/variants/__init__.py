"""Variants: the ways in which each operation of GPT-2 is computed differently, as tables, one module a component."""

from harness.oracle.variants.all_variants import variants
from harness.oracle.variants.partial import in_parts
from harness.oracle.variants.systematic import systematic_variants
from harness.oracle.variants.variant import Variant

__all__ = ["Variant", "in_parts", "systematic_variants", "variants"]
