"""The end of an overlap: the former credential is proven dead, then forgotten. Jelou is not asked."""

from datetime import UTC, datetime
from typing import ClassVar

from jelou_rotation.errors import OldStillAccepted
from jelou_rotation.outcomes import Outcome
from jelou_rotation.records import Step
from jelou_rotation.work import Work


class Overlap(Work):
    """The end of one row's overlap, when its time is over; the receiver is told what it missed."""

    steps: ClassVar[tuple[str, ...]] = ("apply",)

    async def plan(self) -> None:
        """Nothing to compare: the record says when the overlap ends."""

    async def apply(self) -> None:
        self._require_held()
        record = self.record
        if record and record.step is Step.IDLE and (record.current or record.signing) and not record.handed_over:
            await self._hand_over()
        until = record.overlap_until if record and record.previous and record.step is Step.IDLE else None
        if until is None or until > datetime.now(UTC):
            self.ended = self.result(Outcome.UNCHANGED)
        elif await self._close_overlap():
            self.ended = self.result(Outcome.UPDATED)
        else:
            raise OldStillAccepted(f"the overlap ended {until:%Y-%m-%d %H:%M} UTC; {self._still_accepted}")
