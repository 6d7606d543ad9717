"""Rules that name the cause of a failed check of the suite `scaling`: a table."""

from __future__ import annotations

from harness.diagnosis.rule import Rule

SCALING_RULES = (
    Rule("law_found", "rounded to two digits", "scaling.law", "scaling-exponents-rounded",
         "the exponents of the law are rounded to two digits"),
    Rule("law_found", "(α and β are|β those of the size)", "scaling.law", "scaling-exponents-swapped",
         "the fit returns α and β in each other's place"),
    Rule("law_found", "powers of ten", "scaling.law", "scaling-base-ten-constants",
         "constants that were fitted as powers of ten are taken for powers of e"),
    Rule("law_found", "E is 0", "scaling.law", "scaling-no-irreducible-loss",
         "the law has no constant E, so that the loss falls to nothing"),
    Rule("law_found", "not of its logarithm", "scaling.residual", "scaling-loss-not-log",
         "the residuals of the fit are those of the loss, not of its logarithm"),
    Rule("law_found", "without Huber's loss", "scaling.outliers", "scaling-not-robust",
         "the residuals of the fit are squared, so that one run that broke moves the law"),
    Rule("law_found", "optimizer stopped early", "scaling.law", "scaling-optimizer-stops-early",
         "the optimizer of the fit stops far from the minimum of its objective"),
    Rule("iso_flop_exponent", "one in N, not in log N", "scaling.iso_flops", "scaling-parabola-in-n",
         "the parabola of an iso-FLOP curve is one in N, not in log N"),
    Rule("iso_flop_exponent", "the run with the lowest loss", "scaling.iso_flops", "scaling-lowest-run",
         "the best size is that of the run with the lowest loss, not the minimum of the parabola"),
    Rule("iso_flop_exponent", "1/a", "scaling.iso_flops", "scaling-slope-upside-down",
         "the exponent is the slope of log C over log N"),
    Rule("best_sizes", "that of the tokens", "scaling.allocation", "scaling-a-is-b",
         "the best size grows with the exponent of the tokens, α/(α+β), for β/(α+β)"),
    Rule("best_sizes", "G is upside down", "scaling.allocation", "scaling-g-upside-down",
         "the factor G of the best size is upside down"),
    Rule("best_sizes", "taken for N·D", "scaling.allocation", "scaling-compute-without-six",
         "the best size is computed from C, not from C/6"),
    Rule("training_flops_ratio", "forward pass alone", "scaling.flops", "scaling-flops-of-the-forward-pass",
         "training is counted as 2·N·D FLOPs, which is the forward pass alone"),
    Rule("runs_read", "in progress are read", "scaling.runs", "scaling-runs-in-progress",
         "the losses of runs in progress are taken for final ones"),
    Rule("runs_read", "last row of each run", "scaling.runs", "scaling-stopped-runs-count",
         "a run that was stopped before the end of its schedule counts with its last loss"),
    Rule("runs_read", "lowest loss of a run", "scaling.runs", "scaling-lowest-loss-of-a-run",
         "the lowest loss that a run ever had is taken for the one at its end"),
    Rule("runs_read", "leaves the embeddings out", "scaling.runs", "scaling-embeddings-left-out",
         "N leaves the embeddings out, while the budgets count them"),
)  # fmt: skip
