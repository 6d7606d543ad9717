"""The files of a report, and which records it is made from."""

import json
import re
import subprocess
import sys

import pytest

from harness import cli
from harness.core import record_files
from harness.core.errors import HarnessError
from harness.report import write, write_from, write_latest
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.claims.sample_claims import claim_rows
from harness.tests.report.sample_benchmark import bench_rows, generation
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check, initialisation, verify_rows


def test_no_plot_is_drawn_from_no_data(tmp_path):
    files = write(tmp_path, run("verify", [check()]), None)
    assert files == [tmp_path / "index.md", tmp_path / "index.html", tmp_path / "tables" / "checks.csv"]
    assert "![" not in files[0].read_text(encoding="utf-8")


def test_a_report_written_twice_is_the_same_to_the_byte(tmp_path):
    runs = run("verify", initialisation()), run("bench", generation())
    first = {path.name: path.read_bytes() for path in write(tmp_path / "a", *runs)}
    second = {path.name: path.read_bytes() for path in write(tmp_path / "b", *runs)}
    assert first == second
    assert {"index.md", "index.html", "activations.csv", "activations.png", "activations.svg", "generation.png"} <= set(
        first
    )


def test_every_link_on_the_page_leads_to_a_file_and_every_file_is_linked(tmp_path):
    page_path, _, *files = write(tmp_path, run("verify", verify_rows()), run("bench", bench_rows()))
    links = re.findall(r"\]\(((?:tables|plots)/[^)]+)\)", page_path.read_text(encoding="utf-8"))
    assert {tmp_path / link for link in links} == set(files)


def test_every_figure_names_its_machine_versions_and_subject():
    for plot in plots(RunRecords.of(run("verify", verify_rows())), RunRecords.of(run("bench", bench_rows()))):
        for part in ("Intel Xeon", "2 cores", "2 threads", "torch 2.13.0", "2026-11-22", "gpt:GPT", "commit d3ab9a4"):
            assert part in plot.caption


def test_files_of_an_earlier_report_go_and_files_of_the_user_stay(tmp_path):
    write(tmp_path, run("verify", verify_rows()), None)
    mine = tmp_path / "plots" / "mine.png"
    mine.write_text("")
    write(tmp_path, run("verify", [check()]), None)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["mine.png"]


def test_nothing_heavy_is_imported_before_a_figure_is_drawn():
    heavy = "{'matplotlib', 'torch', 'numpy'} & set(sys.modules)"
    line = f"import sys, harness.cli, harness.report; sys.exit(str({heavy} or ''))"
    assert (
        subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False).stderr.strip() == ""
    )


def save(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(record_files.encode(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_newest_records_are_by_the_time_in_the_name_and_then_by_the_number(tmp_path):
    for stamp in ("20261121T100000Z", "20261122T153000Z", "20261122T153000Z-10", "20261122T153000Z-2"):
        save(tmp_path / "records", f"verify-{stamp}.jsonl", run("verify", [check(f"of-{stamp.lower()}")]))
    write_latest(tmp_path)
    assert "of-20261122t153000z-10," in (tmp_path / "tables" / "checks.csv").read_text(encoding="utf-8")


def test_a_run_of_claims_alone_has_a_page_of_its_own_and_leaves_the_verification_s(tmp_path):
    """`make lessons` ends with such a run: what the whole verification found must not be lost to it."""
    whole = save(tmp_path / "records", "verify-20261122T100000Z.jsonl", run("verify", [*claim_rows(), check()]))
    write_latest(tmp_path, of=[whole])
    before = (tmp_path / "index.md").read_text(encoding="utf-8")
    own = save(tmp_path / "records", "verify-20261122T110000Z.jsonl", run("verify", claim_rows()[:1]))
    pages = [path for path in write_latest(tmp_path, of=[own]) if path.suffix == ".md"]
    assert pages == [tmp_path / "claims.md"]
    assert (tmp_path / "index.md").read_text(encoding="utf-8") == before
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Of 1 claim 1 holds." in text
    assert "structure: 1 pass" in text, "the chain has the suites of the newest run that has them"
    write_latest(tmp_path)
    assert (tmp_path / "index.md").read_text(encoding="utf-8") == before


def test_the_claims_are_those_of_the_newest_run_that_has_some(tmp_path):
    save(tmp_path / "records", "verify-20261122T100000Z.jsonl", run("verify", claim_rows()[:1]))
    later = run("verify", [check(suite="parity")], started="2026-11-22T11:00:00Z")
    own = save(tmp_path / "records", "verify-20261122T110000Z.jsonl", later)
    assert tmp_path / "claims.md" not in write_latest(tmp_path, of=[own])
    selection = run("verify", [check(suite="parity", verdict="fail")] * 2, arguments=["-k", "parity"])
    save(tmp_path / "records", "verify-20261122T120000Z.jsonl", selection)
    (tmp_path / "records" / "verify-20261122T090000Z.jsonl").write_text("damaged\nand no record\n")
    assert tmp_path / "claims.md" in write_latest(tmp_path)
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Of 1 claim 1 holds." in text
    assert "parity: 1 pass (2026-11-22 11:00 UTC)" in text, "not of the selection, and dated"


def test_a_report_never_joins_the_verdict_on_one_subject_to_the_times_of_another(tmp_path):
    records = tmp_path / "records"
    save(records, "bench-20261121T100000Z.jsonl", run("bench", bench_rows()[:1], subject="theirs.py:GPT"))
    save(records, "verify-20261122T100000Z.jsonl", run("verify", [check()], subject="mine.py:GPT"))
    text = write_latest(tmp_path)[0].read_text(encoding="utf-8")
    assert "Report on mine.py" in text
    assert "Benchmarked" not in text


def test_gpt_harness_report_makes_the_report_from_records_alone(tmp_path, capsys):
    save(tmp_path / "records", "verify-20261122T153000Z.jsonl", run("verify", [check(value=float("nan"))]))
    save(tmp_path / "records", "bench-20261122T160000Z.jsonl", run("bench", bench_rows()[:1]))
    assert cli.main(["report", "--records", str(tmp_path / "records"), "--output", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "index.md") in capsys.readouterr().out
    assert "The one check that was judged passes" in (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tables" / "precision.csv").exists()


def test_gpt_harness_report_takes_files(tmp_path):
    path = save(tmp_path, "any.jsonl", run("verify", [check()], footer=False))
    assert cli.main(["report", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "Interrupted" in (tmp_path / "out" / "index.md").read_text(encoding="utf-8")


def test_no_records_is_one_clear_line(tmp_path, capsys):
    assert cli.main(["report", "--records", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"no records in {tmp_path}: looked for verify-*.jsonl and bench-*.jsonl" in message
    assert "`pytest verifications/`" in message


def test_two_runs_of_one_kind_a_missing_file_and_one_of_another_kind_are_named_errors(tmp_path):
    one, two = (save(tmp_path, f"{name}.jsonl", run("verify", [check()])) for name in "ab")
    with pytest.raises(HarnessError, match="are both of kind 'verify'"):
        write_from(tmp_path, [one, two])
    with pytest.raises(HarnessError, match="no such file"):
        write_from(tmp_path, [tmp_path / "none.jsonl"])
    with pytest.raises(HarnessError, match="kind 'train'; expected one of verify, bench"):
        write_from(tmp_path, [save(tmp_path, "c.jsonl", run("train", []))])


def test_a_session_writes_its_report_beside_its_records(tmp_path):
    save(tmp_path / "records", "verify-20261122T153000Z.jsonl", run("verify", [check()]))
    assert write_latest(tmp_path)[0] == tmp_path / "index.md"


def test_records_that_cannot_be_read_are_named_on_the_page_and_cost_no_other(tmp_path):
    """Damaged, of another version, and empty: of the same subject, newer or older than the run on the page."""
    records = tmp_path / "records"
    own = save(records, "verify-20261122T100000Z.jsonl", run("verify", [check()]))
    older = save(records, "bench-20261121T100000Z.jsonl", run("bench", bench_rows()[:1]))
    damaged = save(records, "bench-20261122T090000Z.jsonl", run("bench", bench_rows()[:1]))
    damaged.write_text(damaged.read_text().replace('{"kind": "comparison"', "{{", 1))
    save(records, "verify-20261121T110000Z.jsonl", run("verify", [check()], schema=99))
    (records / "verify-20261120T100000Z.jsonl").write_text("")
    write_latest(tmp_path, of=[own])
    assert "> left out: " in (tmp_path / "index.md").read_text(encoding="utf-8")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "verify-20261120T100000Z.jsonl:1: expected a header row" in text
    assert "bench-20261122T090000Z.jsonl:2: not a JSON line" in text
    assert "verify-20261121T110000Z.jsonl:1: schema 99, this version reads 1" in text
    assert older.exists()
    assert "Benchmarked 2026-11-22" in text, "of the run before the damaged one"


def test_the_newest_run_that_can_be_read_is_reported_and_the_newer_file_is_named(tmp_path):
    records = tmp_path / "records"
    save(records, "verify-20261121T100000Z.jsonl", run("verify", [check()]))
    (records / "verify-20261122T100000Z.jsonl").write_text("\0\1\nno record\n")
    assert cli.main(["report", "--records", str(records), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "verify-20261122T100000Z.jsonl:1: not a JSON line" in text
    assert "The one check that was judged passes" in text


def test_only_records_that_cannot_be_read_are_one_clear_error(tmp_path):
    save(tmp_path / "records", "verify-20261122T100000Z.jsonl", run("verify", [check()], schema=99))
    with pytest.raises(HarnessError, match="schema 99, this version reads 1"):
        write_latest(tmp_path)


def test_the_html_page_has_earlier_runs_of_the_same_subject_alone(tmp_path):
    records = tmp_path / "records"
    for day, subject, verdict in (
        (19, "mine.py:GPT", "pass"),
        (20, "other.py:GPT", "fail"),
        (21, "mine.py:GPT", "fail"),
    ):
        started = f"2026-11-{day}T10:00:00Z"
        rows = run("verify", [check(verdict=verdict, subject=subject)], subject=subject, started=started)
        save(records, f"verify-202611{day}T100000Z.jsonl", rows)
    later = run("verify", [check(subject="mine.py:GPT")], subject="mine.py:GPT", started="2026-11-23T10:00:00Z")
    save(records, "verify-20261123T100000Z.jsonl", later)
    own = run("verify", [check(subject="mine.py:GPT")], subject="mine.py:GPT", started="2026-11-22T10:00:00Z")
    write_latest(tmp_path, of=[save(records, "verify-20261122T100000Z.jsonl", own)])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    history = text[text.index('id="history"') :]
    assert "2026-11-21 10:00 UTC" in history
    assert "2026-11-19 10:00 UTC" in history
    assert "2026-11-20" not in history, "of another subject"
    assert "2026-11-23" not in history, "later than the run on the page"
    assert '<tr id="changed-structure-shapes">' in history


def test_a_run_of_claims_alone_keeps_the_verification_on_the_html_page(tmp_path):
    whole = save(tmp_path / "records", "verify-20261122T100000Z.jsonl", run("verify", [check()]))
    own = save(tmp_path / "records", "verify-20261122T110000Z.jsonl", run("verify", claim_rows()[:1]))
    write_latest(tmp_path, of=[own])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "The one check that was judged passes" in text
    assert "Of 1 claim 1 holds." in text
    whole.unlink()
    write_latest(tmp_path, of=[own])
    assert "Of 1 claim 1 holds." in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("there_is_one", [True, False])
def test_open_shows_the_html_page_or_says_where_it_is(tmp_path, monkeypatch, capsys, there_is_one):
    save(tmp_path / "records", "verify-20261122T100000Z.jsonl", run("verify", [check()]))
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or there_is_one)
    assert (
        cli.main(["report", "--records", str(tmp_path / "records"), "--output", str(tmp_path / "out"), "--open"]) == 0
    )
    assert opened == [(tmp_path / "out" / "index.html").as_uri()]
    said = f"no browser could be opened here: open {tmp_path / 'out' / 'index.html'}"
    assert (said in capsys.readouterr().out) != there_is_one
