"""What columns of tables and metrics mean, in one sentence each, for the tooltips and legends of the report.

A suite may explain columns of its own: `about` of a table, column -> text (evaluation/suites/base.py).
"""

from __future__ import annotations

from megaunigame.monitoring import names

BEFORE, AFTER = ", before", ", after"
"""Ends of the headings of columns that a report shows twice."""

COLUMNS = {
    # rows of a run
    "term": "The loss term that the rows belong to.",
    "wanted": "Rows that the plan has asked for, over the whole run and all ranks.",
    "filled": "Rows that had a loss.",
    "dummies": "Rows without data: their sample lacks what the term needs. They are computed, and have no loss.",
    "cut": "Rows with a loss that lost text, because it did not fit into model.max_length.",
    "escaped": "Control tokens that were written in texts of the rows, and stayed text.",
    "coded": "Rows whose pictures came as stored codes, so that the image tokenizer did not run.",
    "dummies %": "Dummies in percent of the rows wanted.",
    "cut %": "Cut rows in percent of the rows filled.",
    # launches
    "launch": "Each start of the command on this run folder.",
    "began": "When its ranks had loaded the model and opened the run.",
    "first step": "Its first optimizer step in the history. What a killed launch did after its last save was made again.",
    "last step": "Its last such step.",
    "steps": "Optimizer steps of the history that this launch has made.",
    "s/step": "Median seconds of an optimizer step.",
    # replaced samples
    "stream": "The stream of the recipe (data.NAME).",
    "shard": "The file the samples are in.",
    "samples": "Samples that were replaced; in a table of attention: samples that were measured.",
    "for example": "The reason given for one of them.",
    # suites of evaluation
    "kind": "What the questions ask about.",
    "questions": "Questions asked.",
    "accuracy (%)": "Answers that are right.",
    "chance (%)": "What guessing among the possible answers of the kind gets right.",
    "majority (%)": "What the most frequent answer of the kind gets right, if it is always given.",
    "question asked about both images": "A question about two pictures that differ in what it asks about.",
    "pairs": "Pairs of such pictures.",
    "both right (%)": "Pairs of which both answers are right.",
    "picture": "Which version of the picture is judged.",
    "pictures": "Pictures judged.",
    "objects right (%)": "Requested objects that the judge finds with the right shape and color.",
    "color present (%)": "Requested colors that the judge finds, whatever the shape.",
    "all exact (%)": "Pictures in which the judge finds all requested objects and no other.",
    "relations right (%)": "Requested relations between objects that hold in the picture.",
    "extra objects per picture": "Objects that the judge finds and nobody has requested.",
    "representation": "The kind of target that was drawn.",
    "measure": "How the picture is compared with the true one.",
    "PSNR (dB)": "Peak signal-to-noise ratio against the true picture; each 6 dB halve the error.",
    "drawn (%)": "Of the picture that the model has drawn.",
    "through tokenizer (%)": "Of the true picture, encoded and decoded by the image tokenizer: the best that can be drawn.",
    "unrelated image (%)": "With the picture of another sample: the level of chance.",
    "real (%)": "With the picture of the sample.",
    "own reconstruction (%)": "With the picture as the model has redrawn it.",
    "positions": "Positions with a loss.",
    "loss": "Mean loss per position, in nats, with the true preceding tokens.",
    "loss, other sample's condition": "The same with the picture or prompt of another sample.",
    "gap": "Their difference: how much the model uses its condition.",
    "layer": "Layer of the language model.",
    "mean (%)": "Share of attention that goes across modalities, mean over samples.",
    "spread over samples (%)": "Its standard deviation over samples.",
    "target (%)": "The share it is pulled to.",
    "first token (%)": "Share of attention to the first token.",
    "pass": "generate: from the drawn picture to the text; understand: from answers to the picture.",
    "distance from the targets (%)": "Mean over the layers of the difference between share and target.",
    "metric": "Name of a result in metrics.jsonl, below evaluation/ and the name of the suite.",
    "difference": "After minus before.",
    # pictures and questions
    "caption": "The text that belongs to the picture, or that it was drawn from.",
    "source": "The picture of the sample.",
    "real": "The picture of the sample.",
    "through tokenizer": "The picture encoded and decoded by the image tokenizer: the best that can be drawn.",
    "generated": "The picture that the model has drawn.",
    "own reconstruction": "The picture as the model has redrawn it.",
    "decoded": "The picture as the model has redrawn it, without an attack.",
    "adversarial": "The same with the attack.",
    "question": "What the model was asked.",
    "answer": "The right answer.",
    "predicted": "The answer of the model.",
    "prediction before": "The answer of the model to the picture without the attack, word by word with the right words before.",
    "prediction after": "The same with the attack.",
    "before": "The answer of the model at the first evaluation.",
    "after": "The answer of the model at the last evaluation.",
}

ENDS = {
    " true": "The target of the sample.",
    " drawn": "The target as the model has drawn it.",
    " through tokenizer": "The target encoded and decoded by the image tokenizer: the best that can be drawn.",
}
"""End of the name of a column -> what such columns mean."""

METRICS = {
    names.LOSS_TOTAL: "Weighted sum of the terms, which is minimized.",
    names.OPTIM_LR: "Learning rate of the step.",
    names.OPTIM_GRAD_NORM: "Norm of the gradient over all trained parameters, before clipping.",
    names.OPTIM_SKIPPED: "Updates skipped since the beginning of the run: a loss or the gradient was not finite, or a spike.",
    names.PERF_STEP_SECONDS: "Seconds of an optimizer step.",
    names.PERF_ROWS_PER_SECOND: "Rows of all ranks.",
    names.PERF_TOKENS_PER_SECOND: "Tokens that the language model read on all ranks, with padding and dummy rows.",
    names.PERF_USEFUL_TOKENS_PER_SECOND: "The same without padding and dummy rows.",
    names.PERF_USEFUL_TOKEN_SHARE: "Useful tokens in percent of all tokens.",
    names.PERF_PEAK_MEMORY_BYTES: "Of the rank with the most: tensors of a GPU, or the resident set of a CPU process.",
    names.PERF_MFU: "Model FLOPs utilization: operations of the model in percent of what the devices can do.",
    names.PERF_PASSES: "Forwards through the language model in one optimizer step of one rank.",
    names.PERF_GRAPHS: "Graphs of the language model's layers that rank 0 has compiled since the launch.",
    names.PERF_ALLGATHER_BYTES: "Weights that one rank gathered in one optimizer step (ZeRO-3).",
    names.PERF_SAVE_SECONDS: "From the beginning of a save until the checkpoint was complete.",
    names.PERF_SAVE_PAUSE_SECONDS: "Seconds of these in which rank 0 did not train.",
    names.DATA_BAD_SAMPLES: "Samples replaced so far, all ranks.",
    names.DATA_WAIT_SECONDS: "Seconds the step waited for its rows.",
}
PREFIXES = {
    names.LOSS: "Mean loss of the term over its positions on all ranks.",
    names.WEIGHT: "Factor on the weight of the term.",
    f"{names.GRADIENT}norm/": "Norm of the gradient of the mean loss of the term.",
    f"{names.GRADIENT}cosine/": "Cosine between the gradients of two terms.",
    names.EVALUATION: "Result of an evaluation suite.",
}


def of_column(name: str) -> str:
    """What a column means; empty: not known."""
    plain = name.removesuffix(BEFORE).removesuffix(AFTER)
    if plain.startswith("difference x "):
        return "The difference of the two pictures before it, enlarged as many times; gray where they are equal."
    return COLUMNS.get(plain) or next((text for end, text in ENDS.items() if plain.endswith(end)), "")


def of_metric(name: str) -> str:
    """What a metric means; empty: not known."""
    return METRICS.get(name) or next((text for prefix, text in PREFIXES.items() if name.startswith(prefix)), "")
