"""A unified multimodal model: one network, a few named passes.

Only `forward` runs under the training engine. Frozen tokenizers (VQ, VAE) are not in the module tree: they are replicated,
stay in eval mode, and no engine partitions or saves them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor, nn

from megaunigame.errors import ModelError
from megaunigame.models.base.attention import AttentionNeeds
from megaunigame.models.base.processor import Processor
from megaunigame.models.base.weights import Weights
from megaunigame.parallel.row_sharing import RowSharing
from megaunigame.registry import unknown
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, PassInputs, PassOutput, UnderstandInputs, UnderstandOutput
from megaunigame.step.requests import GENERATE

Generators = torch.Generator | Sequence[torch.Generator]
"""Where a batch draws its random numbers from: one generator for all rows, or one for each row (see `models.row_noise`)."""


class DecodedPictures(NamedTuple):
    """Pictures decoded from hidden states."""

    pixels: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    changed: Tensor
    """(B,) float32 in [0, 1]: fraction of the picture's codes that the perturbation changed, from those of the anchor where
    there is one (latents: relative change)."""


class UnifiedModel(nn.Module, RowSharing, ABC):
    """A model that understands and generates images through named passes.

    The class attributes describe the family.
    """

    name: ClassVar[str]
    """The family's folder in megaunigame/models, and its name in recipes."""
    groups: ClassVar[Mapping[str, Sequence[str]]]
    """Name of a group (`lm`, `aligner`, ...) -> prefixes of parameter names; every parameter is in exactly one."""
    trained_by_default: ClassVar[Sequence[str]]
    """Groups trained in full fine-tuning when the recipe names none."""
    passes: ClassVar[Mapping[str, Sequence[str]]]
    """Name of a pass -> groups whose parameters take part in it."""
    seeing: ClassVar[Sequence[str]] = ()
    """Groups that take part only if rows have source images."""
    reads_target: ClassVar[Sequence[str]] = ()
    """Groups of `seeing` that also read the picture to be drawn, and so take part in every generate pass."""
    sizes: ClassVar[Mapping[str, Callable[[Path], None]]] = {}
    """Name of a published size, the smallest first -> writes its model folder, without weights: configuration, a stand-in
    tokenizer with the family's special tokens, picture settings."""
    in_transformers: ClassVar[bool] = False
    """Whether transformers has a class for the family, and a processor, that read an exported folder."""
    frozen_folder: ClassVar[str] = ""
    """Folder inside a model folder for the weights of frozen tokenizers that are published alone; "": the files of the others
    hold them."""
    has_decoder: ClassVar[bool] = True
    """Whether `decode` exists, which maps hidden states of the generate pass to pixels, differentiable."""
    has_codes: ClassVar[bool] = False
    """Whether its pictures are codes, so that `decode` counts in `changed` those that a perturbation flips."""
    predicts_whole: ClassVar[bool] = True
    """Whether every hidden state of a generate pass with gradient predicts a part of the picture; False: some read one."""
    reads_codes: ClassVar[bool] = False
    """Whether its source pictures are codes of the same tokenizer, too."""
    interleaves: ClassVar[bool] = False
    """Whether a request may have several source images, with texts between them (`GenerateRow.context`)."""
    released_guidance: ClassVar[float] = 5.0
    """Scale of classifier-free guidance of the official sampling from a text, as `sample` counts it; 5 where we know none."""
    packed_passes: Collection[str] = ()
    """Names of passes whose rows are read one after another, without padding."""
    processor: Processor
    rehearses: bool = False
    """Whether its passes are those of the dry run, on the largest rows that a plan counts on."""
    leave_point: Callable[[], None] = staticmethod(lambda: None)
    """Called between the model calls of `sample`, `answer` and evaluations, on all ranks together. See `leavable`."""

    @classmethod
    @abstractmethod
    def open_processor(cls, path: str, *, max_length: int) -> Processor:
        """The processor of the model folder `path`; needs its configuration, tokenizer and picture settings only."""

    @classmethod
    def check_folder(cls, path: str) -> None:
        """Raise ModelError unless `path` is a model folder of this family, by its settings alone."""
        cls.open_processor(path, max_length=1)

    @classmethod
    def attention_needs(cls, path: str) -> AttentionNeeds:
        """What the attention of the model in `path` must be able to do, by its configuration alone."""
        return AttentionNeeds()

    @classmethod
    @abstractmethod
    def build(cls, path: str, processor: Any, *, attention: str, gradient_checkpointing: bool) -> UnifiedModel:
        """Construct from the configuration in `path`, without reading the trainable weights.

        `processor`: from `open_processor` of the same folder. Called inside the engine's partitioning context, so it must
        only create modules. Frozen tokenizers are built by `load_frozen`, outside that context.
        """

    @classmethod
    @abstractmethod
    def weights(cls, path: str) -> Weights:
        """The checkpoint in `path` (Hugging Face folder or official keys) under this model's parameter names.

        Raises ModelError when its names or shapes do not match the configuration in `path`.
        """

    @classmethod
    @abstractmethod
    def frozen_weights(cls, path: str) -> Weights:
        """The frozen tokenizers of the checkpoint in `path`, under their names in an exported folder (its `frozen_folder`)."""

    @classmethod
    @abstractmethod
    def write_settings(cls, path: str, out: Path) -> None:
        """Write into `out` the files of a Hugging Face folder other than weights: configuration, tokenizer, preprocessing."""

    @classmethod
    @abstractmethod
    def write_processor(cls, path: str, out: Path) -> None:
        """Write into `out` the part of `write_settings` that a processor reads: tokenizer, preprocessing."""

    @classmethod
    def usage(cls, folder: str, path: str) -> str:
        """How to use an exported folder, in Markdown with code; `folder`: as the code names it, `path`: where it is."""
        return ""

    @classmethod
    def differences(cls, path: str) -> list[str]:
        """Where transformers' processor of the exported folder `path` makes other token ids than ours, one line for each."""
        return []

    @classmethod
    def write_size(cls, size: str, folder: Path) -> None:
        """Write the model folder of a published size. Raises ModelError for a size that `sizes` does not name."""
        if not cls.sizes:
            raise ModelError(f"{cls.__name__} has no size {size!r}: it has no named sizes. Give the path of a model folder.")
        if size not in cls.sizes:
            raise ModelError(unknown(f"size of {cls.name}", size, list(cls.sizes)))
        cls.sizes[size](folder)

    @classmethod
    def language_layers(cls, path: str) -> int:
        """Layers of the language model in `path`, from its configuration alone; 0: its attention cannot be measured."""
        return 0

    @classmethod
    def trained_positions(cls, path: str) -> int:
        """Positions of a row that the language model in `path` was trained on, from its configuration alone; 0: not known.

        Longer rows run, with a warning. A family whose positions end there must refuse them in `open_processor`.
        """
        return 0

    def layers(self) -> Sequence[nn.Module]:
        """The layers of the language model, in their order; none: single layers cannot be looked at."""
        return ()

    def install_taps(self) -> int:
        """Make `PassInputs.taps` work; returns the layers of the language model. Passes without taps are unchanged.

        Raises ModelError when the attention of the model cannot be intercepted.
        """
        raise ModelError(f"{type(self).__name__} does not measure its attention.")

    def pack_rows(self, tokens: int) -> None:
        """From now on read the rows of a pass one after another, without padding (`model.pack_tokens`); nothing else changes.

        `tokens`: of a pass; the largest rows of the processor have no more, as far as their number allows. Raises ModelError
        when the family, or its attention, cannot.
        """
        raise ModelError(f"{type(self).__name__} cannot pack rows; type model.pack_tokens=0.")

    @abstractmethod
    def load_frozen(self, path: str, device: torch.device) -> None:
        """Build and load the frozen tokenizers, outside the module tree, in float32."""

    @abstractmethod
    def check_frozen(self, path: str) -> None:
        """Raise ModelError unless `load_frozen` will find its weights in `path`, by their names, shapes and number types."""

    @abstractmethod
    def build_frozen(self) -> nn.Module:
        """The frozen tokenizer of the configuration, its weights not loaded."""

    @abstractmethod
    def hold_frozen(self, module: nn.Module) -> None:
        """Use `module`, which `build_frozen` made, as the frozen tokenizer."""

    def frozen_modules(self) -> dict[str, nn.Module]:
        """Name of a frozen tokenizer -> the module that is used, outside the module tree; to look at its weights."""
        return {}

    @classmethod
    def accept_codes(cls, processor: Any, tokenizer: str | None, *, partial: bool) -> None:
        """From now on rows of `processor` may have codes of this `tokenizer` (None: of any). No change in a family without."""

    def use_stored_codes(self, *, partial: bool) -> None:
        """From now on rows may have codes that this family's tokenizer made before; without codes in a family, nothing changes.

        `partial`: encode pictures whose codes are stored for other geometries or sides only; False: refuse them.
        """

    def tokenizer_identity(self) -> str:
        """Hash of the frozen tokenizer, stored with its codes. Raises ModelError in a family without codes."""
        raise ModelError(f"{type(self).__name__} draws no codes, so none can be stored.")

    if TYPE_CHECKING:  # nn.Module's is untyped

        @overload
        def __call__(self, inputs: UnderstandInputs, predict: bool = False) -> UnderstandOutput: ...
        @overload
        def __call__(self, inputs: GenerateInputs, predict: bool = False) -> GenerateOutput: ...
        @overload
        def __call__(self, inputs: PassInputs, predict: bool = False) -> PassOutput: ...
        def __call__(self, inputs: PassInputs, predict: bool = False) -> PassOutput: ...

    def forward(self, inputs: PassInputs, predict: bool = False) -> PassOutput:
        """Run one pass: `understand` or `generate`, which are called through here only (engines hook the module's call)."""
        if isinstance(inputs, UnderstandInputs):
            return self.understand(inputs, predict)
        if isinstance(inputs, GenerateInputs):
            if not inputs.targets.numel():
                raise ValueError("These rows are prompts for `sample`: they have no targets, which the generate pass needs.")
            return self.generate(inputs, predict)
        raise TypeError(f"{type(self).__name__} has no pass for {type(inputs).__name__}.")

    @abstractmethod
    def understand(self, inputs: UnderstandInputs, predict: bool) -> UnderstandOutput:
        """The understand pass. With `predict`, also the greedy predictions."""

    @abstractmethod
    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """The generate pass, teacher forced. With `predict`, also the greedy predictions, if the family has codes."""

    def predict(self, inputs: PassInputs) -> Tensor:
        """Greedy predictions of a pass: tokens (B, S) or codes (B, N). Raises ModelError in a family without codes."""
        predictions = self(inputs, predict=True).predictions
        if predictions is None:
            raise ModelError(f"{type(self).__name__} predicts no codes in its {inputs.pass_name} pass.")
        return predictions

    @abstractmethod
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> targets of the generate pass: codes (B, N) or latents. No gradient."""

    @property
    @abstractmethod
    def token_width(self) -> int:
        """D: width of the hidden states of the generate pass, and of the visual tokens that the language model reads."""

    @abstractmethod
    def visual_tokens(self, images: Tensor) -> Tensor:
        """Source images (B, I, 3, H, W), normalized -> the tokens the language model reads (B, I, N, D)."""

    @abstractmethod
    def as_source(self, pixels: Tensor) -> Tensor:
        """Generated pixels (B, 3, H, W) in [-1, 1] -> source images (B, 3, H, W), normalized; differentiable."""

    @abstractmethod
    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> DecodedPictures:
        """Post-LM visual tokens (B, N, D), plus `delta` (B, N, D) -> pixels, differentiable in both.

        With `anchor`, the target of teacher forcing (`GenerateOutput.target`), a position keeps its target unless the
        perturbation changes what the model draws there: delta = 0 then decodes to the picture that was encoded.
        """

    @abstractmethod
    def decode_target(self, target: Tensor) -> Tensor:
        """Inverse of `encode_target`: (B, 3, H, W) in [-1, 1]. The ceiling of anything the model can generate."""

    @abstractmethod
    def sample(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: Generators,
        lockstep: bool = True,
    ) -> Tensor:
        """Generate the pictures of a generate pass (its targets are not read): (B, 3, H, W) in [-1, 1].

        The number of model calls does not depend on the data, so ranks stay in lockstep. With `lockstep` False a family whose
        codes are drawn one by one makes further calls where rounding could change a choice: a row, with a generator of its
        own, then is the same in any batch, as long as the model is in float32. Other families make the same calls either way.
        """

    @property
    @abstractmethod
    def calls_per_sample(self) -> int:
        """Forwards through the language model in one `sample`."""

    @abstractmethod
    def answer(
        self,
        inputs: UnderstandInputs,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: Generators | None = None,
        lockstep: bool = True,
    ) -> Tensor:
        """Continuation of prompts (rows that end before the answer): (B, max_new_tokens) token ids.

        At `temperature` 0 the likeliest tokens, else drawn, from `generator`. After the end token a row repeats it. Always
        makes `max_new_tokens` calls; with `lockstep` False none after all rows have ended (the result is that much shorter),
        and further ones where rounding could change a choice, as `sample`.
        """

    @abstractmethod
    def add_lora(
        self,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        targets: Sequence[str],
        seed: int,
        rslora: bool = False,
        dora: bool = False,
    ) -> None:
        """Put low-rank adapters into the language model, without `targets` into all its linear layers; every other parameter is
        frozen.

        `rslora`: scaled by alpha / sqrt(rank) instead of alpha / rank. `dora`: with trained lengths of the rows of a weight.
        """

    @classmethod
    def target_of(cls, layer: str) -> str:
        """What `targets` of `add_lora` call the linear layer of this name."""
        return layer.rpartition(".")[2]

    @classmethod
    def groups_of_pass(cls, pass_name: str, takes_images: bool) -> list[str]:
        """Groups whose parameters take part in this pass, given whether its rows have source images."""
        out = set() if takes_images else set(cls.seeing) - set(cls.reads_target if pass_name == GENERATE else ())
        return [group for group in cls.passes[pass_name] if group not in out]

    def unreached(self, pass_name: str) -> tuple[str, ...]:
        """Beginnings of names of weights that belong to groups of this pass and get no gradient from it, such as the head of a
        language model whose hidden states are decoded elsewhere. A plan without another pass leaves them as they are."""
        return ()

    @classmethod
    def group_of(cls, name: str) -> str:
        """The group a parameter belongs to."""
        for group, prefixes in cls.groups.items():
            if any(name.startswith(prefix) for prefix in prefixes):
                return group
        raise KeyError(f"Parameter {name} belongs to no group of {cls.__name__}.")


def clamped(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1]. The gradient passes also where a pixel is saturated, so that it can return from there."""
    return pixels.clamp(-1, 1).detach() + (pixels - pixels.detach())


@contextmanager
def leavable(model: UnifiedModel, leave_point: Callable[[], None]) -> Iterator[None]:
    """Inside, work of the model can be left between its calls: `leave_point`, a collective, then raises on all ranks."""
    before, model.leave_point = model.leave_point, leave_point
    try:
        yield
    finally:
        model.leave_point = before


@contextmanager
def rehearsing(model: UnifiedModel) -> Iterator[None]:
    """Inside, the passes are those of the dry run."""
    model.rehearses = True
    try:
        yield
    finally:
        model.rehearses = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside: no dropout, and no gradient checkpointing (which would empty the cache)."""
    # Module by module: the caller may have put single ones into eval mode, such as the dropouts of a frozen learner.
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
