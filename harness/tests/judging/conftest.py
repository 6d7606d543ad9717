"""A folder with one suite, in which a subject is judged by pytest as its author would."""

import pytest

SUITE = """\
[suite]
title = "Small"
about = "One check that calls nothing, and four that do."

[[check]]
name = "counted"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_576 }
why = "it is"
source = "closed form"

[[check]]
name = "parity"
measure = "parity"
parameters = { size = "debug" }
matrix = { compare = ["blocks", "logits", "loss", "gradients"] }
expect = { noise = "rounding" }
why = "it is to be GPT-2"
source = "this test"
"""


@pytest.fixture
def project(pytester):
    """A folder with one suite in it."""
    (pytester.mkdir("verifications") / "small.toml").write_text(SUITE)
    return pytester
