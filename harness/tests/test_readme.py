"""What the documents show is what a run prints, and what they name exists."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from harness.core.record_files import read
from harness.diagnosis import diagnose
from harness.pytest_plugin.terminal_summary import by_suite, diagnosis
from harness.subjects.adapters import adapt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "verifications/README.md", "benchmarks/README.md", "reports/README.md")


def test_the_diagnosis_in_the_readme_is_the_one_that_its_gpt_gets(tmp_path, monkeypatch):
    """Numbers may differ in their digits from machine to machine; the words and the line may not."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).with_name("readme_gpt.py"), "my_gpt.py")
    printed = [line.text for line in diagnosis(diagnose(adapt("my_gpt.py:GPT")).as_row())]
    lines = re.search(r"=+ diagnosis =+\n(.*?)\n=+ what to do", README, re.S).group(1).splitlines()
    lines = lines[: next(number for number, line in enumerate(lines) if "explain" in line)]  # by a run of the checks
    assert len(lines) > 2
    assert [_without_digits(line) for line in printed[: len(lines)]] == [_without_digits(line) for line in lines]


def test_the_verdicts_in_the_readme_are_those_of_the_suites(shipped):
    """The README once showed a suite too few, and 159 passed where 171 did."""
    shown = {line.split()[0]: _numbers(line) for line in _verdicts_in_readme()}
    assert {suite: sum(counts.values()) for suite, counts in shown.items()} == Counter(
        c.suite for c in shipped.values()
    )
    total = Counter(re.search(r"=+ (\d+) passed, (\d+) skipped in", README).groups())
    assert total == Counter(str(sum(counts[word] for counts in shown.values())) for word in ("pass", "skip"))


def test_the_verdicts_in_the_readme_are_those_of_the_last_run_of_make_verify(shipped):
    """CI runs `make verify` first, and so has such a run on record."""
    rows = _last_whole_run(shipped)
    if rows is None:
        pytest.skip("no whole run of the suites as they are is in reports/records: run `make verify` first")
    printed = {line.text.split()[0]: _numbers(line.text) for line in by_suite(rows)}
    shown = {line.split()[0]: _numbers(line) for line in _verdicts_in_readme()}
    # Claims about runs are skipped in a clean checkout, and judged after `make lessons` or `make bench`.
    assert sum(printed.pop("claims").values()) == sum(shown.pop("claims").values())
    assert printed == shown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_the_documents_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:harness|gpt|benchmarks|verifications)/[\w/-]*(?:\.\w+)?)", text))
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
    links = set(re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", text))
    assert not [link for link in sorted(links) if not ((ROOT / document).parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_heading_finds_it(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([\w/.-]*)#([\w-]+)\)", text):
        target = (ROOT / document).parent / link if link else ROOT / document
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_the_suites_are_those_in_the_list_of_suites():
    listed = re.findall(r"^\| `(\w+)\.toml` \|", (ROOT / "verifications/README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "verifications").glob("*.toml"))


def _verdicts_in_readme():
    return re.search(r"=+ verdict by suite =+\n(.*?)\n=+", README, re.S).group(1).splitlines()


def _numbers(line):
    """Count each verdict that a line shows; the time differs from run to run."""
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (pass|fail|error|skip)", line)})


def _last_whole_run(shipped):
    """The rows of the newest run of the reference that judged every check of today's suites, if there is one."""
    for path in sorted((ROOT / "reports/records").glob("verify-*.jsonl"), reverse=True):
        header, *rows = read(path)
        checks = [row for row in rows if row["kind"] == "record"]
        judged = {f"{row['suite']}::{row['id'].rpartition('::')[2]}" for row in checks}
        if header["subjects"] == ["gpt:GPT"] and judged == set(shipped) and rows[-1]["kind"] == "footer":
            return checks
    return None


def _without_digits(line):
    return re.sub(r"\d(\.\d)?e-\d\d", "#", line)
