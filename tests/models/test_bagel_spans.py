"""BAGEL's masks and positions, against the rules said for one element at a time."""

from __future__ import annotations

import torch

from megaunigame.models.bagel.spans import (
    drawing_layout,
    positions_of,
    sees,
    spans_of,
    without_last_text,
    without_sources,
)

BEGIN, END, BOS, EOS, PAD, IMAGE = 1, 2, 3, 4, 0, 5
NAMES = BEGIN, END, IMAGE
TEXT = [BOS, 7, 8, EOS]
SEEN = [BEGIN, IMAGE, IMAGE, IMAGE, END]
LATENT = [BEGIN, END]


def rows(*lists):
    """Left padded tokens, and where they are read."""
    width = max(map(len, lists))
    tokens = torch.tensor([[PAD] * (width - len(row)) + row for row in lists])
    return tokens, tokens != PAD


def whole_row(tokens, latents):
    """(element, block, position in the official order) with the latent tokens of each `LATENT` in their place."""
    elements, block, blocks = [], 0, 0
    pending = iter(latents)
    for index, token in enumerate(tokens):
        if token == BEGIN:
            blocks += 1
            block = blocks
        elements.append((index, block))
        if token == BEGIN and tokens[index + 1] == END:
            elements += [(element, block) for element in next(pending)]
        if token == END:
            block = 0
    return elements


def expected(tokens, latents):
    """Pairs (q, k) of elements that see each other, and the position of every element."""
    elements = whole_row(tokens, latents)
    visible, places, place = set(), {}, -1
    drawn = max(block for _, block in elements)
    for at, (element, block) in enumerate(elements):
        first = block == 0 or elements[at - 1][1] != block
        place += first
        places[element] = place
        for before, (other, theirs) in enumerate(elements):
            hidden = theirs == drawn and block != drawn
            if (before <= at or (block and block == theirs)) and not hidden:
                visible.add((element, other))
    return visible, places


def test_rows_about_pictures_see_and_count_as_said():
    tokens, attention = rows(SEEN + SEEN + TEXT + TEXT, TEXT + TEXT, SEEN + TEXT)
    spans = spans_of(tokens, attention, BEGIN, END)
    seen, positions = sees(spans), positions_of(spans, attention)
    for row in range(len(tokens)):
        start = int((~attention[row]).sum())
        real = tokens[row, start:].tolist()
        block, place, number = [], [], 0
        for token in real:
            number += token == BEGIN
            inside = token in (BEGIN, IMAGE, END)
            place.append((place[-1] + (token not in (IMAGE, END))) if place else 0)
            block.append(number if inside else 0)
        for q in range(len(real)):
            for k in range(len(real)):
                legal = k <= q or (block[q] > 0 and block[q] == block[k])
                assert bool(seen[row, start + q, start + k]) == legal, (row, q, k)
        assert positions[row, start:].tolist() == place


def test_requests_see_and_count_as_said():
    """Without a source, with one, with two and a text between them, and a dummy."""
    short, edit = TEXT + LATENT, LATENT + SEEN + TEXT + LATENT
    two = LATENT + SEEN + TEXT + LATENT + SEEN + TEXT + LATENT
    tokens, attention = rows(short, edit, two, [PAD])
    attention[3, -1] = True
    layout = drawing_layout(tokens, attention, 2, 2, 3, *NAMES)
    length = tokens.shape[1]
    assert layout.mask.shape == (4, length + 7, length + 7)
    assert layout.mask.diagonal(dim1=1, dim2=2).all()
    sources, drawn = [[length, length + 1], [length + 2, length + 3]], [length + 4, length + 5, length + 6]
    for row, (text, latents) in enumerate([(short, [drawn]), (edit, [sources[0], drawn]), (two, [*sources, drawn])]):
        start = length - len(text)
        named = [[element - start for element in part] for part in latents]
        visible, places = expected(text, named)
        found = {
            (q - start, k - start)
            for q, k in layout.mask[row].nonzero().tolist()
            if q - start in places and (k - start in places or q != k)
        }
        assert found == visible, (row, found ^ visible)
        assert {element: int(layout.positions[row, element + start]) for element in places} == places
    hidden = layout.mask[0, :, length : length + 4]  # the places of sources that the row does not have
    assert hidden.nonzero().tolist() == [[length + place, place] for place in range(4)]


def test_a_picture_that_a_row_lost_is_a_position_and_is_not_read():
    tokens, attention = rows([IMAGE, *SEEN, *TEXT, *LATENT, IMAGE, *TEXT, *LATENT])
    layout = drawing_layout(tokens, attention, 1, 2, 3, *NAMES)
    length = tokens.shape[1]
    assert layout.mask[0][:, [0, 12]].nonzero().tolist() == [[0, 0], [12, 1]]  # each by itself alone
    assert layout.positions[0, :length].tolist() == [0, *[1] * 5, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]
    assert layout.positions[0, length:].tolist() == [6, 6, 12, 12, 12]


def test_contexts_without_text_and_without_pictures():
    system, edit = [BOS, 9, EOS], LATENT + SEEN + TEXT + LATENT
    tokens, attention = rows(system + edit, TEXT + LATENT)
    text = without_last_text(tokens, attention, BOS)
    assert tokens[0][text[0]].tolist() == system + LATENT + SEEN + LATENT
    assert tokens[1][text[1]].tolist() == LATENT
    pictures = without_sources(tokens, attention, BEGIN, END)
    assert tokens[0][pictures[0]].tolist() == system + TEXT + LATENT
    assert tokens[1][pictures[1]].tolist() == TEXT + LATENT
    layout = drawing_layout(tokens, text, 1, 2, 3, *NAMES)
    assert layout.positions[0, -1] == 5 and layout.positions[1, -1] == 0  # system 3, source 2; nothing


def test_independent_turns_count_from_their_pictures():
    tokens, attention = rows(SEEN + [BOS, 7, EOS, BOS, 8, EOS, 9, EOS, BOS, 6, EOS])
    segments = torch.tensor([[0] * 6 + [1] * 5 + [2] * 5])
    positions = positions_of(spans_of(tokens, attention, BEGIN, END), attention, segments)
    assert positions[0].tolist() == [0] * 5 + [1] + [2, 3, 4, 5, 6] * 2
