"""The published shapes that are profiled on one GPU, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field

RANDOM = ["model.weights=random", "batch.global_rows=null", "batch.accumulation=1", "loader.workers=0"]
LORA = ["model.train=lora", "model.groups=[]", "model.gradient_checkpointing=true"]


@dataclass(frozen=True)
class Shape:
    label: str
    recipe: str
    settings: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """What follows `python`, without --out."""
        return ["launch/profile.py", f"launch/recipes/{self.recipe}.yaml", *RANDOM, *self.settings]


SHAPES = {
    "janus_7b_lora": Shape("Janus-Pro-7B, LoRA", "janus_pro_7b_sft", [*LORA, "model.size=7b"]),
    "janus_7b_full": Shape("Janus-Pro-7B, full", "janus_pro_7b_sft", ["model.size=7b", "model.train=full"]),
    "janus_7b_unigame": Shape(
        "Janus-Pro-7B, UniGame", "janus_pro_7b_unigame", [*LORA, "model.size=7b", "objectives.unigame.clip=null"]
    ),
    "emu3_8b_lora": Shape("Emu3-8B, LoRA, AIA", "emu3_8b_aia", [*LORA, "model.size=8b"]),
    "openuni_38b_lora": Shape("OpenUni-38B, LoRA, UniMRG", "openuni_3_6b_unimrg", [*LORA, "model.size=38b"]),
}
"""Name -> shape. The last is the largest; it fits GPUs of 141 GB, and a smaller one says that it does not."""
