"""Programs that fit scaling laws: found in other people's styles, judged on tables whose law is known."""

import textwrap

import numpy as np
import pytest
import torch

from harness.core.errors import SubjectError
from harness.faults.catalogue import TECHNIQUES
from harness.judging.run_check import run
from harness.measures.scaling.known_tables import LAWS, known_table
from harness.oracle.scaling_law.parametric_fit import fit_laws
from harness.subjects.adapters import adapt
from harness.subjects.adapters.scaling_law import as_columns, as_exponent, as_law, as_sizes
from harness.subjects.protocols import AllocatesCompute, CountsTrainingFlops, FitsIsoFlops, FitsScalingLaw, ReadsRuns

ALL = (FitsScalingLaw, FitsIsoFlops, AllocatesCompute, CountsTrainingFlops, ReadsRuns)


def subject(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text("from gpt import GPT\nimport math\nimport numpy as np\nimport torch\n" + textwrap.dedent(text))
    return adapt(f"{path}:GPT")


def test_the_reference_and_the_specimen_have_every_ability():
    for spec in ("gpt:GPT", f"{TECHNIQUES / 'scaling.py'}:GPT"):
        assert [kind.__name__ for kind in ALL if not isinstance(adapt(spec), kind)] == []


def test_a_program_without_such_functions_is_skipped_by_name(tmp_path, shipped):
    record = run(shipped["scaling::training-flops"], subject(tmp_path, ""))
    assert record.verdict == "skip"
    assert "has no ability 'CountsTrainingFlops': Says what training costs" in record.message


def test_a_function_of_that_name_that_takes_something_else_is_skipped(tmp_path, shipped):
    mine = subject(
        tmp_path, "def estimate_flops(model, batch):\n    return 1\n\ndef load_runs(folder):\n    return []\n"
    )
    for name, said in (("training-flops", "has a parameter 'model'"), ("final-losses", "does not take the path")):
        record = run(shipped[f"scaling::{name}"], mine)
        assert record.verdict == "skip"
        assert said in record.message


@pytest.mark.parametrize(
    "text",
    [
        "def compute_optimal(C, E, A, B, alpha, beta):\n    {0}\n    return N, C / 6 / N\n",
        "def n_opt(flops, A, B, alpha, beta):\n    C = flops\n    {0}\n    return N\n",
        "def optimal_sizes(budget, fit):\n    C, (A, B) = budget, (fit['A'], fit['B'])\n"
        "    alpha, beta = fit['alpha'], fit['beta']\n"
        "    {0}\n    return dict(N_opt=N, D_opt=C / 6 / N)\n",
        "def optimal_allocation(compute, law):\n    C, A, B, alpha, beta = compute, law.A, law.B, law.alpha, law.beta\n"
        "    {0}\n    return dict(params=torch.tensor(N), tokens=np.float64(C / 6 / N))\n",
    ],
)
def test_an_allocation_is_found_in_every_style(tmp_path, shipped, text):
    closed = "N = (alpha * A / beta / B) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))"
    record = run(shipped["scaling::best-sizes,law=unequal"], subject(tmp_path, text.format(closed)))
    assert record.verdict == "pass", record.message


def test_a_function_that_needs_tensors_gets_them(tmp_path, shipped):
    text = """
    def fit_iso_flops(C, N, L):
        minima, logs = [], []
        for c in C.unique():
            x, y = N[C == c].log(), L[C == c]
            m = torch.stack([torch.ones_like(x), x, x * x], 1)
            _, b, a = torch.linalg.solve(m.T @ m, m.T @ y).tolist()
            minima.append(-b / 2 / a), logs.append(c.log().item())
        return dict(a=np.polyfit(logs, minima, 1)[0])
    """
    record = run(shipped["scaling::iso-flop-exponent"], subject(tmp_path, text))
    assert record.verdict == "pass", record.message


def test_a_class_has_such_functions_as_static_methods(tmp_path, shipped):
    text = "class Mine(GPT):\n    @staticmethod\n    def training_flops(n, d):\n        return 2 * n * d\n"
    mine = subject(tmp_path, text)
    record = run(shipped["scaling::training-flops"], adapt(mine.name.replace(":GPT", ":Mine")))
    assert record.verdict == "fail"
    assert record.details["hint"] == "2·N·D: the forward pass alone"


@pytest.mark.parametrize(
    ("answer", "law"),
    [
        ({"E": 1, "A": 2, "B": 3, "alpha": 4, "beta": 5}, (1, 2, 3, 4, 5)),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),
        (np.array([1, 2, 3, 4, 5]), (1, 2, 3, 4, 5)),
        (torch.tensor([1, 2, 3, 4, 5]), (1, 2, 3, 4, 5)),
        ({"irreducible_loss": 1, "A": 2, "B": 3, "alpha_N": 4, "alpha_D": 5}, (1, 2, 3, 4, 5)),
        ({"e": 1, "a": 2, "b": 3, "alpha": 4, "beta": 5}, (1, 2, 3, 4, 5)),
    ],
)
def test_a_law_is_read_in_the_forms_that_people_return(answer, law):
    assert tuple(as_law(answer).values()) == law


READER = """
def read_runs(path):
    import csv
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return [{'N': float(r['parameters']), 'D': float(r['tokens']), 'L': float(r['loss'])} for r in rows if KEPT]
"""


@pytest.mark.parametrize(
    ("kept", "verdict", "said"),
    [
        ("r['tokens'] == r['horizon']", "pass", ""),
        ("True", "fail", "runs in progress are read as if they had ended"),
        ("r['tokens'] == r['horizon'] and r['run'] == 'width-256-horizon-2e+08'", "fail", "1 runs, expected 8"),
    ],
)
def test_another_number_of_runs_fails_and_says_how_many(tmp_path, shipped, kept, verdict, said):
    """One run alone has a shape that NumPy compares with any number of them."""
    record = run(shipped["scaling::final-losses"], subject(tmp_path, READER.replace("KEPT", kept)))
    assert record.verdict == verdict, record.message
    if said:
        assert record.details["hint"] == said
        assert set(record.value.values()) == {float("inf")}


def test_no_mistake_is_named_that_does_nothing_on_these_losses(tmp_path, shipped):
    """On exact losses every fit has its minimum at the law: constants a little off it say nothing of residuals."""
    table = known_table("debug", "besiroglu")
    errors = table.in_standard_errors({**LAWS["besiroglu"].__dict__, "alpha": LAWS["besiroglu"].alpha + 1e-3})
    step = 0.05 * 1e-3 / errors["alpha"]  # a twentieth of a standard error
    text = f"""
    def fit_law(N, D, L):
        law = {dict(LAWS["besiroglu"].__dict__)}
        return {{**law, "alpha": law["alpha"] + {step}}}
    """
    record = run(shipped["scaling::law-is-recovered,law=besiroglu"], subject(tmp_path, text))
    assert record.verdict == "fail", record.message
    assert record.details["hint"].startswith("the other constants are those of the law, and not alpha")


@pytest.mark.parametrize("array", [np.array, torch.tensor, list, tuple])
def test_an_exponent_and_sizes_are_read_from_arrays_as_from_lists(array):
    """np.polyfit returns slope and intercept as an array, which was refused as no number."""
    assert as_exponent(array([0.5, 3.0])) == 0.5
    assert as_sizes(array([2.0, 8.0])) == (2.0, 8.0)
    assert as_sizes(array([2.0])) == (2.0, None)


def test_an_array_of_no_axis_is_a_number():
    for array in (np.array, torch.tensor):
        assert as_exponent(array(0.5)) == 0.5
        assert as_sizes(array(2.0)) == (2.0, None)


def test_answers_that_are_none_of_these_are_errors_of_the_subject():
    empty = ((as_law, (1, 2)), (as_sizes, ()), (as_exponent, []))
    for read, answer in (*empty, *((read, {"x": 1}) for read in (as_law, as_exponent, as_sizes))):
        with pytest.raises(SubjectError, match="returned"):
            read(answer)
    with pytest.raises(SubjectError, match="no column of D"):
        as_columns([{"N": 1.0, "loss": 2.0}])


def test_the_unit_is_the_standard_error_of_a_sweep_with_one_percent_noise():
    """The information of the runs, against the spread of fits to noisy tables."""
    table = known_table("debug", "besiroglu")
    noise = 0.001 * torch.randn(120, len(table.loss), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = table.points
    tables = type(points)(points.log_parameters, points.log_tokens, points.log_loss + noise)
    laws = fit_laws(tables, near=LAWS["besiroglu"])
    away = [table.in_standard_errors({n: getattr(law, n) for n in ("E", "A", "B", "alpha", "beta")}) for law in laws]
    for name in away[0]:
        # A tenth of the noise is a tenth of the error, and Huber's loss has the mean absolute error's efficiency, 64%,
        # beyond δ: 1.25 at most. The root mean square of 120 fits is known to 7%.
        spread = float(np.sqrt(np.mean([each[name] ** 2 for each in away]))) * 10
        assert 0.8 < spread < 1.5, name
