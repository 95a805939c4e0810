"""The text tokenizer of the tiny Janus: byte-level BPE learned from the sentences of a scenes folder.

Every word of the scenes, with the space before it, is one token; other text falls back to smaller tokens and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megaunigame.tiny_world.scenes import read_metas
from megaunigame.tiny_world.sizes import MAX_LENGTH, VOCABULARY

PAD, BOS, EOS = "<|pad|>", "<|begin_of_sentence|>", "<|end_of_sentence|>"
IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE, USER, ASSISTANT]
TASK_SENTENCES = (
    "draw this image again .",
    "draw the depth of this image .",
    "draw the segmentation of this image .",
    "\n\n",
)
"""Text of the trainer's rows that is not in the scenes."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}<|User|>: {{ message.content }}"
    "{% else %}\n\n<|Assistant|>: {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n\n<|Assistant|>:{% endif %}"
)


def sentences(folder: Path) -> Iterator[str]:
    """Captions, questions and answers of a scenes folder, written as in a row."""
    for meta in read_metas(folder):
        yield meta["caption"]
        for turn in meta["conversations"]:
            text = turn["value"].replace("<image>", "").strip()
            yield f"\n{text}" if turn["from"] == "human" else f" {text}"


def train_text_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of VOCABULARY tokens: special tokens, 256 bytes, and merges for the words of `corpus`."""
    words = words_of((*corpus, *TASK_SENTENCES))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=1,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={
            "image_token": IMAGE,
            "boi_token": BEGIN_OF_IMAGE,
            "eoi_token": END_OF_IMAGE,
            "user_token": USER,
            "assistant_token": ASSISTANT,
        },
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def words_of(corpus: Iterable[str]) -> list[str]:
    """The different words of all texts, each with the space before it, so that rare words get a token too."""
    return sorted({piece for text in set(corpus) for piece in _pieces(text)})


def _pieces(text: str) -> list[str]:
    """Words with the space before them, as the byte-level pre-tokenizer cuts them."""
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


def token_counts(tokenizer: PreTrainedTokenizerFast, corpus: Iterable[str]) -> dict[str, float]:
    """Tokens per distinct sentence (mean, largest), number of words, and number of words that are single tokens."""
    texts = set(corpus)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    words = {piece for text in texts for piece in _pieces(text)}
    single = sum(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in words)
    return {"mean": sum(lengths) / len(lengths), "largest": max(lengths), "words": len(words), "single": single}
