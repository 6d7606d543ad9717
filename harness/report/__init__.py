"""Reports: what a person reads, made from records alone."""

from harness.report.files import write, write_from, write_latest
from harness.report.page import page

__all__ = ["page", "write", "write_from", "write_latest"]
