"""Lazy reading of checkpoint files: one tensor at a time, never a whole file in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pieces import Piece, data_offsets
from megaunigame.storage.plain_names import is_plain_name

LAYOUTS = (
    *("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"),
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
)

KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Number types of weights that are not quantized, and their names in a safetensors header."""

STATES = ("state_dict", "model", "ema", "model_ema", "ema_state_dict")
"""Entries under which a checkpoint of a whole training holds sets of weights: those trained, or their moving average."""


class TensorFiles:
    """The tensors of one checkpoint, over any number of safetensors or PyTorch (`.bin`, `.pth`) files.

    safetensors are read slice by slice. PyTorch files are memory-mapped, and opened with `weights_only=True`, so that no code
    of a checkpoint runs; a checkpoint of a whole training has its tensors under one of `STATES`.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = [Path(f) for f in files]
        self._hidden: tuple[str, ...] = ()
        self._opened: dict[Path, Any] = {}
        self._offsets: dict[Path, dict[str, range]] = {}

    @classmethod
    def of_folder(cls, path: str | Path, hint: str = "") -> TensorFiles:
        """The weight files of a model folder, single or sharded. Raises ModelError, with the hint, when there are none."""
        folder = Path(path)
        for layout in LAYOUTS:
            if not (folder / layout).is_file():
                continue
            if not layout.endswith(".index.json"):
                return cls([folder / layout])
            shards = _listed(folder / layout)
            missing = [s.name for s in shards if not s.is_file()]
            if missing:
                raise ModelError(
                    f"{folder / layout} names the shard {missing[0]}, which is not there "
                    f"({len(missing)} of {len(shards)} are missing). Copy all shards into {folder}."
                )
            return cls(shards)
        after = f" {hint}" if hint else ""
        raise ModelError(f"No weights in {folder}. A model folder holds one of: {', '.join(LAYOUTS)}.{after}")

    def without(self, prefix: str) -> TensorFiles:
        """The same files, as if they had no keys that begin with `prefix`."""
        others = TensorFiles(self.files)
        others._hidden = (*self._hidden, prefix)
        return others

    @cached_property
    def index(self) -> dict[str, Path]:
        """Key of every tensor -> the file it is in."""
        found: dict[str, Path] = {}
        for file in self.files:
            for key in self._open(file).keys():  # noqa: SIM118  (safe_open)
                if found.setdefault(key, file) != file and not key.startswith(self._hidden):
                    raise ModelError(
                        f"{key} is in {found[key]} and in {file}. Move the file away that does not belong to the model."
                    )
        return {key: file for key, file in found.items() if not key.startswith(self._hidden)}

    def _open(self, file: Path) -> Any:
        if file not in self._opened:
            try:
                if file.suffix == ".safetensors":
                    self._opened[file] = safe_open(file, framework="pt")
                else:
                    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:
                # Readers raise different exceptions for a truncated file; the user needs the name of the file.
                if type(error).__name__ == "UnpicklingError":  # torch's text advises to let the code in the file run
                    raise ModelError(_refused(file, str(error))) from None
                raise ModelError(f"{file} cannot be read as a checkpoint: {one_line(error)}. Copy it again.") from error
            if file.suffix != ".safetensors":
                self._opened[file] = _state_of(file, content)
        return self._opened[file]

    def shape(self, key: str) -> torch.Size:
        opened = self._open(self.index[key])
        if isinstance(opened, dict):
            return self._tensor(opened, key).shape
        return torch.Size(opened.get_slice(key).get_shape())

    def kind(self, key: str) -> str:
        """Number type of the tensor, by its name in a safetensors header: F32, BF16, I8, ..."""
        opened = self._open(self.index[key])
        if isinstance(opened, dict):
            dtype = self._tensor(opened, key).dtype
            return KINDS.get(dtype, str(dtype))
        return str(opened.get_slice(key).get_dtype())

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        """The tensor under `key`, or only `rows` of its first dimension."""
        opened = self._open(self.index[key])
        if isinstance(opened, dict):
            tensor = self._tensor(opened, key)
            return tensor[rows] if tensor.dim() else tensor
        if rows == slice(None):
            return opened.get_tensor(key)
        return opened.get_slice(key)[rows]

    def pieces(self, key: str) -> list[Piece] | None:
        """Where the elements of a tensor lie, as one piece; None: in a PyTorch file, or no plain numbers."""
        file = self.index[key]
        opened = self._open(file)
        dtype = next((dtype for dtype, kind in KINDS.items() if kind == self.kind(key)), None)
        if isinstance(opened, dict) or dtype is None:
            return None
        if file not in self._offsets:
            self._offsets[file] = data_offsets(file)
        count, lies = math.prod(self.shape(key)), self._offsets[file].get(key, range(0))
        if len(lies) != count * dtype.itemsize:
            raise ModelError(f"{file}: {quoted(key, 200)} has {len(lies)} bytes for {count} elements. Copy the file again.")
        return [Piece(str(file), lies.start, dtype, count)]

    def _tensor(self, opened: Mapping[str, Any], key: str) -> Tensor:
        tensor = opened[key]
        if kind := _odd_kind(tensor):
            raise ModelError(
                f"{self.index[key]}: {quoted(key, 200)} is a {kind}, not a tensor of plain numbers. Take another file, or "
                "convert this one to safetensors."
            )
        return tensor.detach()  # type: ignore[no-any-return]


def _state_of(file: Path, content: Any) -> dict[str, Any]:
    """The entries by name of a PyTorch file. Raises ModelError when it has another form."""
    state = content
    if isinstance(content, dict):
        inner = [name for name in STATES if isinstance(content.get(name), dict)]
        if len(inner) > 1:
            raise ModelError(
                f"{file} holds several sets of weights ({', '.join(inner)}). Save the one to use in a file of its own, with "
                "torch.save."
            )
        state = content[inner[0]] if inner else content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ModelError(f"{file} holds a {type(state).__name__}, not tensors by their names. Take another file of the model.")
    for name in state:
        if not isinstance(name, str):
            raise ModelError(f"{file} has {quoted(name)} in place of the name of a tensor. Take another file of the model.")
    return state


def _odd_kind(value: Any) -> str:
    """What an entry of a PyTorch file is in place of a tensor that can be read row by row; empty: it is one."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return type(value).__name__
    if value.is_nested or value.is_quantized:
        return "nested tensor" if value.is_nested else "quantized tensor"
    if value.layout != torch.strided:
        return f"tensor of the layout {value.layout}"
    return "tensor without values (meta)" if value.is_meta else ""


def _listed(index: Path) -> list[Path]:
    """The files that an index of shards names. Raises ModelError when it is damaged, or names one outside its folder."""
    weight_map = read_object(index, "an index of weights", ModelError, "Copy it again.").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no `weight_map`, which says the file of every weight. Copy it again.")
    for name in weight_map.values():
        if not is_plain_name(name):
            raise ModelError(
                f"{index} names the file {quoted(name, 200)}, which is not a file name in its folder. Do not use it."
            )
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _refused(file: Path, said: str) -> str:
    """Why a PyTorch file was not read: what it holds beyond tensors could be code."""
    held = re.search(r"GLOBAL ([\w.]+)", said)
    what = f" ({held[1]})" if held else ""
    return (
        f"{file} holds Python objects other than tensors{what}, or is damaged. Such objects are refused: reading them can run "
        "code. Take the safetensors files of the model, or convert the file to safetensors where you trust who wrote it."
    )


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file that transformers and PEFT read; who may read it follows the umask, as of any other file."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, {"format": "pt"})  # replaces the file by one that only its owner may read
    file.chmod(mode)


def save_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write all tensors into one file of a model folder."""
    save_tensors({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "model.safetensors")


def save_state_in_two(folder: Path, state: Mapping[str, Tensor], prefix: str, inner: Path) -> None:
    """Write the tensors whose names begin with `prefix` into the folder `inner`, without it, and all others into `folder`."""
    inner.mkdir(exist_ok=True)
    save_state(folder, {name: value for name, value in state.items() if not name.startswith(prefix)})
    save_state(inner, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
