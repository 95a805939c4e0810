"""Small data sets in the forms of published ones, and the commands that pack them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data_prep.__main__ import main
from tests.data.shard_files import encoded, talk, write_tar

TALK, TEXT = talk(("<image>\nwhat ?", "that")), talk(("what ?", "that"))


def picture(seed: int, width: int = 20, height: int = 12, form: str = "jpeg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return encoded(pixels, form)


def write_vqa(folder: Path) -> dict[str, Path]:
    """Paths by option. Seven questions about three pictures, interleaved, in the files of VQA v2."""
    asked, answered = [], []
    for number in range(7):
        image_id, question_id = 100 + number % 3, 1000 + number
        asked.append({"image_id": image_id, "question": f"Question {number}?", "question_id": question_id})
        people = [{"answer": f"a{number}" if k < 7 else f"b{k}", "answer_confidence": "yes", "answer_id": k} for k in range(10)]
        answered.append(
            {"question_id": question_id, "image_id": image_id, "multiple_choice_answer": f"a{number}", "answers": people}
            | {"question_type": "what", "answer_type": ["yes/no", "number", "other"][number % 3]}
        )
    (folder / "questions.json").write_text(json.dumps({"data_subtype": "train2014", "questions": asked}))
    (folder / "annotations.json").write_text(json.dumps({"data_subtype": "train2014", "annotations": answered[::-1]}))
    (folder / "train2014").mkdir()
    for image_id in (100, 101, 102):
        (folder / "train2014" / f"COCO_train2014_{image_id:012d}.jpg").write_bytes(picture(image_id))
    names = {"questions": "questions.json", "annotations": "annotations.json", "image_root": "train2014", "out": "out"}
    return {name: folder / file for name, file in names.items()}


def pack_vqa(paths: dict[str, Path], *more: str, annotated: bool = True) -> int:
    annotations = ["--annotations", str(paths["annotations"])] if annotated else []
    sources = ["--questions", str(paths["questions"]), "--image-root", str(paths["image_root"]), *annotations]
    return main(["pack", "--format", "vqa-json", *sources, "--out", str(paths["out"]), *more])


def cc3m(folder: Path, tars: int = 3, each: int = 4) -> None:
    """Pictures with txt and json as in the CC3M tars."""
    for shard in range(tars):
        members = []
        for number in range(shard * each, (shard + 1) * each):
            meta = {"key": f"{number:09d}", "status": "success", "original_width": 40, "clip_similarity": number / 10}
            fields = {"jpg": picture(number), "json": json.dumps(meta).encode(), "txt": b" words %d\n" % number}
            members += [(f"{number:09d}.{field}", data) for field, data in fields.items()]
        write_tar(folder / f"cc3m-train-{shard:04d}.tar", members)


def pack_tars(source: str, out: Path, *more: str) -> int:
    return main(["pack", "--format", "wds", "--source", source, "--out", str(out), *more])
