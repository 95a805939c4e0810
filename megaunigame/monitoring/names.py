"""Names of the metrics, `group/name`: the same in metrics.jsonl, in TensorBoard and in the report."""

from __future__ import annotations

LOSS = "loss/"
"""Prefix of the mean loss of a term over its positions on all ranks: `loss/<term>`."""
EVALUATION = "evaluation/"
"""Prefix of a number an evaluation suite reports: `evaluation/<label>/<metric>`."""

LOSS_TOTAL = "loss/total"
"""Weighted sum of the terms: what is minimised."""

OPTIM_LR = "optim/lr"
OPTIM_GRAD_NORM = "optim/grad_norm"
"""Norm over all trained parameters, before clipping."""

PERF_STEP_SECONDS = "perf/step_seconds"
PERF_ROWS_PER_SECOND = "perf/rows_per_second"
"""Rows of all ranks."""
PERF_TOKENS_PER_SECOND = "perf/tokens_per_second"
"""Tokens of all ranks, padding excluded."""
PERF_PASSES = "perf/passes"
"""Forwards through the model in one optimizer step of one rank."""

DATA_BAD_SAMPLES = "data/bad_samples"
"""Samples substituted so far, all ranks."""
DATA_WAIT_SECONDS = "data/wait_seconds"
"""Seconds the step waited for its rows."""


def loss(term: str) -> str:
    """Metric name of a loss term."""
    return LOSS + term


def is_term(name: str) -> bool:
    """Whether a metric is the loss of one term (and not their sum)."""
    return name.startswith(LOSS) and name != LOSS_TOTAL
