"""Names of the metrics, `group/name`: the same in metrics.jsonl, in TensorBoard and in the report.

Names that only one objective logs are in the folder of that objective.
"""

from __future__ import annotations

LOSS = "loss/"
"""Prefix of the mean loss of a term over its positions on all ranks: `loss/<term>`."""
EVALUATION = "evaluation/"
"""Prefix of a metric of an evaluation suite: `evaluation/<label>/<metric>`."""

LOSS_TOTAL = "loss/total"
"""Weighted sum of the terms, which is minimized."""

OPTIM_LR = "optim/lr"
OPTIM_GRAD_NORM = "optim/grad_norm"
"""Norm over all trained parameters, before clipping."""
OPTIM_SKIPPED = "optim/skipped"
"""Updates skipped since the beginning of the run, because a loss or the gradient was not finite or far above the last ones."""

PERF_STEP_SECONDS = "perf/step_seconds"
PERF_ROWS_PER_SECOND = "perf/rows_per_second"
"""Rows of all ranks."""
PERF_TOKENS_PER_SECOND = "perf/tokens_per_second"
"""Tokens that the language model read, of all ranks and all passes, including those of players. For a generate row they
include what follows its prompt (codes, or queries); padding and dummy rows count because they are computed."""
PERF_USEFUL_TOKENS_PER_SECOND = "perf/useful_tokens_per_second"
"""The same without padding and dummy rows."""
PERF_USEFUL_TOKEN_SHARE = "perf/useful_token_share"
"""Useful tokens over all tokens, in [0, 1]."""
PERF_PEAK_MEMORY_BYTES = "perf/peak_memory_bytes"
"""Of the rank with the most, from the beginning of the previous step to that of this one (in the first step: the dry run).
CUDA: the largest sum of tensors; CPU: the largest resident set since the process began."""
PERF_MFU = "perf/mfu"
"""Model FLOPs utilization in [0, 1]; only on devices whose peak is known (parallel/peaks.py), and in bf16."""
PERF_PASSES = "perf/passes"
"""Forwards through the language model in one optimizer step of one rank; those for pictures of the report
and for measured gradients (`monitor.gradients`) do not count, though the tokens of the latter do."""
PERF_ALLGATHER_BYTES = "perf/allgather_bytes"
"""Bytes of weights that one rank gathered for the passes of one optimizer step (ZeRO-3)."""
PERF_GRAPHS = "perf/graphs"
"""Graphs that rank 0 has compiled since its launch; only with `engine.compile: layers`."""

PERF_SAVE_SECONDS = "perf/save_seconds"
"""From the beginning of a save until the checkpoint was complete; in the line of the step that found it complete."""
PERF_SAVE_PAUSE_SECONDS = "perf/save_pause_seconds"
"""Seconds of these in which rank 0 did not train: copies to host memory, then manifest, renaming and deletion of old ones."""

DATA_BAD_SAMPLES = "data/bad_samples"
"""Samples replaced so far, all ranks."""
DATA_WAIT_SECONDS = "data/wait_seconds"
"""Seconds the step waited for its rows."""

ROWS = "rows/"
"""Prefix of the rows of a term in a step, all ranks: `rows/<term>/<what>`, with <what> one of the following."""
ROW_COUNTS = ("wanted", "filled", "dummies", "cut", "escaped", "coded")
"""Planned; with a loss; without one; with a loss, but with text that did not fit into `model.max_length`; control tokens that
were written in texts of the rows, and stayed text; with a loss and with stored codes of the target (understand rows: of the
pictures), so that the pass did not encode them."""

WEIGHT = "weight/"
"""Prefix of the factor on the weight of a term in a step: `weight/<term>`; only for the terms in `weights` of the recipe."""
GRADIENT = "gradient/"
"""Prefix of the gradients of terms: `gradient/norm/<term>`, `gradient/cosine/<term>/<term>`."""

ATTENTION = "attention/"
"""Prefix of measurements of attention: `attention/<pass>/<what>`, with <what> one of the following."""
ATTENTION_LAYER = "layer_"
"""`layer_07`: share of attention that the queries give to the keys in that layer, in [0, 1], mean over the counted rows."""
ATTENTION_TARGET = "target_"
"""`target_07`: its target."""
ATTENTION_DISTANCE = "distance"
"""Mean over the layers of |share - target|."""
ATTENTION_SPREAD = "spread_"
"""`spread_07`: standard deviation of the share over samples; evaluations only."""
ATTENTION_FIRST = "first_token"
"""Share of attention to the first token, mean over the layers; in generation it is part of the share of the text."""
ATTENTION_FIRST_LAYER = "first_token_"
"""`first_token_07`: the same in that layer; evaluations only."""
ATTENTION_COUNTED = "rows"
"""Rows that were measured, all ranks."""


def loss(term: str) -> str:
    """Metric name of a loss term."""
    return LOSS + term


def rows(term: str, what: str) -> str:
    """Metric name of a count of rows."""
    return f"{ROWS}{term}/{what}"


def weight(term: str) -> str:
    """Metric name of the factor of a term."""
    return WEIGHT + term


def gradient_norm(term: str) -> str:
    """Metric name of the norm of the gradient of a term's mean loss."""
    return f"{GRADIENT}norm/{term}"


def gradient_cosine(first: str, second: str) -> str:
    """Metric name of the cosine of the gradients of two terms, in [-1, 1]."""
    return f"{GRADIENT}cosine/{first}/{second}"


def attention(pass_name: str, what: str, layer: int | None = None) -> str:
    """Metric name of a measurement of attention."""
    return ATTENTION + attended(pass_name, what, layer)


def attended(pass_name: str, what: str, layer: int | None = None) -> str:
    """`attention` without its group, as in evaluations."""
    return f"{pass_name}/{what}{'' if layer is None else f'{layer:02d}'}"
