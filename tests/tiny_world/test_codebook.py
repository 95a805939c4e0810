from __future__ import annotations

import torch
import torch.nn.functional as F

from megaunigame.tiny_world.codebook import RunningCodebook


def clusters(count: int, per_cluster: int, seed: int) -> torch.Tensor:
    """Unit vectors around `count` centers (the same for every seed), in random order."""
    centers = F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(7)))
    noise = torch.randn(count * per_cluster, 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centers.repeat(per_cluster, 1) + 0.05 * noise)


def test_rows_stay_of_unit_length():
    book = RunningCodebook(32, 8)
    book.fit(clusters(20, 30, seed=1), 3, torch.Generator().manual_seed(0))
    for seed in range(5):
        latents = clusters(20, 10, seed=seed)
        book.update(latents, book.assign(latents))
        book.restart_dead(latents, torch.Generator().manual_seed(seed))
        assert torch.allclose(book.rows.norm(dim=1), torch.ones(32), atol=1e-5)


def test_restarts_bring_a_collapsed_codebook_back_into_use():
    book = RunningCodebook(32, 8)
    book.rows.copy_(F.normalize(-clusters(1, 32, seed=0)))  # all rows at one place, away from most latents
    generator = torch.Generator().manual_seed(0)
    used_without_restarts = len(book.assign(clusters(24, 40, seed=1)).unique())
    for step in range(300):
        latents = clusters(24, 10, seed=step)
        book.update(latents, book.assign(latents))
        if step % 25 == 0 and step < 200:
            book.restart_dead(latents, generator)
    used = len(book.assign(clusters(24, 40, seed=1000)).unique())
    assert used >= 20
    assert used > used_without_restarts
    assert book.perplexity() > 12


def test_update_moves_a_row_to_the_mean_of_its_latents():
    book = RunningCodebook(4, 8, decay=0.5)
    target = F.normalize(torch.ones(1, 8))
    code = book.assign(target)
    for _ in range(40):
        book.update(target.repeat(10, 1), code.repeat(10))
    assert torch.allclose(book.rows[code], target, atol=1e-4)
