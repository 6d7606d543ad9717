"""Tables of anybody's runs are read by the names that people use, and mistakes have file and line."""

from pathlib import Path

import pytest

from harness.core.errors import HarnessError
from harness.sweeps.run_table import read_run_table


def written(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "heads", ["N,D,L", "params,tokens,loss", "n_params,train_tokens,final loss", "Model-Size,D,val_loss"]
)
def test_columns_have_the_names_that_people_use(tmp_path, heads):
    (run,) = read_run_table(written(tmp_path, f"{heads}\n1e6,2e7,3.5\n"))
    assert (run["parameters"], run["tokens"], run["loss"]) == (1e6, 2e7, 3.5)
    assert run["flops"] == 6 * 1e6 * 2e7


def test_a_column_s_own_name_comes_before_the_others(tmp_path):
    for heads in ("train_tokens,parameters,loss,tokens", "tokens,parameters,loss,train_tokens"):
        values = {"train_tokens": "9", "parameters": "2", "loss": "3", "tokens": "4"}
        (run,) = read_run_table(written(tmp_path, f"{heads}\n{','.join(values[head] for head in heads.split(','))}\n"))
        assert run["tokens"] == 4


def test_compute_stands_for_the_tokens(tmp_path):
    (run,) = read_run_table(written(tmp_path, "N,C,L\n1e6,1.2e14,3.5\n"))
    assert run["tokens"] == pytest.approx(2e7)


def test_runs_in_progress_are_left_out(tmp_path):
    text = "run,N,D,horizon,L\na,1e6,1e7,2e7,4.0\na,1e6,2e7,2e7,3.5\nb,1e6,1e7,4e7,3.9\n"
    (run,) = read_run_table(written(tmp_path, text))
    assert (run["run"], run["loss"]) == ("a", 3.5)


def test_a_run_that_diverged_is_read_and_has_no_loss_to_fit(tmp_path):
    from harness.sweeps.fits import usable

    runs = read_run_table(written(tmp_path, "N,D,L\n1e6,2e7,3.5\n1e6,2e7,nan\n1e6,4e7,inf\n"))
    assert [usable(run) for run in runs] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N,D\n1,2\n", r":1: no column of the loss; found N, D"),
        ("params,model_size,D,L\n1,1,2,3\n", r":1: both 'params' and 'model_size' are the parameters"),
        ("N,L\n1,3\n", r":1: no column of the tokens or of the FLOPs"),
        ("N,D,L\n1,2,3\n1,-2,3\n", r":3: 'D' is '-2'; expected a positive number"),
        ("N,D,L\n1,two,3\n", r":2: 'D' is 'two'"),
        ("N,D,L\n1,2\n", r":2: a value is missing"),
        ("N,D,horizon,L\n1,2,4,3\n", r":2: no run is at the end of its schedule"),
    ],
)
def test_a_mistake_in_a_table_is_an_error_with_file_and_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(HarnessError, match=message) as raised:
        read_run_table(path)
    assert str(raised.value).startswith(str(Path(path)))
