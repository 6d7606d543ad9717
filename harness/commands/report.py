"""`gpt-harness report`: write the page, tables and plots again, from records alone."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from harness.core.errors import HarnessError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness report [FILE.jsonl ...] [--records DIR] [--output DIR] [--open]`."""
    command = commands.add_parser(
        "report",
        help="write the page, tables and plots again, from records alone",
        description="Write the page, tables and plots from records alone, by default the newest.",
    )
    command.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE.jsonl",
        help="records to report on, at most one run of each kind",
    )
    command.add_argument(
        "--records", type=Path, default=Path("reports/records"), metavar="DIR",
        help="where to find the newest verify-, bench-, lessons- and sweep-*.jsonl (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--output",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="where the report is written (default: %(default)s)",
    )
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the reports and print the paths of their pages."""
    # The report imports matplotlib, which takes a second that `gpt-harness --help` need not wait for.
    from harness.report import write_from, write_latest
    from harness.report.lessons import report_files as lessons
    from harness.report.report_files import KINDS
    from harness.report.sweeps import report_files as sweeps

    reports = []
    files = list(options.files)
    for kind in (lessons, sweeps):  # their pages first: the other page links to them
        own = [path for path in files if path.name.startswith(f"{kind.KIND}-")]
        if len(own) > 1:
            raise HarnessError(f"{own[0]} and {own[1]} are both of kind '{kind.KIND}'; a report shows one run of each")
        files = [path for path in files if path not in own]
        newest = None if options.files else kind.newest_records(options.records)
        reports += [kind.write_from(options.output, path) for path in own or ([newest] if newest else [])]
    if files:
        reports.append(write_from(options.output, files))
    elif not options.files and (not reports or any(any(options.records.glob(f"{kind}-*.jsonl")) for kind in KINDS)):
        reports.append(write_latest(options.output, options.records))
    pages: list[Path] = []
    for written in reports:
        own = [*(path for path in written if path.suffix == ".html"), written[0]]
        print(f"{', '.join(map(str, own))} ({len(written) - len(own)} tables and plots beside it)")
        pages += own
    if options.open:  # the lessons' and the sweeps' reports have a page in Markdown alone
        open_in_browser(next((path for path in pages if path.suffix == ".html"), pages[-1]))
    return 0


def open_in_browser(path: Path) -> None:
    """Open a page in the browser, or say where it is if there is no browser, as over SSH."""
    if not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser could be opened here: open {path.resolve()} in one, or copy the file to where one is")
