"""Every random outcome is followed with its exact probability, in each style of drawing; what is not is said."""

import random

import pytest
import torch

from harness.subjects.enumerated_draws import enumerate_outcomes

P = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
Q = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)


def rest():
    """Draw after a rejection."""
    return int(torch.multinomial((P - Q).clamp(min=0), 1))


def by_tensor():
    x = torch.multinomial(Q, 1)
    return int(x) if torch.rand(1) < P[x] / Q[x] else rest()


def by_number():
    x = int(torch.multinomial(Q, 1))
    return rest() if torch.rand(()).item() > min(1.0, float(P[x] / Q[x])) else x


def by_python():
    x = int(torch.multinomial(Q, 1))
    return x if random.random() * float(Q[x]) < float(P[x]) else rest()


def by_logarithm():
    x = int(torch.distributions.Categorical(Q).sample())
    return x if (torch.rand(3).log() < (P / Q).log())[x] else rest()


def by_difference():
    x = int(torch.multinomial(Q, 1))
    return x if 1 - torch.rand(2)[1] > 1 - P[x] / Q[x] else rest()


def by_cumulated_sums():
    return int((P.cumsum(0) <= torch.rand((), dtype=torch.float64)).sum())


def by_search():
    return int(torch.searchsorted(P.cumsum(0), torch.empty(1).uniform_()))


def by_race():
    return int((P / torch.empty_like(P).exponential_(1)).argmax(dim=-1))


def by_bernoulli():
    x = int(torch.multinomial(Q, 1))
    return x if torch.bernoulli((P[x] / Q[x]).clamp(max=1)) else rest()


@pytest.mark.parametrize(
    "program",
    [by_tensor, by_number, by_python, by_logarithm, by_difference, by_cumulated_sums, by_search, by_race, by_bernoulli],
)
def test_each_style_of_drawing_has_its_exact_distribution(program):
    found = enumerate_outcomes(program, most_runs=100)
    assert found.unseen == ""
    assert sorted(found.probabilities) == [0, 1, 2]
    for x, probability in found.probabilities.items():
        assert abs(probability - float(P[x])) < 1e-7  # torch.rand(1) is float32, and so is its threshold


def test_one_uniform_number_compared_twice_stays_where_it_was():
    def twice():
        u = torch.rand(())
        return bool(u < 0.5), bool(u < 0.25)

    assert enumerate_outcomes(twice, most_runs=10).probabilities == {
        (True, True): 0.25, (True, False): 0.25, (False, False): 0.5,
    }  # fmt: skip


def test_numbers_of_one_tensor_are_independent():
    found = enumerate_outcomes(lambda: tuple((torch.rand(2) < 0.5).tolist()), most_runs=10)
    assert set(found.probabilities.values()) == {0.25}
    assert len(found.probabilities) == 4


def test_a_comparison_with_nan_is_false_and_one_beyond_the_interval_is_sure():
    def compare():
        u = torch.rand(())
        return bool(u < float("nan")), bool(u < 2.0), bool(u > -1.0)

    assert enumerate_outcomes(compare, most_runs=10).probabilities == {(False, True, True): 1.0}


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (lambda: int(torch.randint(3, (1,))), "randint"),
        (lambda: int((P.log() - torch.log(-torch.log(torch.rand(3)))).argmax()), "logarithm"),
        (lambda: int(torch.multinomial(P, 2)[0]), "several tokens"),
        (lambda: bool(torch.rand(2).sum() < 1), "sum"),
        (lambda: int(P[int(3 * torch.rand(()))] > 0), "uniform number in"),
        (lambda: random.randrange(3), "Python's random numbers"),
    ],
)
def test_what_cannot_be_followed_is_said(program, why):
    found = enumerate_outcomes(program, most_runs=100)
    assert why in found.unseen
    assert found.probabilities == {}


def test_too_many_outcomes_are_said():
    found = enumerate_outcomes(lambda: tuple(int(torch.multinomial(P, 1)) for _ in range(4)), most_runs=50)
    assert found.unseen == "it has more than 50 random outcomes"


def test_a_program_that_catches_exceptions_does_not_hide_what_is_unseen():
    def catching():
        try:
            return int(torch.randint(3, (1,)))
        except Exception:
            return 0

    assert "randint" in enumerate_outcomes(catching, most_runs=10).unseen
