"""The HTML page: escaped everywhere, whole in itself, every link lands, and all that the records say is there."""

import base64
import hashlib
import itertools
import re

import pytest

from harness.report.history import Earlier
from harness.report.html.contents import user_lines
from harness.report.html.inline_svg import inline_svg
from harness.report.html.page import page
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.claims.sample_claims import claim_rows
from harness.tests.report.html import sample_pages
from harness.tests.report.html.parsed_page import ParsedPage
from harness.tests.report.sample_benchmark import bench_rows, comparison
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check, verify_rows

LARGEST = 2_000_000  # bytes, of a page that is sent by mail


@pytest.fixture(scope="module")
def wrong():
    return sample_pages.wrong()


@pytest.fixture(scope="module")
def hostile():
    return sample_pages.hostile()


@pytest.fixture(params=["wrong", "hostile"])
def text(request):
    return request.getfixturevalue(request.param)


def test_every_element_is_closed_in_order(text):
    found = ParsedPage(text)
    assert found.wrong == []
    assert found.open == []


def test_ids_differ_and_every_link_lands_on_one(text):
    found = ParsedPage(text)
    ids = found.values("id")
    assert sorted(ids) == sorted(set(ids))
    links = [link for link in found.values("href") if link]
    assert all(link.startswith("#") for link in links), "nothing leads out of the page"
    assert {link[1:] for link in links} <= set(ids)
    for key in ("aria-labelledby", "clip-path"):
        named = [
            name for value in found.values(key) for name in re.findall(r"[\w-]+(?=\)|\s|$)", value.replace("url", ""))
        ]
        assert set(named) <= set(ids)


def test_nothing_is_loaded_and_the_only_script_is_the_page_s(text):
    found = ParsedPage(text)
    assert not [tag for tag, _ in found.elements if tag in {"link", "img", "iframe", "object", "embed", "base", "form"}]
    assert found.values("src") == []
    assert "url(http" not in text
    assert "@import" not in text
    assert len(found.tags("script")) == 1
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]


def test_the_policy_allows_that_script_and_no_other(text):
    script = re.search(r"<script>(.*?)</script>", text, flags=re.DOTALL)[1]
    policy = next(each["content"] for each in ParsedPage(text).tags("meta") if each.get("http-equiv"))
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_hostile_text_is_shown_as_text(hostile):
    """Every name of these records has a script, an image and a link in it."""
    shown = "".join(ParsedPage(hostile).text)
    assert shown.count("<script>alert(1)</script>") > 50
    assert hostile.count("<script") == 1
    assert "<h1>" in hostile
    assert hostile.count("<h1") == 1
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile


def test_files_beside_the_page_are_not_named_on_it(wrong):
    """It is passed on without them: a link to a table as CSV would be shown as Markdown."""
    assert "](" not in wrong
    assert ".csv" not in wrong


def test_the_page_is_small_enough_for_mail(wrong):
    assert len(wrong.encode()) < LARGEST


def test_headings_go_down_one_level_at_a_time(wrong):
    levels = [int(tag[1]) for tag, _ in ParsedPage(wrong).elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_their_heads_have_scopes(wrong):
    found = ParsedPage(wrong)
    assert len(found.tags("caption")) == len(found.tags("table")) > 10
    assert all(each.get("scope") in {"col", "row"} for each in found.tags("th"))
    boxes = [each for each in found.tags("div") if each.get("role") == "region"]
    assert len(boxes) > 20
    assert all(each.get("aria-label") and each.get("tabindex") == "0" for each in boxes), "scrolled with the keyboard"


def test_pictures_have_a_title_and_a_description(wrong):
    found = ParsedPage(wrong)
    pictures = found.tags("svg")
    assert len(pictures) > 10
    for picture in pictures:
        assert picture["role"] == "img"
        title, description = picture["aria-labelledby"].split()
        assert {title, description} <= set(found.values("id"))


def test_the_first_screen_says_what_is_wrong_where_and_what_is_faster(wrong):
    top = wrong[: wrong.index('id="failures"')]
    for part in ("3 of 33 checks fail", "the exact (erf) GELU", "my_gpt.py:40", "self.act = nn.GELU()", "flash"):
        assert part in top, part
    assert '<span class="line marked"><span class="number">40 &gt;</span>    self.act = nn.GELU()</span>' in top
    assert "# &lt;b&gt;" in top


def test_every_check_is_on_the_page_with_its_command_and_a_link_of_its_own(wrong):
    rows = [*verify_rows(wrong=True), *claim_rows()]
    found = ParsedPage(wrong)
    ids, shown = found.values("id"), "".join(found.text)
    assert all(row["rerun"] in shown for row in rows)
    assert sum(name.startswith("check-") for name in ids) == len(rows)
    assert "check-structure-parameter-count-size-124m-tied-true" in ids
    assert "arm-precision-forward-512-bf16" in ids


def test_a_row_has_the_same_link_in_another_run(wrong):
    other = page(RunRecords.of(run("verify", verify_rows()[3:])), RunRecords.of(run("bench", bench_rows()[1:])))
    kept = {name for name in ParsedPage(other).values("id") if name.startswith(("check-", "arm-"))}
    assert kept <= set(ParsedPage(wrong).values("id"))


def test_tables_are_sorted_by_numbers_and_not_by_their_text(wrong):
    row = re.search(r'<tr id="arm-precision-forward-512-bf16">.*?</tr>', wrong, flags=re.DOTALL)[0]
    keys = [float(key) for key in re.findall(r'data-key="([^"]+)"', row)]
    assert any(key < 1 for key in keys), "a time in seconds, whatever unit is shown"


VERIFIED = RunRecords.of(run("verify", [*verify_rows(wrong=True), sample_pages.DIAGNOSIS]))


@pytest.mark.parametrize("plot", plots(VERIFIED, RunRecords.of(run("bench", bench_rows()))), ids=lambda plot: plot.name)
def test_every_picture_has_its_values_under_the_pointer(plot):
    svg = inline_svg(plot.svg(), name=plot.name, title=plot.title, description=plot.description)
    values = re.findall(r'<g class="value"><title>([^<]+)</title>', svg)
    assert values
    assert "values:" not in svg, "a line whose marks and texts differ in number"
    assert all(any(character.isdigit() for character in value) for value in values)


def test_a_picture_names_what_was_measured_there():
    (plot,) = [p for p in plots(RunRecords.of(run("verify", [sample_pages.DIAGNOSIS])), None) if p.name == "diagnosis"]
    svg = inline_svg(plot.svg(), name="a", title="t", description="d")
    assert "<title>h.0.mlp alone, given GPT-2's input: differs by 4e-4</title>" in svg


def test_ids_of_two_pictures_differ():
    one, two = (
        set(re.findall(r' id="([^"]+)"', inline_svg(plot.svg(), name=plot.name, title="t", description="d")))
        for plot in plots(RunRecords.of(run("verify", verify_rows(wrong=True))), None)[:2]
    )
    assert one
    assert two
    assert not one & two


def test_the_history_names_what_changed_and_when(wrong):
    history = wrong[wrong.index('id="history"') :]
    assert "2026-11-20 10:00 UTC" in history
    row = re.search(r'<tr id="changed-parity-full-size-on-text-compare-blocks">.*?</tr>', history)[0]
    assert re.findall(r"<td>(.*?)</td>", row) == ["fail", "pass", "2026-11-20 10:00 UTC"]
    cells = re.search(r'<tr id="history-precision-forward-512-tokens-bf16">.*?</tr>', history)[0]
    assert cells.count("1.40x faster") == 3, "this run and two earlier ones"


def test_without_earlier_runs_there_is_no_history():
    assert 'id="history"' not in page(RunRecords.of(run("verify", [check()])), None)


def test_a_check_is_compared_with_the_last_time_that_it_was_judged():
    """A later selection that did not judge it, or skipped it, hides nothing."""
    now = RunRecords.of(run("verify", [check(verdict="fail")]))
    earlier = [[check(verdict="skip")], [check("other")], [check()]]
    dated = tuple(
        RunRecords.of(run("verify", rows, started=f"2026-11-2{9 - n}T00:00:00Z")) for n, rows in enumerate(earlier)
    )
    assert "2026-11-27 00:00 UTC</td></tr>" in page(now, None, earlier=Earlier(dated))


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([check()], {"footer": False}, "Interrupted: 1 check was recorded."),
        ([], {"footer": False}, "Interrupted: 0 checks were recorded."),
        ([check(verdict="skip")], {}, "Nothing was judged: every check was skipped."),
        ([check()], {}, "The one check that was judged passes."),
    ],
)
def test_the_verdict_claims_no_more_than_was_judged(rows, options, words):
    text = page(RunRecords.of(run("verify", rows, **options)), None)
    assert words in text
    assert ('class="verdict passed"' in text) == ("passes" in words)


def test_the_same_records_give_the_same_page():
    records = RunRecords.of(run("verify", [*verify_rows(), sample_pages.DIAGNOSIS]))
    assert page(records, None) == page(records, None)


def test_what_was_not_measured_is_one_list_at_the_end():
    text = page(RunRecords.of(run("verify", [check()])), None)
    assert 'id="activations-at-initialisation"' not in text
    assert "No activations were measured" in text[text.index('id="not-in-this-report"') :]


def test_what_the_diagnosis_does_not_explain_comes_first():
    first, second = (check(name, verdict="fail", message=f"found {name}") for name in ("explained", "left"))
    diagnosis = {**sample_pages.DIAGNOSIS, "explained": [first["id"]]}
    text = page(RunRecords.of(run("verify", [first, second, diagnosis])), None)
    assert text.index('<details id="failure-structure-left"') < text.index('<details id="failure-structure-explained"')
    assert "The diagnosis explains 1 of these 2 failures" in text


@pytest.mark.parametrize("number", ["40", "", "x", "²"])  # a digit that is no number of a line
def test_a_finding_whose_line_is_no_number_has_its_text(number):
    lines = user_lines({"text": "x = 1"}, f"my_gpt.py:{number}")
    assert lines == [(40 if number == "40" else None, "x = 1", True)]


def test_the_top_has_each_topic_once_before_a_second_result_of_one():
    rows = [comparison("attention", metric, {"naive": 2.0 * n, "flash": 1.0 * n}, axis="tokens", point=n)
            for metric in ("forward", "layer") for n in (1, 2)]  # fmt: skip
    rows.append(comparison("peers", "forward", {"hf": 2.0, "subject": 1.0}, title="The subject and its peers"))
    text = page(None, RunRecords.of(run("bench", rows)))
    top = text[text.index('<h2 id="results">') : text.index("</ul>", text.index('<h2 id="results">'))]
    assert re.findall(r"<li><b>(.*?)\.</b>", top) == ["Attention", "The subject and its peers", "Attention"]


def test_the_verdict_says_what_is_wrong_and_where(wrong):
    verdict = wrong.split('<section class="verdict')[1].split("</section>")[0]
    assert (
        '<li>the exact (erf) GELU: <a href="#finding-gelu-erf-for-tanh"><code>my_gpt.py:40</code></a></li>' in verdict
    )


def test_the_verdict_names_no_declared_cause_and_counts_those_that_it_leaves_out():
    found = [
        {**sample_pages.DIAGNOSIS["findings"][0], "fault": f"fault-{n}", "source": f"a.py:{n}", "declared": n == 0}
        for n in range(6)
    ]
    diagnosis = {**sample_pages.DIAGNOSIS, "findings": found}
    text = page(RunRecords.of(run("verify", [*verify_rows(wrong=True), diagnosis])), None)
    verdict = text.split('<section class="verdict')[1].split("</section>")[0]
    assert re.findall(r"<code>(a\.py:\d)</code>", verdict) == ["a.py:1", "a.py:2", "a.py:3"]
    assert "2 more in the diagnosis" in verdict


def test_an_interval_in_a_table_is_not_broken_between_its_ends():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]
    assert re.search(
        r"<td data-key=\"0\.5\">2\.00x faster \[\d\.\d\d,\N{NO-BREAK SPACE}\d\.\d\d\]</td>",
        page(None, RunRecords.of(run("bench", rows))),
    )
