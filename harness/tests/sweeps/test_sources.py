"""The Markov source's entropy is known, and the validation part is exactly what is said."""

import pytest

from harness.core.errors import HarnessError
from harness.sweeps.plan_file import Source
from harness.sweeps.sources import graded_source, validation_floor, validation_fraction, write_source

SOURCE = Source("markov", 16, (), symbols=32, characters=60_000)


def test_the_text_is_written_once_and_has_the_entropy_of_the_source(tmp_path):
    known = write_source(tmp_path, SOURCE, validation_tokens=20_000)
    assert (known.characters, known.vocabulary_size) == (60_000, 32)
    assert known.entropy < known.unigram_entropy
    assert known.floor == pytest.approx(known.entropy, abs=0.03)  # 20,000 draws of about 1 nat: 0.007
    before = known.path.stat().st_mtime_ns
    assert write_source(tmp_path, SOURCE, validation_tokens=20_000) == known
    assert known.path.stat().st_mtime_ns == before


def test_another_text_of_the_same_name_is_another_file(tmp_path):
    """A file was named by its stem alone, so what was there was trained on under the digest of the new text."""
    known = []
    for number in (1, 2):
        own = tmp_path / str(number) / "notes.txt"
        own.parent.mkdir()
        own.write_text(f"text {number}; " * 100)
        known.append(write_source(tmp_path / "texts", Source("text", 16, (), text=str(own)), validation_tokens=100))
        assert known[-1].path.read_text() == own.read_text()
    assert known[0].path != known[1].path
    assert known[0].digest != known[1].digest


@pytest.mark.parametrize("characters", [1000, 1_115_394, 4_500_000, 30_000_000])
def test_the_fraction_leaves_exactly_the_validation_part(characters):
    for tokens in (100, 333, 65_536 if characters > 200_000 else 400):
        assert characters - int(characters * (1 - validation_fraction(characters, tokens))) == tokens


def test_the_floor_is_the_likelihood_of_the_validation_part_alone():
    source = graded_source(8, spectrum=1.0, spread=2.0)
    text = source.text(400, seed=3)
    assert validation_floor(source, text[:200] + text, 400) == validation_floor(source, text, 400)
    assert validation_floor(source, text, 400) != validation_floor(source, text, 200)


def test_a_text_that_is_shorter_than_two_validation_parts_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="has 60,000 characters; expected at least 80,000"):
        write_source(tmp_path, SOURCE, validation_tokens=40_000)
