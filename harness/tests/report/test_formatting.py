"""Values as text."""

import pytest

from harness.report import formatting


@pytest.mark.parametrize(
    ("median", "spread", "words"),
    [
        (1.427, 0.026, "1.427 ± 0.026 s"),
        (0.0123, 0.0004, "12.30 ± 0.40 ms"),
        (3.2e-5, 4.1e-7, "32.00 ± 0.41 µs"),
        (125.0, 14.0, "125 ± 14 s"),
        (2.0, 0.0, "2.000 ± 0.000 s"),
        (2.0, None, "2 s"),
        (None, None, ""),
    ],
)
def test_a_time_has_its_spread_and_as_many_digits_as_that_allows(median, spread, words):
    assert formatting.timing(median, spread) == words


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict", "words"),
    [
        (1.31, 1.28, 1.34, "SLOWER", "1.31x slower [1.28, 1.34]"),
        (0.42, 0.40, 0.45, "FASTER", "2.38x faster [2.22, 2.50]"),
        (1.0, 0.99, 1.013, "SAME", "same within 1.3% [0.990, 1.013]"),
        (1.02, 0.95, 1.09, "UNRESOLVED", "1.02x slower [0.95, 1.09] (inconclusive)"),
        (0.98, 0.95, 1.05, "UNRESOLVED", "1.02x faster [0.95, 1.05] (inconclusive)"),
        (1.001, 0.95, 1.09, "UNRESOLVED", "1.00x [0.95, 1.09] (inconclusive)"),
        (None, None, None, None, "inconclusive"),
    ],
)
def test_a_ratio_is_worded_by_its_verdict(ratio, low, high, verdict, words):
    assert formatting.ratio({"ratio": ratio, "low": low, "high": high, "verdict": verdict}) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (124439808, "124,439,808"),
        (0.28361, "0.2836"),
        (2.1e-6, "2.1e-6"),
        (1234.56, "1,234.6"),
        (0.0, "0"),
        (True, "true"),
        (None, "nothing"),
        (float("nan"), "nan"),
        ({"a": 1, "b": 2.5}, "a: 1, b: 2.5"),
        ([1, 2, 3, 4, 5, 6], "[1, 2, 3, 4, … (6 in all)]"),
    ],
)
def test_a_value_is_written_as_a_person_reads_it(value, words):
    assert formatting.number(value) == words


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.81, 0.79, 0.83, "81% [79, 83]"),
        (0.0281, None, None, "2.8%"),
        (0.0021, 0.002, 0.0022, "0.21% [0.20, 0.22]"),
        (1.31, 1.29, 1.33, "131% [129, 133]"),
        (float("nan"), 0.1, 0.2, ""),
    ],
)
def test_a_share_is_in_percent_with_its_interval(value, low, high, words):
    assert formatting.percent(value, low, high) == words


@pytest.mark.parametrize(
    ("name", "value", "head", "words"),
    [
        ("compile_seconds", 41.8, "compile", "41.8 s"),
        ("compile_seconds", 0.0, "compile", "0 s"),
        ("cache_bytes", 3785359, "cache", "3.61 MiB"),
        ("break_even_calls", 1195.0, "break even calls", "1,195"),
        ("accepted_share", 0.734, "accepted", "73%"),
        ("tokens_per_second", 220386.4, "tokens", "220,386/s"),
        ("model_flops", 20_017_152, "model", "20 MFLOP"),
        ("mfu", 0.0126, "mfu", "1.3%"),
        ("perplexity", 31.0417, "perplexity", "31.04"),
        ("note", "a`b", "note", "a`b"),
    ],
)
def test_a_plain_number_is_in_the_unit_that_its_name_ends_in(name, value, head, words):
    assert formatting.without_unit(name) == head
    assert formatting.quantity(name, value) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(402653184, "384 MiB"), (3785359, "3.61 MiB"), (1047527424, "999 MiB"), (12, "12 B"), (None, "")],
)
def test_memory_is_in_binary_units(size, words):
    assert formatting.memory(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.31, "0.31 s"), (92.3, "1 min 32 s"), (59.99, "60.0 s"), (7300, "2 h 1 min")]
)
def test_a_duration_is_in_minutes_where_it_is_long(seconds, words):
    assert formatting.duration(seconds) == words
