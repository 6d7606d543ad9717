"""Made-up records of a sweep: three sizes at two budgets under a law, and its fits."""

import math

E, A, B, ALPHA, BETA = 3.86, 60.0, 60.0, 0.6, 0.45


def law(N, D):
    return E + A * N**-ALPHA + B * D**-BETA


def runs(source="markov"):
    found = []
    for budget, sizes in ((1e10, (3000, 9000, 27_000)), (1.6e11, (11_000, 33_000, 99_000))):
        for size in sizes:
            for seed in (0, 1):
                D = budget / 6 / size
                found.append({
                    "kind": "run", "name": f"{source}-{budget:g}-{size}-seed-{seed}", "source": source,
                    "budget": budget, "width": 8, "seed": seed, "parameters": size,
                    "non_embedding": size * 0.7, "tokens": D,
                    "flops": budget, "model_flops": 1.1 * budget, "train_tokens": 1e6, "seconds": 10.0,
                    "loss": law(size, D) * (1 + 0.001 * (-1) ** seed), "why": "",
                })  # fmt: skip
    return found


def fits(source="markov", *, exponent=(0.46, 0.41, 0.52)):
    low, high = 11_000.0, 42_000.0
    parabolas = [
        {"flops": 1e10, "parameters": low, "tokens": 1e10 / 6 / low, "lowest": 4.34, "curvature": 0.06, "low": 3000.0,
         "high": 27_000.0},
        {"flops": 1.6e11, "parameters": high, "tokens": 1.6e11 / 6 / high, "lowest": 4.10, "curvature": 0.03,
         "low": 11_000.0, "high": 99_000.0},
    ]  # fmt: skip
    slope = math.log(high / low) / math.log(16)
    return [
        {
            "kind": "fit", "approach": "parametric", "source": source, "count": "all", "runs": 12, "scatter": 0.002,
            "seed_scatter": 0.0015, "entropy": 3.8537, "floor": 3.8614,
            "values": {"E": [3.86, 3.83, 3.89], "A": [60.0, 30.0, 120.0], "B": [60.0, 30.0, 120.0],
                       "alpha": [0.6, 0.5, 0.7], "beta": [0.45, 0.38, 0.52], "size_exponent": [0.43, 0.39, 0.47]},
        },
        {
            "kind": "fit", "approach": "iso-flop", "source": source, "count": "all", "runs": 12, "parabolas": parabolas,
            "log_scale": math.log(low) - slope * math.log(1e10), "not_bracketed": [],
            "values": {"size_exponent": list(exponent), "data_exponent": [0.54, 0.48, 0.59],
                       "loss_exponent": [0.0205, 0.019, 0.022], "minimum 1e+10": [low, 1e4, 12_500.0],
                       "minimum 1.6e+11": [high, 37_000.0, 50_000.0]},
        },
    ]  # fmt: skip


def header(**fields):
    return {
        "kind": "header", "schema": 1, "run": "sweep", "plan": "full", "about": "Five sizes.", "planned": 12,
        "started": "2026-11-29T13:00:00Z", "subject": {"name": "gpt.train"},
        "environment": {"cpu": "a processor", "cores": 2, "torch": "2.13.0"},
        "sources": [{"name": "markov", "characters": 4_500_000, "vocabulary_size": 256}], **fields,
    }  # fmt: skip


def rows(**fields):
    return [header(**fields), *runs(), *fits(), {"kind": "footer", "wall_seconds": 1500.0, "unfinished": {}}]
