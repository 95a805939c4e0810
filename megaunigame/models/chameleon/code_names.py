"""The tokens of the image codes: `IMGIMG`, the decimal digits of the code as letters (A: 0, ..., J: 9), `Z`.

Their ids follow no order of the codes, so a table of the vocabulary says which token a code is. The language model only needs
the ids of all codes to be one range; a code is then known by its place in it: place p is the token first + p.
"""

from __future__ import annotations

from collections.abc import Mapping

from megaunigame.errors import ModelError

LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


def code_token(code: int) -> str:
    """Name of the token of a code."""
    return f"IMGIMG{str(code).translate(LETTERS)}Z"


def ids_of_codes(vocabulary: Mapping[str, int], codebook: int, where: str) -> list[int]:
    """Id of the token of each of `codebook` codes.

    Raises ModelError, naming the folder `where`, when a code has no token, when there are tokens of more codes, or when the
    ids are not one range.
    """
    names = [code_token(code) for code in range(codebook)]
    missing = [name for name in names if name not in vocabulary]
    more = code_token(codebook)
    if missing or more in vocabulary:
        found = f"has no token {missing[0]}" if missing else f"has a token {more}"
        raise ModelError(
            f"The tokenizer in {where} {found}; the image tokenizer has {codebook} codes, {names[0]} to {names[-1]}. "
            "Take the tokenizer of this model."
        )
    ids = [vocabulary[name] for name in names]
    if max(ids) - min(ids) != codebook - 1:
        raise ModelError(
            f"The tokenizer in {where} has the {codebook} codes of the image tokenizer at ids from {min(ids)} to {max(ids)}, "
            "with other tokens between them; they must be one range, in any order. Take the tokenizer of this model."
        )
    return ids


def codes_by_place(ids: list[int]) -> list[int]:
    """Place in the range of ids -> code."""
    return sorted(range(len(ids)), key=ids.__getitem__)
