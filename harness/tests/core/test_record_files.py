"""Record files: written row by row, readable after a run that was killed, and valid JSON with NaN."""

import functools
import json
import math

import pytest

from harness.core.errors import HarnessError
from harness.core.record_files import RecordWriter, decode, encode, read


def record_writer(tmp_path):
    return RecordWriter(tmp_path / "records" / "verify-1.jsonl", {"run": "verify"})


def test_rows_are_read_back_as_written(tmp_path):
    writer = record_writer(tmp_path)
    writer.write({"kind": "record", "verdict": "fail", "value": {"block 0": math.nan, "block 1": 0.5}})
    writer.close({"complete": True})
    header, record, footer = read(writer.path)
    assert header["run"] == "verify"
    assert math.isnan(record["value"]["block 0"])
    assert footer["counts"] == {"fail": 1}


def test_every_line_is_standard_json(tmp_path):
    """Python's own `NaN` and `Infinity` are not JSON: other languages reject the whole line."""
    writer = record_writer(tmp_path)
    writer.write({"kind": "record", "value": [math.nan, math.inf, -math.inf]})

    def refuse(word):
        raise AssertionError(word)

    for line in writer.path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.1, 3, True, None, "NaN", ["a", {"b": math.inf}]])
def test_encode_and_decode_are_inverse(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_a_record_is_in_the_file_before_the_run_ends(tmp_path):
    writer = record_writer(tmp_path)
    writer.write({"kind": "record", "verdict": "pass"})
    assert len(read(writer.path)) == 2


def test_an_incomplete_last_line_is_dropped_and_the_other_rows_are_read(tmp_path):
    writer = record_writer(tmp_path)
    writer.write({"kind": "record", "verdict": "pass"})
    writer.path.write_text(writer.path.read_text() + '{"kind": "rec')
    assert [row["kind"] for row in read(writer.path)] == ["header", "record"]


@pytest.mark.parametrize(
    "value",
    ['{"float": null}', '{"float": []}', '{"float": "1_0"}', "9" * 5000, "[" * 101 + "]" * 101, "[" * 10**5],
    ids=lambda value: value[:20],
)
def test_a_value_that_nobody_wrote_is_an_error_with_its_line(tmp_path, value):
    writer = record_writer(tmp_path)
    writer.close({})
    header, footer = writer.path.read_text().splitlines()
    writer.path.write_text(f'{header}\n{{"kind": "record", "value": {value}}}\n{footer}\n')
    with pytest.raises(HarnessError, match=r"verify-1\.jsonl:2: not a JSON line of a record"):
        read(writer.path)


def test_a_hundred_levels_are_read():
    value = functools.reduce(lambda inner, _: [inner], range(99), {"deepest": 0})
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    writer = record_writer(tmp_path)
    writer.write({"kind": "record"})
    lines = writer.path.read_text().splitlines()
    writer.path.write_text("\n".join([lines[0], "{oops", lines[1]]))
    with pytest.raises(HarnessError, match=r"verify-1\.jsonl:2: not a JSON line"):
        read(writer.path)


@pytest.mark.parametrize("content", ["", '{"kind": "record"}\n', '{"kind": "header", "schema": 99}\n'])
def test_a_file_that_is_not_a_record_file_is_an_error(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(HarnessError):
        read(path)


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x0cb", "an unpaired surrogate: \udce9", 'quote " and \\'])
def test_a_text_of_any_characters_is_written_as_one_line(tmp_path, text):
    """U+2028 in a message once made a run's records unreadable, and a path that is not UTF-8 ended the run."""
    writer = record_writer(tmp_path)
    writer.write({"kind": "record", "message": text})
    writer.write({"kind": "record", "message": "next"})
    assert [row.get("message") for row in read(writer.path)][2] == "next"


def test_an_existing_record_file_is_never_overwritten(tmp_path):
    record_writer(tmp_path)
    with pytest.raises(FileExistsError):
        record_writer(tmp_path)
