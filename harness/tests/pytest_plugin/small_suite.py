"""A folder of a user with one suite of three checks, and the records of its run."""

from harness.core.record_files import read

SUITE = """\
[suite]
title = "Small"
about = "Three checks: one passes, one fails, one is skipped."

[[check]]
name = "right"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_576 }
why = "it is"
source = "closed form"

[[check]]
name = "wrong"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_577 }
why = "one too many, on purpose"
source = "this test"

[[check]]
name = "lacking"
measure = "attention_arms"
parameters = { size = "debug", attention = "spiral", against = "naive", compare = "outputs" }
expect = { noise = "rounding" }
why = "nobody has a spiral attention"
source = "this test"
"""


def records(project):
    (path,) = sorted((project.path / "reports" / "records").glob("verify-*.jsonl"))
    return read(path)
