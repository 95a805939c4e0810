"""Hard buffers of real ranks against one list that holds everything: `python -m tests.multi_process.buffer FOLDER GAMES`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megaunigame.parallel.ranks import Ranks, start_world
from tests.replay.random_games import Game, check_round, held_numbers, new_buffer, play_alone, play_round, random_game


def main(folder: str, games: str) -> None:
    assert os.environ["TORCH_DISTRIBUTED_DEBUG"] == "DETAIL"
    world = start_world(timeout_minutes=0.5)
    for seed in range(int(games)):
        play(world, random_game(seed, world.size), Path(folder) / f"game-{seed}")
    print(f"{games} games on {world.size} ranks: as on one")
    world.close()


def play(world: Ranks, game: Game, folder: Path) -> None:
    """All rounds; before the last one every rank saves, forgets and loads."""
    buffer = new_buffer(game, world.rank, world.size)
    last = len(game.rounds) - 1
    for step, expected in enumerate(play_alone(game)):
        report = play_round(buffer, game, step, world)
        check_round(world.all_gather_object(held_numbers(buffer)), report, expected)
        if step == last - 1:
            folder.mkdir(exist_ok=True)
            buffer.pending().write(folder)
            world.barrier()
            buffer = new_buffer(game, world.rank, world.size)
            buffer.load(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
