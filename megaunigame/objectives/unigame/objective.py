"""UniGame (arXiv 2511.19413): a game between the learner and an adversary at its visual tokens.

    min over theta (learner), max over phi (adversary):  L_clean(theta) + beta * L_hard(theta; buffer filled by phi)

Each step the adversary disturbs the visual tokens of some source pictures and climbs on the learner's loss about the result:
gain * CE - penalties. Plausible results (CLIP) are candidates for the hard buffer, which keeps those at or above a percentile
of all ranks' losses; the learner trains on clean rows and on rows replayed from it.

Alternating (the paper): the adversary climbs with the learner frozen. Simultaneous: attacked rows join the learner's
understand pass, and their gradient is turned round on its way to the adversary.

The sources are redrawn before the learner's passes; or the learner's own generate pass has drawn them (`redraw`), and the
attack follows it, before the understand pass of the same micro-step.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.adversary.optimizer import ReplicatedAdamW
from megaunigame.config import fill
from megaunigame.data.decode import Sample
from megaunigame.errors import CheckpointError, ConfigError, DataError
from megaunigame.judges.clip_filter import ClipConfig, ClipFilter
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Joined, Objective, Stage
from megaunigame.objectives.understanding import Understanding
from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.panels import attack_panels
from megaunigame.objectives.unigame.paths import Attacked, Redrawn, build_path
from megaunigame.objectives.unigame.pool import Pool
from megaunigame.objectives.unigame.redraw import check_redraw, redrawn_in
from megaunigame.objectives.unigame.reversal import reverse_gradient
from megaunigame.objectives.unigame.settings import OWN, Settings
from megaunigame.pixels import Panel
from megaunigame.randomness import derive
from megaunigame.registry import available, find
from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.records import RecordLayout
from megaunigame.representations.base import Representation
from megaunigame.step.inputs import AttackInputs, PassInputs, PassOutput, put_rows, take_rows
from megaunigame.step.micro import Step
from megaunigame.step.requests import ATTACK, GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import AttackRow, GenerateRow, Row

log = logging.getLogger(__name__)

CLEAN, HARD, ADVERSARIAL, SOURCE = "clean", "hard", "adversarial", "attack"
FILE, HEADER = "unigame.safetensors", "unigame"
PURPOSES = {"adversary": 1, "attack": 2, "harvest": 3, "draw": 4, "replay": 5}
"""What a random stream is for -> its number among the parts of a seed."""


class UniGame(Objective):
    """Clean rows, rows replayed from the hard buffer, and the adversary that fills it."""

    Config = Settings

    def __init__(self, config: Settings):
        super().__init__(config)
        config.check()
        self.plays = config.attack_rows > 0
        """Without attacks this is fine-tuning on the clean rows."""
        self.simultaneous = self.plays and config.mode == "simultaneous"
        self.redrawn_by = config.redraw if self.plays and config.redraw != OWN else None
        """The generate term whose rows, in the learner's own pass, redraw the sources; None: the attack does it."""
        self.questions = Understanding(
            Understanding.Config(config.clean_rows, config.stream, turns=config.turns, independent=config.independent)
        )
        self.pixel: Representation = find("representations", "pixel", Representation)()
        own = dict(config.adversary)
        self.kind = find("adversary", own.pop("kind"), Adversary)
        self.adversary_config = fill(self.kind.Config, own, "objectives.unigame.adversary")
        self.adversary_config.check()
        filtered = self.plays and config.clip is not None
        self.clip = (
            ClipFilter(fill(ClipConfig, config.clip, "objectives.unigame.clip"), torch.device("cpu")) if filtered else None
        )

    @classmethod
    def planned(cls, config: Settings) -> UniGame:
        """Without its CLIP, whose bytes are still counted."""
        objective = cls(dataclasses.replace(config, clip=None))
        objective.config = config
        return objective

    def replicated_bytes(self) -> dict[str, int]:
        if not self.plays:
            return {}
        adversary = 16 * sum(p.numel() for p in self.parameters)  # with gradients and two moments, in float32
        if self.config.clip is None:
            return {"adversary": adversary}
        settings = fill(ClipConfig, self.config.clip, "objectives.unigame.clip")
        return {"adversary": adversary, "CLIP": 4 * ClipFilter.elements(settings)}

    def host_bytes(self) -> dict[str, int]:
        return {"hard buffer": self.pool.buffer.most_bytes} if self.plays else {}

    def rehearsed_every(self) -> int:
        return self.config.every

    def unplanned(self) -> str:
        if self.plays and self.config.path == "sampled":
            return "drawing pictures token by token and asking about them (path=sampled)"
        if self.plays and self.config.path == "embedding" and self.config.hard_rows:
            return "attacks on replayed rows (path=embedding)"
        return ""

    # Rows

    def rows(self) -> list[RowRequest]:
        c = self.config
        asked = [
            RowRequest(CLEAN, UNDERSTAND, c.stream, c.clean_rows, 1.0, takes_source=True),
            RowRequest(HARD, UNDERSTAND, None, c.hard_rows, c.beta, takes_source=True),
        ]
        if self.simultaneous:
            asked.append(RowRequest(ADVERSARIAL, UNDERSTAND, None, c.attack_rows, c.beta, takes_source=True))
        sources = RowRequest(
            SOURCE, ATTACK, c.stream, c.attack_rows, 0.0, takes_source=c.condition == "image", shares=self.redrawn_by
        )
        return [*asked, sources]

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        question = self.questions.row(request, sample, rng)
        if request.term == CLEAN:
            return question
        picture = self.pixel.picture(sample)
        if picture is None:
            return None
        if self.config.condition == "image":
            prompt = self.config.prompts[int(rng.integers(len(self.config.prompts)))]
            redraw, text = GenerateRow(prompt, picture, sample.image), question.turns[0][0]
        else:
            caption = sample.meta.get("caption")
            if not isinstance(caption, str | None):
                raise DataError(f"Sample {sample.key}: `caption` must be a text; got {caption!r}.")
            if not caption:
                return None
            redraw, text = GenerateRow(caption, picture), caption
        return AttackRow(redraw if self.redrawn_by is None else None, question, text)

    # Before the first step

    def check_plan(self, plan: StepPlan) -> None:
        if self.redrawn_by is not None:
            check_redraw(self.config, plan)

    def check_family(self, family: type[UnifiedModel], name: str, path: str) -> None:
        if self.plays and self.config.path != "embedding" and not family.has_decoder:
            able = [n for n in available("models", UnifiedModel) if find("models", n, UnifiedModel).has_decoder]
            raise ConfigError(
                f"The family {name!r} has no differentiable decoder, which path={self.config.path} needs. Families that have "
                f"one: {', '.join(able)}. Or type objectives.unigame.path=embedding."
            )

    def prepare(self, stage: Stage) -> None:
        if not self.plays:
            return
        c, self.stage = self.config, stage
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(stage.seed, PURPOSES["adversary"]))  # every rank draws the same adversary
            self.adversary = self.kind(self.adversary_config, stage.model.token_width).to(stage.world.device)
        self.parameters = list(self.adversary.parameters())
        self.optimizer = ReplicatedAdamW(self.parameters, clip=c.clip_norm, weight_decay=c.weight_decay)
        self.path = build_path(c, self.adversary)
        layout = RecordLayout(stage.model.processor.image_size, stage.model.processor.max_length)
        candidates = c.attack_rows * (c.sampling.candidates if c.path == "sampled" else 1)
        buffer = HardBuffer(layout, c.buffer.capacity, candidates, stage.world.rank, stage.world.size)
        if self.clip is not None:  # loaded before the model, so that wrong settings cost no time
            self.clip.to(stage.world.device)
        self.pool = Pool(c.buffer, buffer, self.clip, stage)
        self.grad_norm = 0.0
        self.shown: list[Panel] = []

    def rehearse(self, attack: AttackInputs, learner: dict[str, PassInputs]) -> Joined:
        if not self.plays:
            return Joined()
        model, attack = self.stage.model, attack.to(self.stage.world.device)
        redrawn = None
        if self.redrawn_by is not None:  # then the graph of the learner's pass lies in memory under the attack
            learners = model(GENERATE, attack.redraw)
            redrawn = redrawn_in(learners, self.stage.plan.widest(GENERATE).slots(GENERATE, self.redrawn_by))
        with self.stage.as_opponent(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.path.attack(model, attack, self._generator("attack", 0, 0), redrawn)
            penalty = self._penalties(attack, attacked).sum()
            if not self.simultaneous:
                losses = model(UNDERSTAND, attacked.question).loss_sum
                if self.adversary.learns:
                    torch.autograd.grad(losses.sum() + penalty, self.parameters, allow_unused=True)
        self.pool.rehearse()
        if not self.simultaneous:
            return Joined()
        at = self.stage.plan.widest(UNDERSTAND).slots(UNDERSTAND, ADVERSARIAL)
        learner[UNDERSTAND] = put_rows(learner[UNDERSTAND], at, reverse_gradient(attacked.question, 1.0))
        return Joined([penalty], self.parameters) if self.adversary.learns else Joined()

    # The step

    def before_learner(self, step: Step) -> None:
        if not self.plays:
            return
        self._put_hard_rows(step)
        if not self._attacks(step):
            return
        counts = torch.stack([attack.question.counts for attack in step.attacks])
        local = torch.stack([counts.sum(), (counts > 0).sum()]).to(self.stage.world.device)
        totals = self.stage.world.all_reduce_sum(local).clamp(min=1)
        self.positions, self.pictures = totals
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        if self.simultaneous:
            for plan, inputs, attack in zip(step.plans, step.inputs, step.attacks, strict=True):
                at = plan.slots(UNDERSTAND, ADVERSARIAL)  # the sources hold the places of what they become
                inputs[UNDERSTAND] = put_rows(inputs[UNDERSTAND], at, attack.question)
        elif self.redrawn_by is None:
            for micro in range(len(step.attacks)):
                self._climb(step, micro, None)
            self._update(step)

    def before_micro_step(self, step: Step, micro: int) -> Tensor | None:
        if not self.plays:
            return None
        model, plan, inputs = self.stage.model, step.plans[micro], step.inputs[micro]
        if self.config.hard_rows and self.config.path == "embedding":
            at = plan.slots(UNDERSTAND, HARD)
            with self.stage.as_opponent():
                rows = self.path.replay(model, take_rows(inputs[UNDERSTAND], at), self._generator("replay", step.number, micro))
            inputs[UNDERSTAND] = put_rows(inputs[UNDERSTAND], at, rows)
            step.passes += self.path.calls
        joins = self.simultaneous and self.redrawn_by is None and self._attacks(step)
        return self._join(step, micro, None) if joins else None

    def after_pass(self, step: Step, micro: int, inputs: PassInputs, output: PassOutput, pass_name: str) -> Tensor | None:
        if not self.plays:
            return None
        plan = step.plans[micro]
        if pass_name == GENERATE:
            if self.redrawn_by is None or not self._attacks(step):
                return None
            redrawn = redrawn_in(output, plan.slots(GENERATE, self.redrawn_by))
            if self.simultaneous:
                return self._join(step, micro, redrawn)
            self._climb(step, micro, redrawn)
            return None
        losses = output.loss_sum.detach()
        if self.config.hard_rows:
            at = plan.slots(UNDERSTAND, HARD)
            self.pool.refresh(self.drawn[micro], (losses / inputs.counts.clamp(min=1))[at])
        if self.simultaneous and self._attacks(step):
            at, (attack, attacked) = plan.slots(UNDERSTAND, ADVERSARIAL), self.joined
            with self.stage.as_opponent():
                shown = self._mine(step, micro, attack, attacked, losses[at])
            self._show(step, micro, attack, attacked, shown)
        return None

    def after_learner(self, step: Step) -> dict[str, float]:
        if not self.plays:
            return {}
        world, attacks = self.stage.world, self._attacks(step)
        if attacks and self.simultaneous:
            # The engine averages over ranks, so the loss came times their number; the sum over ranks wants it once.
            self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad / world.size for p in self.parameters]
        if attacks and (self.simultaneous or self.redrawn_by is not None):
            self._update(step)
        self.pool.collect()
        if (step.number + 1) % self.config.buffer.merge_every == 0:
            self.pool.merge(step.number)
        metrics = self.pool.metrics(step.number, attacks)
        if attacks:
            metrics[names.ADVERSARY_EPS] = self.adversary.eps.item()
            if self.adversary.learns:
                metrics |= {names.ADVERSARY_LR: self._lr(step), names.ADVERSARY_GRAD_NORM: self.grad_norm}
        return metrics

    def panels(self) -> list[Panel]:
        if not self.plays:
            return []
        shown, self.shown = self.shown, []
        return shown

    # The adversary

    def _attacks(self, step: Step) -> bool:
        return step.number % self.config.every == 0

    def _lr(self, step: Step) -> float:
        return self.config.ratio * step.lr

    def _climb(self, step: Step, micro: int, redrawn: Redrawn | None) -> None:
        """Alternating: attack one micro-batch, note the adversary's gradient, offer the results to the pool."""
        model, attack = self.stage.model, step.attacks[micro].to(self.stage.world.device)
        with self.stage.as_opponent(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.path.attack(model, attack, self._generator("attack", step.number, micro), redrawn)
            losses = model(UNDERSTAND, attacked.question).loss_sum
            step.passes += attacked.passes + 1
            if self.adversary.learns:
                goal = self._price(attack, attacked) - self.config.gain * losses.sum() / self.positions
                for total, part in zip(self.gradients, torch.autograd.grad(goal, self.parameters), strict=True):
                    total += part
            shown = self._mine(step, micro, attack, attacked, losses.detach())
        self._show(step, micro, attack, attacked, shown)

    def _join(self, step: Step, micro: int, redrawn: Redrawn | None) -> Tensor | None:
        """Simultaneous: put one attacked micro-batch among the learner's rows. Returns what the adversary pays."""
        model, attack = self.stage.model, step.attacks[micro].to(self.stage.world.device)
        with self.stage.as_opponent(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.path.attack(model, attack, self._generator("attack", step.number, micro), redrawn)
        self.joined = attack, attacked
        step.passes += attacked.passes
        inputs, at = step.inputs[micro], step.plans[micro].slots(UNDERSTAND, ADVERSARIAL)
        rows = reverse_gradient(attacked.question, self.config.gain / self.config.beta)
        inputs[UNDERSTAND] = put_rows(inputs[UNDERSTAND], at, rows)
        return self._price(attack, attacked) if self.adversary.learns else None

    def _update(self, step: Step) -> None:
        if not self.adversary.learns:
            return
        self.grad_norm = self.optimizer.step(self.gradients, self._lr(step), self.stage.world)
        if not math.isfinite(self.grad_norm) and self.stage.world.is_main:
            log.warning("The adversary's gradient of step %d is not finite; it was not updated.", step.number + 1)

    def _price(self, attack: AttackInputs, attacked: Attacked) -> Tensor:
        """(): this rank's share of the penalties, a mean over the attacked pictures of all ranks."""
        rows = self._penalties(attack, attacked)
        return torch.where(attack.question.counts > 0, rows, 0.0).sum() / self.pictures

    def _penalties(self, attack: AttackInputs, attacked: Attacked) -> Tensor:
        """(B,) of each attacked picture."""
        p, delta = self.config.penalties, attacked.delta
        rows = p.l2 * delta.square().mean((1, 2)) + p.tv * (delta[:, 1:] - delta[:, :-1]).square().mean((1, 2))
        rows = rows + p.gate * (self.adversary.eps / self.adversary_config.eps_max).square()
        if p.clip and self.clip is not None:
            rows = rows + p.clip * (self.clip.tau - self.pool.similarity(attack, attacked.pictures)).clamp(min=0)
        return rows

    def _mine(self, step: Step, micro: int, attack: AttackInputs, attacked: Attacked, losses: Tensor) -> Tensor:
        """Candidates of one micro-step, inside `as_opponent`; returns one per row, (B, 3, H, W)."""
        before = attacked.passes
        generator = self._generator("harvest", step.number, micro)
        pictures, sums = self.path.harvest(self.stage.model, attack, attacked, losses, generator)
        step.passes += attacked.passes - before
        self.pool.mine(attack, attacked, pictures, sums, step.attacks[micro].question, step.number)
        return pictures[0]

    def _show(self, step: Step, micro: int, attack: AttackInputs, attacked: Attacked, pictures: Tensor) -> None:
        """On every `pictures_every`-th step that attacks, pictures for the report. The same calls on every rank."""
        attacks = step.number // self.config.every + 1
        if micro == 0 and self.config.pictures_every and attacks % self.config.pictures_every == 0:
            with self.stage.as_opponent():  # once more: the calls belong to none of the passes around them
                panels = attack_panels(self.stage.model, self.path, attack, attacked, pictures)
            self.shown = panels[: self.config.pictures]

    def _put_hard_rows(self, step: Step) -> None:
        """Rows from this rank's buffer into the hard slots of every micro-step; slots without one stay dummies."""
        self.drawn = [np.zeros(0, np.int64)] * len(step.inputs)
        if not self.config.hard_rows:
            return
        world = self.stage.world
        rng = np.random.default_rng([self.stage.seed, step.number, world.rank, PURPOSES["draw"]])
        self.drawn = self.pool.draw(self.config.hard_rows, len(step.inputs), rng)
        for plan, inputs, drawn in zip(step.plans, step.inputs, self.drawn, strict=True):
            if len(drawn):
                first = plan.slots(UNDERSTAND, HARD).start
                inputs[UNDERSTAND] = put_rows(inputs[UNDERSTAND], slice(first, first + len(drawn)), self.pool.rows(drawn))

    def _generator(self, purpose: str, step: int, micro: int) -> torch.Generator:
        """Randomness of one attack, from where we are in the run alone."""
        world = self.stage.world
        seed = derive(self.stage.seed, step, micro, world.rank, PURPOSES[purpose])
        device = "cpu" if world.device.type == "meta" else world.device
        return torch.Generator(device).manual_seed(seed)

    # Checkpoints

    def save(self, folder: Path) -> None:
        if not self.plays:
            return
        self.pool.save(folder)
        if self.stage.world.is_main:
            tensors = {f"adversary.{name}": value for name, value in self.adversary.state_dict().items()}
            tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.tensors().items()}
            header = json.dumps({"adversary": repr(self.adversary), "pool": self.pool.state_dict()})
            save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, folder / FILE, {HEADER: header})

    def load(self, folder: Path) -> None:
        if not self.plays:
            return
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder} holds no adversary: that run had no attacks. Give another `output`, or type checkpoint.resume=never."
            )
        with safe_open(folder / FILE, "pt") as file:
            header = json.loads(file.metadata()[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["adversary"] != repr(self.adversary):
            raise CheckpointError(
                f"{folder} was saved with another adversary:\n{header['adversary']}\nThis run has:\n{self.adversary!r}\n"
                "Give the same settings in objectives.unigame.adversary, or another `output`."
            )
        self.adversary.load_state_dict(_under("adversary.", tensors))
        self.optimizer.load_tensors(_under("optimizer.", tensors))
        self.pool.load_state_dict(header["pool"])
        self.pool.load(folder)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
