"""Records with hostile text, of another version or of another shape."""

import html
import re

import pytest

from harness.report import formatting, page, write
from harness.report.markdown import code, escape, prose
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.sample_benchmark import bench_rows
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check, verify_rows

HOSTILE = (
    "x|y `z` <script>alert(1)</script>\n# H1\n\n- **b** [l](http://e) ![i](http://e) [f]: u $\\frac{1}{0}$ ~~s~~ "
    "\x1b[31mred\x1b[0m \u202e &amp; \\| _u_ __v__ ``` \ud800 名前 | end"
)


def hostile_runs():
    verify, bench = verify_rows(wrong=True), bench_rows()
    for row in verify:
        row |= dict.fromkeys(("message", "why", "source", "found", "suite", "check", "rerun", "id", "unit"), HOSTILE)
        row["where"] = [HOSTILE]
        row["parameters"] = {**row["parameters"], HOSTILE: HOSTILE}
        if row["measure"] == "activation_std":
            row["value"] |= {"block 3": float("nan"), "block 4": float("inf"), "block 5": 0.0, HOSTILE: HOSTILE}
        for found in row["details"].get("comparisons", []):
            found |= {"where": HOSTILE, "float64": float("nan"), "verdict": HOSTILE}
    for row in bench:
        row |= {"metric": HOSTILE, "what": f"exponent of memory {HOSTILE}", "expected": HOSTILE, "points": HOSTILE}
        if row["kind"] == "held":
            row |= {"arm": row["arm"] + HOSTILE, "found": float("nan") if row["arm"] == "flash" else 1.0}
            continue
        row |= {"title": HOSTILE, "axis": row["axis"] and HOSTILE, "control": row["control"] + HOSTILE}
        row |= {"device": HOSTILE, "load": float("nan"), "notes": [HOSTILE, None]}
        for ceiling in row.get("ceilings", []):
            ceiling |= {"name": ceiling["name"] + HOSTILE, "seconds": [None, float("nan"), HOSTILE]}
        for arm in [*row["arms"], *row["ratios"]]:
            arm |= {key: arm[key] + HOSTILE for key in ("arm", "against") if key in arm}
        for number, arm in enumerate(row["arms"]):
            arm["verified"]["message"] = HOSTILE
            if "extras" in arm:
                arm["extras"] = {HOSTILE: HOSTILE, "compile_seconds": float("nan"), "none": None, "_bytes": -1}
                arm["witness"] = {"products": {HOSTILE: HOSTILE}, "attention": [HOSTILE], "compiled": HOSTILE}
                arm["ceiling"] = {"name": HOSTILE, "regime": HOSTILE, "fraction": (float("nan"), 0.0, 1e9)[number % 3]}
                arm["warm"] = {"reached": False, "calls": HOSTILE}
                arm |= {"flops": (float("inf"), -1.0, 1e12, None)[number % 4], "error": float("nan")}
    return run("verify", verify, subject=HOSTILE), run("bench", bench, subject=HOSTILE)


def test_a_hostile_message_neither_breaks_the_page_nor_becomes_markup():
    text = page(*hostile_runs())
    assert "<script" not in text
    tables = re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert not re.search(r"^# H1|^- \*\*b", text, flags=re.MULTILINE)


@pytest.mark.parametrize("render", [escape, prose, code])
def test_escaped_text_renders_as_itself(render):
    markdown_it = pytest.importorskip("markdown_it")
    markdown = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rendered = markdown.render(f"| a | b |\n| --- | --- |\n| x {render(HOSTILE)} | c |\n")
    assert "<td>c</td>" in rendered
    cell = re.search(r"<td>x (.*?)</td>", rendered, flags=re.DOTALL)[1]
    assert not re.findall(r"<(?!/?code)", cell)
    shown = html.unescape(re.sub(r"</?code>", "", cell))
    expected = formatting.plain(HOSTILE)
    assert shown == (expected if render is not prose or expected.count("`") % 2 else expected.replace("`", ""))


def test_hostile_records_still_give_every_figure(tmp_path):
    files = write(tmp_path, *hostile_runs())
    names = {path.name for path in files}
    assert {"activations.png", "parity.svg", "precision.png", "checks.csv"} <= names
    assert all(path.stat().st_size > 0 for path in files)


def test_code_that_looks_like_code_stays_code():
    assert prose("run `make verify` <now>") == "run `make verify` &lt;now&gt;"
    assert prose("an odd ` tick") == "an odd &#96; tick"
    assert code("a|b") == "<code>a&#124;b</code>"


def test_a_measure_that_the_report_does_not_know_is_in_the_table_of_checks(tmp_path):
    row = check(measure="of_tomorrow", value={"a": 1.5, "b": float("nan")}, details={"comparisons": 3, "predicted": []})
    write(tmp_path, run("verify", [row, {"kind": "of tomorrow"}]), None)
    assert "of_tomorrow" in (tmp_path / "tables" / "checks.csv").read_text(encoding="utf-8")


def test_records_of_another_shape_are_no_reason_to_fail(tmp_path):
    bare = {"kind": "record", "measure": "activation_std", "value": {"a": "x", "b": None, "c": 1e-300}}
    odd = {"kind": "comparison", "comparison": None, "arms": [None, {"arm": None}], "ratios": 3}
    write(tmp_path, [{"kind": "header"}, bare, {"kind": "record"}], [{"kind": "header"}, odd])


@pytest.mark.parametrize("odd", [None, True, 10**400, "x", [1], {"a": []}], ids=lambda odd: repr(odd)[:9])
def test_a_value_of_another_type_anywhere_is_no_reason_to_fail(odd):
    """One of a list as a suite, an integer beyond any float, a place that is True: each has cost a whole page."""
    checks, comparison = verify_rows(wrong=True)[-5:], bench_rows()[0]
    for key in {*checks[0], "found", "expected_text", "claim", "declared"} - {"kind"}:
        page(run("verify", [{**row, key: odd} for row in checks]), None)
    for key in set(comparison) - {"kind"}:
        page(None, run("bench", [{**comparison, key: odd}]))
    for part in ("arms", "ratios"):
        for key in comparison[part][0]:
            page(None, run("bench", [{**comparison, part: [{**row, key: odd} for row in comparison[part]]}]))
    page(
        run("verify", [], ending={"excepted": odd, "wall_seconds": odd}), run("bench", [], ending={"false_alarms": odd})
    )


def test_ceilings_of_one_kind_alone_make_no_roofline():
    """Without a bandwidth, or without products, there is no line to draw."""
    rows = [row for row in bench_rows() if row.get("ceilings")]
    for kind in ("flops", "moved_bytes"):
        found = [{**row, "ceilings": [each for each in row["ceilings"] if each[kind] is None]} for row in rows]
        assert not [plot for plot in plots(None, RunRecords.of(run("bench", found))) if plot.name == "roofline"]


OLD = {
    *("kind", "comparison", "title", "subject", "axis", "point", "metric", "control", "arms", "ratios"),
    *("arm", "twin_of", "verified", "seconds", "median_seconds", "spread_seconds", "tokens_per_second", "positions"),
    *("positions_closed_form", "peak_memory_bytes", "peak_memory_ledger", "ledgers", "against", "ratio", "low"),
    *("high", "verdict", "smallest_resolvable", "rounds", "message", "allocator", "closed form"),
}


def as_before(value):
    if isinstance(value, dict):
        return {
            key: as_before(item) for key, item in value.items() if key in OLD or key in ("allocator", "closed form")
        }
    return [as_before(item) for item in value] if isinstance(value, list) else value


def test_records_of_an_older_run_still_make_a_report(tmp_path):
    rows = [as_before(row) for row in bench_rows() if row["kind"] == "comparison"]
    files = write(tmp_path, None, run("bench", rows))
    names = {path.name for path in files}
    assert {"precision.png", "attention-forward.png", "generation-decode-latency.png", "compile.csv"} <= names
    assert not {"roofline.png", "ceilings.csv", "held.csv"} & names
    assert "| 1.40x faster [1.37, 1.44] |" in files[0].read_text(encoding="utf-8")
