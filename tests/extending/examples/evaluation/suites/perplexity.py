"""Perplexity of the answers about held-out images: exp(mean loss per answer token)."""

import math
from dataclasses import dataclass

import torch

from megaunigame.data.conversation import question_answers
from megaunigame.evaluation.lockstep import Item, batches, read_share, together
from megaunigame.evaluation.suites.base import Suite, SuiteConfig, suite_result, table
from megaunigame.settings import at_least
from megaunigame.step.inputs import UnderstandInputs
from megaunigame.step.rows import UnderstandRow


class Perplexity(Suite):
    @dataclass
    class Config(SuiteConfig):
        limit: int = at_least(0, 64)

    def run(self, model, data_ranks, folder):
        share = [(p, s) for p, s in read_share(self.index, self.config.limit, data_ranks) if s.image is not None]
        rows = together(data_ranks, lambda: [UnderstandRow([s.image], question_answers(s)) for _, s in share])
        items = [Item(p, s.key, row) for (p, s), row in zip(share, rows, strict=True)]
        totals = torch.zeros(2, dtype=torch.float64, device=data_ranks.device)
        for _, inputs in batches(model, data_ranks, items, UnderstandInputs, self.config.batch):
            inputs = inputs.to(data_ranks.device)
            totals += torch.stack([model(inputs).loss_sum.double().sum(), inputs.counts.double().sum()])
        loss, tokens = data_ranks.all_reduce_sum(totals).tolist()
        perplexity = math.exp(loss / max(tokens, 1))
        line = table("Perplexity of the answers", ["answers", "tokens", "perplexity"], [["all", int(tokens), perplexity]])
        return suite_result({"perplexity": perplexity}, [line])
