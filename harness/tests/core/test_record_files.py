"""Records survive what a run can die of, and NaN survives JSON."""

import json
import math

import pytest

from harness.core.errors import HarnessError
from harness.core.record_files import RecordWriter, decode, encode, read


def recorder(tmp_path):
    return RecordWriter(tmp_path / "records" / "verify-1.jsonl", {"run": "verify"})


def test_what_is_written_is_read_back(tmp_path):
    writer = recorder(tmp_path)
    writer.write({"kind": "record", "verdict": "fail", "value": {"block 0": math.nan, "block 1": 0.5}})
    writer.close({"complete": True})
    header, record, footer = read(writer.path)
    assert header["run"] == "verify"
    assert math.isnan(record["value"]["block 0"])
    assert footer["counts"] == {"fail": 1}


def test_every_line_is_json_as_the_standard_has_it(tmp_path):
    """Python's own `NaN` and `Infinity` are no JSON: other languages refuse the whole line."""
    writer = recorder(tmp_path)
    writer.write({"kind": "record", "value": [math.nan, math.inf, -math.inf]})

    def refuse(word):
        raise AssertionError(word)

    for line in writer.path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.1, 3, True, None, "NaN", ["a", {"b": math.inf}]])
def test_encode_and_decode_are_inverse(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_a_record_is_on_disk_before_the_run_ends(tmp_path):
    writer = recorder(tmp_path)
    writer.write({"kind": "record", "verdict": "pass"})
    assert len(read(writer.path)) == 2


def test_a_last_line_that_was_cut_is_dropped_and_the_rest_is_kept(tmp_path):
    writer = recorder(tmp_path)
    writer.write({"kind": "record", "verdict": "pass"})
    writer.path.write_text(writer.path.read_text() + '{"kind": "rec')
    assert [row["kind"] for row in read(writer.path)] == ["header", "record"]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path):
    writer = recorder(tmp_path)
    writer.write({"kind": "record"})
    lines = writer.path.read_text().splitlines()
    writer.path.write_text("\n".join([lines[0], "{oops", lines[1]]))
    with pytest.raises(HarnessError, match=r"verify-1\.jsonl:2: not a JSON line"):
        read(writer.path)


@pytest.mark.parametrize("content", ["", '{"kind": "record"}\n', '{"kind": "header", "schema": 99}\n'])
def test_a_file_that_is_no_record_file_is_refused(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(HarnessError):
        read(path)


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x0cb", "half a character: \udce9", 'quote " and \\'])
def test_a_text_of_any_characters_is_one_line(tmp_path, text):
    """U+2028 in a message once made a run's own records unreadable, and a path that is no UTF-8 ended the run."""
    writer = recorder(tmp_path)
    writer.write({"kind": "record", "message": text})
    writer.write({"kind": "record", "message": "next"})
    assert [row.get("message") for row in read(writer.path)][2] == "next"


def test_an_existing_record_file_is_never_overwritten(tmp_path):
    recorder(tmp_path)
    with pytest.raises(FileExistsError):
        recorder(tmp_path)
