"""Reports: the page, tables and plots of a run, made from its records alone."""

from harness.report.page import page
from harness.report.report_files import write, write_from, write_latest

__all__ = ["page", "write", "write_from", "write_latest"]
