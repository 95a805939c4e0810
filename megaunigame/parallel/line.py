"""How ranks hear of each other outside of collectives: keys in the store through which they met.

A beat is one message to the node that has the store, and one question. Only rank 0 reads the beats of all; the others read
its verdict. So the store answers two requests of each rank per beat, however many ranks there are.
"""

from __future__ import annotations

from typing import Any

from megaunigame.parallel.beats import Beat, Verdict

VERDICT, NONE = "verdict", "-"


class Line:
    """Of one rank. A call may wait forever when the network is cut: only a thread that nobody waits for may make it."""

    def __init__(self, store: Any, rank: int, size: int):
        """`store`: a torch.distributed.Store; not a connection that a waiting collective holds."""
        self.store, self.rank = store, rank
        self.others = range(size) if rank == 0 else [0]
        """Whose beats this rank hears."""

    def open(self, beat: Beat) -> None:
        """Before the first exchange of any rank."""
        if self.rank == 0:
            self.store.set(VERDICT, NONE)
        self.say(beat)

    def say(self, beat: Beat) -> None:
        self.store.set(f"beat/{self.rank}", beat.as_text())

    def exchange(self, beat: Beat) -> tuple[list[Beat], Verdict | None]:
        """Say this rank's beat, hear the others' newest, and the verdict."""
        self.say(beat)
        verdict, *beats = self.store.multi_get([VERDICT, *(f"beat/{rank}" for rank in self.others)])
        return [Beat.from_text(b) for b in beats], None if verdict == NONE.encode() else Verdict.from_text(verdict)

    def beat_of(self, rank: int) -> Beat:
        return Beat.from_text(self.store.get(f"beat/{rank}"))

    def judge(self, verdict: Verdict) -> Verdict:
        """Tell all ranks; returns the verdict that counts, which is the first one."""
        return Verdict.from_text(self.store.compare_set(VERDICT, NONE, verdict.as_text()))
