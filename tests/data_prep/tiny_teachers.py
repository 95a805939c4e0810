"""Randomly initialized Depth Anything V2, SAM and SAM 2 checkpoints of some hundred kilobytes, and shards to annotate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from data_prep.shard_writer import Job, Shard, ShardSample
from tests.data.shard_files import encoded, talk
from tests.data_prep.stored import write_whole

KEEP_ALL = {"points_per_side": 2, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
"""A random SAM is sure of nothing: with the thresholds of real use it gives no mask."""


def depth_checkpoint(folder: Path, damage: float | None = None) -> Path:
    """Sees 56 pixels. `damage` becomes the value of one weight."""
    torch.manual_seed(1)
    backbone = hf.Dinov2Config(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=48, neck_hidden_sizes=[12, 24, 48, 48], fusion_hidden_size=16,
        head_hidden_size=8, initializer_range=0.2,
    )  # fmt: skip
    model = hf.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        model.head.conv3.weight.abs_()  # the head ends in a ReLU: half of all random heads would give zeros
        if damage is not None:
            model.head.conv3.weight[0] = damage
    model.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    hf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


PROMPTS = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2}
"""Of SAM and of SAM 2."""


def sam_checkpoint(folder: Path, damage: float | None = None) -> Path:
    torch.manual_seed(2)
    vision = hf.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16,
        window_size=4, global_attn_indexes=[1], mlp_dim=64, num_pos_feats=16,
    )  # fmt: skip
    prompts = hf.SamPromptEncoderConfig(**PROMPTS, image_embedding_size=8).to_dict()
    decoder = hf.SamMaskDecoderConfig(**DECODER, iou_head_hidden_dim=32, num_hidden_layers=2).to_dict()
    config = hf.SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = hf.SamModel(config)
    if damage is not None:
        with torch.no_grad():
            model.mask_decoder.iou_prediction_head.proj_in.weight[0] = damage
    model.save_pretrained(folder)
    hf.SamImageProcessor(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128},
        mask_size={"longest_edge": 32}, mask_pad_size={"height": 32, "width": 32},
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sam2_checkpoint(folder: Path) -> Path:
    torch.manual_seed(3)
    backbone = hf.Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[3],
    )  # fmt: skip
    vision = hf.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=32,
    )  # fmt: skip
    prompts = hf.Sam2PromptEncoderConfig(**PROMPTS)
    decoder = hf.Sam2MaskDecoderConfig(**DECODER, iou_head_hidden_dim=32, iou_head_depth=2)
    config = hf.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    hf.Sam2Model(config).save_pretrained(folder)
    sizes = {"size": {"height": 128, "width": 128}, "mask_size": {"height": 32, "width": 32}}
    hf.Sam2ImageProcessor(**sizes).save_pretrained(folder)
    return folder


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): colored blocks with some noise."""
    rng = np.random.default_rng(number)
    blocks = np.kron(rng.integers(0, 200, (4, 4, 3)), np.ones((-(-height // 4), -(-width // 4), 1)))[:height, :width]
    return (blocks + rng.integers(0, 12, blocks.shape)).astype(np.uint8)


def sample_of(number: int) -> ShardSample:
    """Sample `number`: every fifth has no picture; sizes alternate; captions and conversations alternate."""
    if number % 5 == 4:
        meta = {"conversations": talk(("which ?", "this")), "größe": 1}
        return {"__key__": f"{number:04d}", "json": json.dumps(meta).encode()}
    said = talk((f"<image>\nwhich is {number} ?", "this"))
    meta = {"conversations": said, "id": f"p{number}", **({"caption": f"block {number}"} if number % 2 else {})}
    height, width = ((40, 56), (56, 40), (64, 64))[number % 3]
    shown = encoded(picture(number, height, width), "JPEG")
    return {"__key__": f"{number:04d}", "json": json.dumps(meta).encode(), "jpg": shown}


def write_source(folder: Path, samples: int = 30, per_shard: int = 10) -> Path:
    """A finished data set `toy` of `sample_of`."""

    def shard(number: int) -> Shard:
        return Shard(samples=(sample_of(k) for k in range(number * per_shard, min((number + 1) * per_shard, samples))))

    write_whole(Job(folder, "toy", {"command": "toy", "samples": samples}, -(-samples // per_shard), shard))
    return folder
