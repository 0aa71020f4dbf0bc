"""
A run in parts that other processes work on: whose rows are whose, and how a part keeps in touch with its run.

The run and its parts meet in the record store. A part that falls silent is taken up anew as its next try. The former
try may live on: its run no longer listens to it, and the leases of the records keep it off the rows of the new one.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from jelou_rotation.errors import Busy, Fault, ManifestError, RowTrouble, SettingsError
from jelou_rotation.manifest import Manifest
from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.plan import Change
from jelou_rotation.records.signs import Sign
from jelou_rotation.rotation import Rotation

if TYPE_CHECKING:
    from jelou_rotation.records.parts import Parts

BEAT_SECONDS = 2.0
# A run silent for so long is gone. Its lock comes free about then too; the leases keep apart whoever still is at work.
GONE_SECONDS = 30.0
STOPPED_ADVICE = "Mend what the report names, then run the rows again."


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `count` of the run `run_id`, for the `attempt`-th time; `sha256` is that of the manifest."""

    number: int
    count: int
    attempt: int
    run_id: str
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises SettingsError."""
        try:
            number, count, attempt, run_id, sha256 = text.split("/")
            return cls(int(number), int(count), int(attempt), run_id, sha256)
        except ValueError:
            raise SettingsError([Fault("part", "is set by a run with shards; leave it empty")]) from None

    def __str__(self) -> str:
        return f"{self.number}/{self.count}/{self.attempt}/{self.run_id}/{self.sha256}"

    @property
    def name(self) -> str:
        return f"part {self.number} of {self.count}"

    @property
    def holder(self) -> str:
        """Two containers may have the same host name and process ids."""
        return f", {self.name}, try {self.attempt}"

    def of(self, manifest: Manifest) -> Manifest:
        """The rows of this part. Raises ManifestError when the file is not the one its run has read."""
        if manifest.sha256 != self.sha256:
            message = "changed since the run began that this is a part of, or is another file on this machine"
            raise ManifestError([Fault(manifest.name, message)])
        return replace(manifest, rows=manifest.rows[self.number - 1 :: self.count])


@asynccontextmanager
async def in_touch(rotation: Rotation, part: Part, parts: "Parts") -> AsyncIterator[None]:
    """
    Tell the run every two seconds how far this part is; stop when it says so, or when it is gone.

    The bound on requests is divided among the parts that have not ended, which each hears then: without a round trip
    for each request, and never above the bound. Raises Busy at the beginning when no run waits for this part.
    """
    if not await _beats(rotation, part, parts, GONE_SECONDS):
        raise Busy(f"no run is at work that waits for {part.name}, try {part.attempt}")
    ending = asyncio.Event()
    keeper = asyncio.create_task(_keep_in_touch(rotation, part, parts, ending))
    try:
        yield
    finally:
        # Told, not cancelled, as the keeper of the leases is.
        ending.set()
        await keeper


async def hand_in(rotation: Rotation, part: Part, parts: "Parts") -> None:
    """Tell the run what became of the rows of this part."""
    await parts.hand_in(part.number, part.attempt, _sign(rotation), written(rotation.results(), rotation.requests))


def written(results: Sequence[RowResult], requests: Mapping[str, int]) -> str:
    """As text in ASCII, which holds anything Jelou may have answered, half of a surrogate pair too."""
    rows = [asdict(result) for result in results]
    return json.dumps({"rows": rows, "requests": dict(requests)}, default=datetime.isoformat)


def read(text: str) -> tuple[list[RowResult], dict[str, int]]:
    """What `written` wrote."""
    told = json.loads(text)
    return [_result(**row) for row in told["rows"]], told["requests"]


def _result(**row: Any) -> RowResult:
    until = row["overlap_until"]
    return RowResult(
        **row
        | {
            "outcome": Outcome(row["outcome"]),
            "evidence": row["evidence"] and Evidence(row["evidence"]),
            "changes": tuple(Change(**change) for change in row["changes"]),
            "unconfirmed": tuple(row["unconfirmed"]),
            "notes": tuple(row["notes"]),
            "overlap_until": until and datetime.fromisoformat(until),
        }
    )


async def _keep_in_touch(rotation: Rotation, part: Part, parts: "Parts", ending: asyncio.Event) -> None:
    seen_since = monotonic()
    while not ending.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), BEAT_SECONDS)
        try:
            # A store that was away kept the run from giving a sign of life too: that takes as long again to tell.
            await _beats(rotation, part, parts, monotonic() - seen_since)
        except RowTrouble:
            seen_since = monotonic()


async def _beats(rotation: Rotation, part: Part, parts: "Parts", seen_seconds: float) -> bool:
    """One sign of life; whether the run is there and still waits for this try."""
    word = await parts.beat(part.number, part.attempt, _sign(rotation))
    if word is None:
        rotation.stop("this part was taken for lost, and another process works on it", STOPPED_ADVICE)
        return False
    if min(word.silent_seconds, seen_seconds) >= GONE_SECONDS:
        rotation.stop("the run this is a part of is gone", STOPPED_ADVICE)
        return False
    rotation.share_budget(word.parts_left)
    if word.stop:
        rotation.stop(word.stop, STOPPED_ADVICE)
    return True


def _sign(rotation: Rotation) -> Sign:
    done, _ = rotation.steps_done()
    return Sign(rotation.holder, done, rotation.failures, rotation.requests)
