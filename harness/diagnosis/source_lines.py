"""Lines of the user's source, as findings have them: `harness.core.source_lines`."""

from harness.core.source_lines import SourceLine, location

__all__ = ["SourceLine", "location"]
