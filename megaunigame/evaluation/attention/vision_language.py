"""How much any vision-language model of transformers attends from its answers to the picture: a teacher of the understand pass.

The model is loaded by transformers' own classes and runs one conversation at a time, without padding. The taps of
`megaunigame.attention.taps` measure in its language model, so no attention map is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from megaunigame.attention import taps
from megaunigame.attention.queries import answers
from megaunigame.data.conversation import TALK_KEYS, question_answers
from megaunigame.data.decode import Sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError, ModelError
from megaunigame.evaluation.attention.chat_rows import ChatRow, ChatRows
from megaunigame.evaluation.attention.curves import NEEDS, Curve, Measuring, SampleShares, curve_of
from megaunigame.evaluation.lockstep import gathered, read_share, sample_count, together
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import UNDERSTAND

log = logging.getLogger(__name__)


def open_config(folder: str | Path) -> PreTrainedConfig:
    """The configuration of the model in a folder. Raises ModelError for a model that cannot be measured."""
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"--hf {folder}: no config.json there. Give the folder of a transformers image-text-to-text model.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"--hf {folder}: transformers cannot read its configuration: {error}") from error
    name = type(config).__name__
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ModelError(
            f"--hf {folder}: {name} is not an image-text-to-text model of transformers. A model of a family of this project is "
            "measured with --model and --family."
        )
    if config.is_encoder_decoder:
        raise ModelError(f"--hf {folder}: {name} has an encoder and a decoder; answers do not attend to image tokens there.")
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise ModelError(f"--hf {folder}: {name} caps its attention logits, which the taps do not reproduce.")
    return config


def layers_of(config: PreTrainedConfig) -> int:
    """Layers of the language model."""
    return int(config.get_text_config().num_hidden_layers)


class VisionLanguageModel:
    """A model, its processor and the taps in its language model."""

    def __init__(self, model: Any, processor: Any, name: str):
        """`model`: as `AutoModelForImageTextToText` gives it. Raises ModelError when it cannot be tapped."""
        self.model, self.depth, self.name = model.eval(), layers_of(model.config), name
        ids = (getattr(model.config, name, None) for name in ("image_token_id", "image_token_index"))
        image_token = next((number for number in ids if number is not None), None)  # 0 is an id
        if image_token is None:
            raise ModelError(
                f"The configuration of {name} names no image token (image_token_id); its pictures cannot be found."
            )
        self.rows = ChatRows(processor, image_token, name)
        self.language_model = model.get_decoder()
        taps.install(self.language_model)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device, dtype: torch.dtype) -> VisionLanguageModel:
        """Raises ModelError when transformers cannot load the model or its processor, or its attention cannot be tapped."""
        config = open_config(folder)
        options: dict[str, Any] = {"config": config, "dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=False, **options
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"--hf {folder}: transformers cannot load it: {error}") from error
        missing = sorted(name for name in report["missing_keys"] if name.startswith(f"{model.base_model_prefix}."))
        if missing:  # transformers draws them at random; those of the head, which does not run, may be tied
            raise ModelError(f"--hf {folder}: lacks {len(missing)} weights, for example {missing[0]}. Download it again.")
        return cls(model.to(device), processor, str(folder))

    @torch.no_grad()
    def shares(self, row: ChatRow) -> tuple[Tensor, Tensor]:
        """(L,) float32 each, on the CPU: attention of the answers to the picture, and to the first token.

        Raises ModelError when a layer does not attend in the row (linear attention), or attends to more than the row.
        """
        device = self.model.device
        first = torch.zeros_like(row.pictures)
        first[:, 0] = True
        queries = answers(row.answers.to(device), 0, row.length)
        tap = _RowTap(Taps(tuple(range(self.depth))), queries, row.pictures.to(device), first.to(device))
        inputs = {name: _placed(value, device, self.model.dtype) for name, value in row.inputs.items()}
        hook = self.language_model.register_forward_pre_hook(_handing(tap), with_kwargs=True)
        try:
            self.model.base_model(**inputs, use_cache=False)  # without the head: the logits of a long row would fill the memory
        finally:
            hook.remove()
        found = tap.shares()
        return found.keys[:, 0].cpu(), found.first[:, 0].cpu()


class _RowTap(taps.Tap):
    """A tap that refuses attention to anything but the tokens of the row."""

    def measure(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if key.shape[2] != self.keys.shape[1]:
            raise ModelError(
                f"Layer {layer} attends to {key.shape[2]} positions and the row has {self.keys.shape[1]} tokens: the model "
                "reads pictures by cross-attention, where no token of the row stands for them. Measure another model."
            )
        super().measure(layer, query, key, mask, scaling)


def _handing(tap: taps.Tap) -> Any:
    """A hook that hands the tap to the language model alone: the picture's encoder has layers of the same numbers."""

    def hand(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {**options, "tap": tap}

    return hand


def _placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Pixels in the model's precision; ids and grids as they are."""
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def measure_understanding(
    teacher: VisionLanguageModel,
    data_ranks: Ranks,
    index: ShardIndex,
    settings: Measuring,
    max_length: int,
    progress: bool = False,
) -> dict[str, Curve]:
    """{understand: its curve}. All ranks call this together; each holds the whole model, which has no collectives.

    Samples without an image or a conversation, with a control token written in a text, and rows longer than `max_length` are
    left out and counted in the log. With `settings.independent` each question is a separate conversation, and a sample's
    share is the mean over all answer tokens. Raises DataError when nothing is left, ModelError as `VisionLanguageModel` does.
    """
    samples = read_share(index, settings.limit, data_ranks)
    share = together(data_ranks, _measured, teacher, samples, settings, max_length, progress)
    found = gathered(data_ranks, share)
    if not found:
        raise DataError(
            f"Nothing to measure: it needs {NEEDS[UNDERSTAND]} in a row of at most {max_length} tokens, and none of the first "
            f"{sample_count(index, settings.limit)} samples of {index.location} gives that. Give other shards, more samples or "
            "a longer --max-length."
        )
    left_out = sample_count(index, settings.limit) - len(found)
    if left_out and data_ranks.is_main:
        log.warning(
            "%d of %d samples left out: no image or conversation, a control token of %s in a text, or more than %d tokens.",
            *(left_out, left_out + len(found), teacher.name, max_length),
        )
    return {UNDERSTAND: curve_of(found)}


def _measured(
    teacher: VisionLanguageModel, samples: Sequence[tuple[int, Sample]], settings: Measuring, max_length: int, progress: bool
) -> list[SampleShares]:
    found = []
    for position, sample in tqdm(samples, desc=UNDERSTAND, unit=" samples", disable=not progress):
        rows = _rows(teacher.rows, sample, settings.independent)
        if not rows or any(row.length > max_length or not row.answers.shape[1] for row in rows):
            continue
        weights = np.array([row.answers.shape[1] for row in rows], dtype=np.float32)
        keys, first = zip(*map(teacher.shares, rows), strict=True)
        mean = torch.from_numpy(weights / weights.sum())
        found.append(SampleShares(position, mean @ torch.stack(keys), mean @ torch.stack(first)))
    return found


def _rows(rows: ChatRows, sample: Sample, independent: bool) -> list[ChatRow]:
    """The conversations of a sample; none when it lacks something."""
    if sample.image is None or not any(key in sample.meta for key in TALK_KEYS):
        return []
    pairs = question_answers(sample, apart=independent)
    if rows.control_in(pairs):
        return []
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in sample.images]
    return [rows.row(sample.key, pictures, part) for part in ([[pair] for pair in pairs] if independent else [pairs])]
