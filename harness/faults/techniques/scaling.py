"""A right program that fits scaling laws, as a notebook would have it: NumPy and L-BFGS over a grid of starts.

It is the specimen of the faults in scaling.toml; its style is not that of gpt/scaling_law.py.
"""

import csv
import itertools

import numpy as np
import torch

from harness.faults.specimen import GPT  # noqa: F401 - the model whose runs are fitted

DELTA = 1e-3


def huber(r):
    """Return Huber's loss of each residual."""
    return torch.where(r.abs() <= DELTA, 0.5 * r**2, DELTA * (r.abs() - 0.5 * DELTA))


def predict(theta, log_n, log_d):
    """Return the log of the predicted loss."""
    a, b, e, alpha, beta = theta
    n_term = a - alpha * log_n
    d_term = b - beta * log_d
    return torch.logsumexp(torch.stack((n_term, d_term, e + 0 * log_n)), dim=0)


def minimize(objective, x0):
    """Return where the objective is lowest, and its value there."""
    x = torch.tensor(x0, dtype=torch.float64, requires_grad=True)
    tolerances = {"tolerance_grad": 1e-14, "tolerance_change": 1e-18}
    opt = torch.optim.LBFGS([x], max_iter=800, history_size=30, line_search_fn="strong_wolfe", **tolerances)

    def closure():
        opt.zero_grad()
        value = objective(x)
        value.backward()
        return value

    opt.step(closure)
    x = x.detach()
    return x, objective(x).item()


def fit_chinchilla(params, tokens, losses):
    """L = E + A / N^alpha + B / D^beta, fitted to log losses."""
    log_n, log_d, log_l = (torch.as_tensor(np.log(column)) for column in (params, tokens, losses))
    # logs relative to a typical run: otherwise A and alpha cannot be told apart numerically
    n0, d0 = log_n.median(), log_d.median()

    def objective(theta):
        residual = predict(theta, log_n - n0, log_d - d0) - log_l
        return huber(residual).sum()

    inits = itertools.product((0.25, 0.5), (0.25, 0.5), (0.6, 0.9))
    best, lowest = None, float("inf")
    for alpha0, beta0, share in inits:
        e0 = float(np.log(share)) + log_l.min().item()
        t0 = float(np.log(np.exp(log_l.mean().item()) - np.exp(e0))) - np.log(2.0)
        theta, value = minimize(objective, [t0, t0, e0, alpha0, beta0])
        if value < lowest:
            best, lowest = theta, value
        if lowest < 1e-18:
            break
    a, b, e, alpha, beta = best.numpy()
    A = np.exp(a + alpha * n0.item())
    B = np.exp(b + beta * d0.item())
    return {"E": np.exp(e), "A": A, "B": B, "alpha": alpha, "beta": beta}


def isoflop_exponent(flops, params, losses):
    """a in N_opt ~ C^a, by a parabola for each budget."""
    budgets = sorted(set(flops))
    best_sizes = []
    for budget in budgets:
        mask = flops == budget
        x = np.log10(params[mask])
        c2, c1, _ = np.polyfit(x, losses[mask], deg=2)
        best_sizes.append(-c1 / (2 * c2))
    slope, _ = np.polyfit(np.log10(budgets), best_sizes, deg=1)
    return slope


def train_flops(n, d):
    """FLOPs of the whole training."""
    return 6 * n * d


def compute_optimal(compute, A, B, alpha, beta):
    """N and D that minimise the loss for a compute budget."""
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    a = beta / (alpha + beta)
    b = alpha / (alpha + beta)
    return {"n": G * (compute / 6) ** a, "d": (compute / 6) ** b / G}


def load_points(csv_path):
    """One point for each run: what it reached at the end of its own schedule."""
    runs = {}
    with open(csv_path, newline="") as f:
        for row in csv.DictReader(f):
            runs.setdefault(row["run"], []).append({k: float(v) for k, v in row.items() if k != "run"})
    points = []
    for log in runs.values():
        last = log[-1]
        if last["tokens"] < last["horizon"]:
            continue
        points.append({"params": last["parameters"], "tokens": last["tokens"], "loss": last["loss"]})
    return points
