"""A file is written whole or stays as it was."""

import pytest

from harness.core.whole_file import write_whole


def test_a_file_that_cannot_be_written_whole_stays_as_it_was_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "page.md"
    write_whole(path, "whole: ü")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half of it, and then \ud800")
    assert path.read_text(encoding="utf-8") == "whole: ü"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "\ud800", errors="replace")
    assert path.read_text(encoding="utf-8") == "?"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "page.md"]
