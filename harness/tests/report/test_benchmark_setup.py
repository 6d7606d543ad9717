"""The head of the part on benchmarks, what its words mean, and how an arm's memory and error are shown."""

import re

import pytest

from harness.report import formatting, page
from harness.report.benchmarks import setup
from harness.report.run_records import RunRecords
from harness.tests.report.sample_benchmark import bench_rows, comparison, costed, decode
from harness.tests.report.sample_run import run


def page_of(rows):
    return page(None, run("bench", rows))


def test_the_head_says_model_machine_comparisons_topics_and_rounds():
    rows = [{**row, "parameters": 124_439_808} for row in bench_rows()]
    for row in rows:
        for arm in row.get("arms", ()):
            arm["computes"] = "bfloat16" if arm["arm"] == "bf16" else "float32"
    head = page_of(rows).split("## Benchmarks")[1].split("<details>")[0]
    assert "at the size 124M (124,439,808 parameters), float32 unless an arm's name says otherwise; on " in head
    assert "2 cores, 2 threads, 23.5 GiB, torch " in head
    assert "30 comparisons in 6 topics: a topic is a file" in head
    assert "took turns, in 12 rounds." in head


def test_the_head_of_records_without_anything_claims_nothing():
    row = {"kind": "comparison", "comparison": "a", "arms": [{"arm": "x", "seconds": "none", "computes": 3}]}
    text = setup.setup(RunRecords(comparisons=(row,)))
    assert text.startswith(
        "Timed: `an unnamed subject`, 3 unless an arm's name says otherwise; on an unknown processor."
    )
    assert "rounds" not in text


def test_every_word_is_explained_once_and_linked_before_its_first_use():
    text = page_of(bench_rows())
    for word in ("arm", "control", "peer", "round", "A/A pair", "error, allowed", "share of ceiling"):
        assert text.count(f"- **{word}**:") == 1
    assert text.index("](#words)") < text.index("## Benchmarks") < text.index('<a id="words"></a>')


def test_the_page_says_between_which_rates_the_ceilings_of_its_comparisons_lie():
    rows = decode()
    for number, row in enumerate(rows):
        row["ceilings"][2]["rate"] = 24e9 + number * 1e9
    assert rows[0]["ceilings"][2]["name"].startswith("read")
    assert "(*bandwidth*, here 24 GB/s to 28 GB/s)" in page_of(rows)
    for row in rows:
        row["ceilings"] = []
    assert "(*bandwidth*)" in page_of(rows)


def test_memory_is_one_figure_where_its_parts_were_measured():
    row = comparison("generation", "decode", {"cached": 1.0, "growing": 1.0, "engine": 1.0})
    for arm, weights in zip(row["arms"], (475, 475, None), strict=True):
        arm |= {"peak_memory_bytes": 2**20, "extras": {"cache_bytes": 72 * 2**20}}
        if weights:
            arm["extras"]["weights_bytes"] = weights * 2**20
    row["arms"][1]["peak_memory_bytes"] = None
    lines = page_of([row]).splitlines()
    assert any("| memory in all | weights | cache | peak of a call |" in line for line in lines)
    assert any("| cached |" in line and "| 548 MiB | 475 MiB | 72 MiB | 1 MiB |" in line for line in lines)
    assert any("| growing |" in line and "|  | 475 MiB | 72 MiB |  |" in line for line in lines), "no sum of some parts"
    assert any("| engine |" in line and "|  |  | 72 MiB | 1 MiB |" in line for line in lines)


def test_the_allowed_error_stands_beside_the_error():
    row = costed(comparison("precision", "decode", {"fp32": 2.0, "int4": 1.0}), flops=1e9, moved=1e9)
    for arm, error, allowed in zip(row["arms"], (7e-7, 0.2), (9.4e-6, 0.22), strict=True):
        arm |= {"error": error, "allowed": allowed}
    text = page_of([row])
    assert "| error | allowed |" in text
    assert "| 7e-7 | 9.4e-6 |" in text
    assert "| 0.2 | 0.22 |" in text


def test_the_page_says_what_an_arm_is_and_why_it_is_compared():
    row = comparison("attention", "forward", {"naive": 2.0, "looped": 1.0}, twin=True)
    row["why"] = "Scores are stored, or not."
    for arm in row["arms"]:
        arm["description"] = {"looped": "one head after the other"}.get(arm["arm"], "all heads at once")
    text = page_of([row])
    assert "- **forward**: Scores are stored, or not." in text
    assert "- Arms: *naive* all heads at once; *looped* one head after the other." in text, "a twin is the same"


@pytest.mark.parametrize(
    ("point", "axis", "cell", "sentence"),
    [
        (1, "tokens", "1 token", "at 1 token"),
        (1024, "tokens", "1,024 tokens", "at 1,024 tokens"),
        (32, "batch", "batch of 32", "with a batch of 32"),
        (256, "prompt", "prompt of 256 tokens", "with a prompt of 256 tokens"),
        (960, "context", "context of 960 tokens", "with a context of 960 tokens"),
        (24, "new tokens", "24 new tokens", "for 24 new tokens"),
        (480, "rate", "480 requests a minute", "at 480 requests a minute"),
        (2, "experts", "2 experts", "with 2 experts"),
        (8, "lookahead", "8 drafts a round", "with 8 drafts a round"),
        (8, "widgets", "8 widgets", "at 8 widgets"),
        (8, "T", "T = 8", "at T = 8"),
        (8, None, "8", "at 8"),
    ],
)
def test_a_point_is_written_as_a_person_would(point, axis, cell, sentence):
    assert formatting.at(point, axis) == cell
    assert formatting.where(point, axis) == sentence


def test_the_point_of_an_expected_metric_is_in_words():
    row = {"kind": "held", "comparison": "generation", "metric": "generate", "arm": "cached", "found": 0.5}
    row["what"] = "time over uncached's at new_tokens=24"
    rows = [comparison("generation", "generate", {"uncached": 2.0, "cached": 1.0}), row]
    assert "| time over uncached's for 24 new tokens |" in page_of(rows)


def test_every_line_of_the_overview_names_its_topic():
    """The second line of a topic had none, so that sorting tore the two apart."""
    overview = page_of(bench_rows()).split("| topic | result |")[1].split("\n\n")[0].splitlines()[2:]
    topics = [re.match(r"\| \[([^]]+)\]\(#comparison-", line) for line in overview]
    assert all(topics)
    assert len(topics) > len({topic[1] for topic in topics})


def test_a_headline_of_several_controls_says_which_one_each_arm_is_compared_with():
    rows = [
        comparison("training", "optimizer", {"fused": 1.0, "foreach": 6.0}),
        comparison("training", "loss", {"subject": 2.0, "hf": 2.5}),
    ]
    text = page_of(rows)
    assert re.search(r"foreach 6\.00x slower \[[^]]+\] in optimizer, against fused; hf 1\.25x slower", text)


def test_the_shares_of_every_position_of_a_draft_are_in_the_table_of_all_rows_only():
    row = comparison("speculation", "good draft", {"alone": 2.0, "draft": 1.0, "exit": 1.0})
    for arm in row["arms"]:
        arm["extras"] = {"acceptance_share": 0.9, "acceptance_at_1_share": 0.8, "acceptance_at_2_share": 1.0}
    text = page_of([row])
    assert "| acceptance |" in text
    assert "acceptance at" not in text


def test_a_comparison_that_ran_before_the_model_was_built_does_not_repeat_the_size():
    """Attention alone needs no model: the head said "at the size 124M, 124M (124,439,808 parameters)"."""
    rows = ({"size": "124M"}, {"size": "124M", "parameters": 124_439_808}, {"size": "124M"})
    assert "at the size 124M (124,439,808 parameters); on" in setup.setup(RunRecords(comparisons=rows))
