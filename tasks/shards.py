"""A rotation dealt out to runs of the same deployment, on any number of workers, and gathered again."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Crashed

from jelou_rotation.errors import Fault, LimitExceeded, RowTrouble, SettingsError
from jelou_rotation.limits import Limits
from jelou_rotation.manifest import Manifest
from jelou_rotation.parts import STOPPED_ADVICE, Part, hand_in, in_touch, read
from jelou_rotation.records.signs import Progress
from jelou_rotation.report_markdown import by_outcome, counted, tally
from jelou_rotation.rotation import Rotation
from jelou_rotation.settings import Settings
from jelou_rotation.work import Orders
from tasks.approval import Approval
from tasks.cancellation import left_at_sigterm
from tasks.projects import in_batches, plan_all, rotate_projects
from tasks.runs import open_run

if TYPE_CHECKING:
    from jelou_rotation.records.parts import Parts

MOST_TRIES = 3
LOOK_SECONDS = 1.0
# A part says every two seconds that it lives (jelou_rotation/parts.py).
LOST_SECONDS = 30.0
# From the moment a worker fetches a run: the process, the manifest, every reference and the store.
BEGIN_SECONDS = 180.0
# Prefect's worker kills a cancelled run after thirty seconds, and its report takes some of them.
LAST_WORDS_SECONDS = 15.0
_NO_DEPLOYMENT = (
    "the parts are runs of a deployment, so this one must be too: start it with prefect deployment run, or in the UI"
)
_ONE_PLAN = "do not go with it: they hold for one plan, and each part makes its own"
_NO_STORE = "shards need a record store that every worker can reach: postgresql://USER:PASSWORD@HOST/DATABASE"


def check_shards(rotation: Rotation, ramp: Sequence[str], approval: Approval, approved_plan: str) -> None:
    """Raises SettingsError with everything that keeps this run from being done in parts."""
    faults = []
    if runtime.deployment.id is None:
        faults.append(Fault("shards", _NO_DEPLOYMENT))
    if ramp or approved_plan or approval is not Approval.NONE:
        faults.append(Fault("shards", f"ramp, approval and approved_plan {_ONE_PLAN}"))
    if not rotation.store or not rotation.store.is_shared:
        faults.append(Fault("JELOU_STORE_URL" if rotation.store else "JELOU_STORE_KEY", _NO_STORE))
    if faults:
        raise SettingsError(faults)


async def rotate_part(settings: Settings, part: Part, manifest: Manifest, orders: Orders, limits: Limits) -> State[Any]:
    """
    Rotate the rows of one part, in touch with the run it belongs to, which reports for all of them.

    Told to end before its time, it hands in nothing, and the run has the part taken up again.
    """
    rows = part.of(manifest).rows
    failures = limits.failures_allowed(len(manifest.rows))
    async with open_run(settings, rows, orders=orders, max_failures=failures, part=part) as rotation:
        parts, is_done = _parts(rotation, part.run_id), False
        async with in_touch(rotation, part, parts):
            async with left_at_sigterm():
                await plan_all(rotation)
                _stop_above(limits, rotation)
                await in_batches(rotate_projects, rotation, rotation.to_apply())
                is_done = True
            if not is_done:
                return Cancelled(message=f"{part.name} was told to end; what is left of it is taken up by another run.")
            await hand_in(rotation, part, parts)
    ended = tally(by_outcome(rotation.results()))
    # Completed whatever became of the rows: the run it belongs to says that, once for all of them.
    return Completed(message=f"{part.name}, {counted(len(rows), 'project')}: {ended}.")


async def in_shards(rotation: Rotation, manifest: Manifest, limits: Limits, shards: int) -> None:
    """
    Rotate in parts, each a run of this deployment, and gather how every row ended.

    A part whose process is lost is taken up anew, three times at most. More failed rows than allowed, over all parts,
    and no part begins a further one. Cancelled, it tells the parts to stop and waits a moment for their last words.
    """
    parts = _parts(rotation, str(runtime.flow_run.id))
    done, total = rotation.steps_done()
    run = _Shards(rotation, manifest, limits, min(shards, len(manifest.rows)) if done < total else 0, parts)
    await parts.open(len(run.shards))
    try:
        await run.to_the_end()
    except asyncio.CancelledError:
        rotation.stop("it was cancelled", STOPPED_ADVICE)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await run.to_the_end()
        raise
    finally:
        for shard in run.shards:
            rotation.lose(shard.project_ids, f"the run ended before {shard.part.name} did", had_begun=shard.had_begun)
        with suppress(RowTrouble):
            await parts.close()


_Runs = dict[UUID | None, FlowRun]


@dataclass(slots=True)
class _Shard:
    """One part as its run sees it; `is_new` until this try has given a sign of life."""

    part: Part
    project_ids: list[str]
    flow_run_id: UUID | None = None
    is_new: bool = True
    had_begun: bool = False
    fetched_at: float | None = None


class _Shards:
    """The parts that have not ended yet."""

    def __init__(self, rotation: Rotation, manifest: Manifest, limits: Limits, count: int, parts: "Parts") -> None:
        run_id = str(runtime.flow_run.id)
        whole = [Part(number, count, 1, run_id, manifest.sha256) for number in range(1, count + 1)]
        self.shards = [_Shard(part, [row.project_id for row in part.of(manifest).rows]) for part in whole]
        self._rotation = rotation
        self._parts = parts
        self._parameters = {**runtime.flow_run.parameters, **limits.counted(len(manifest.rows)), "shards": 1}
        self._seen_since = monotonic()

    async def to_the_end(self) -> None:
        ending = asyncio.Event()
        listener = asyncio.create_task(self._listen_until(ending))
        try:
            while self.shards:
                with suppress(RowTrouble):
                    await self._look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            # Told, not cancelled, as the keeper of the leases is.
            ending.set()
            await listener

    async def _listen_until(self, ending: asyncio.Event) -> None:
        """Apart from what waits for Prefect, whose server on SQLite may take half a minute for an answer (measured)."""
        while not ending.is_set():
            try:
                await self._hear()
            except RowTrouble:
                # The store is away, and the parts cannot give a sign of life either.
                self._seen_since = monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), LOOK_SECONDS)

    async def _hear(self) -> dict[int, Progress]:
        """How far the parts are; this too is how they hear that the run lives, and that they shall stop."""
        told = await self._parts.look()
        self._rotation.hear(sum(each.done for each in told.values()), sum(each.failures for each in told.values()))
        if self._rotation.stopped_by:
            await self._parts.stop(self._rotation.stopped_by.reason)
        return told

    async def _look(self) -> None:
        for shard in self.shards:
            if not shard.flow_run_id and not self._rotation.stopped_by:
                await self._start(shard)
        # Prefect first: a run that has ended there has handed in before.
        runs = await self._runs()
        told = await self._hear()
        for shard in list(self.shards):
            await self._judge(shard, runs, told[shard.part.number])

    async def _start(self, shard: _Shard) -> None:
        part = shard.part
        run = await arun_deployment(
            UUID(runtime.deployment.id),
            parameters=self._parameters | {"part": str(part)},
            timeout=0,
            idempotency_key=f"{part.run_id}-{runtime.flow_run.run_count}-{part.number}-{part.attempt}",
        )
        shard.flow_run_id = run.id
        self._note(f"{part.name} waits for a worker with a free slot, {counted(len(shard.project_ids), 'project')}")

    async def _runs(self) -> _Runs:
        """As Prefect knows them; nothing while its server is away, for then the parts go on all the same."""
        ids = [shard.flow_run_id for shard in self.shards if shard.flow_run_id]
        try:
            async with asyncio.timeout(LOST_SECONDS / 3), get_client() as client:
                these = FlowRunFilter(id=FlowRunFilterId(any_=ids))
                return {run.id: run for run in await client.read_flow_runs(flow_run_filter=these)}
        except Exception as error:  # noqa: BLE001 - a server that is away shows in many ways
            get_run_logger().warning("Prefect does not tell how the parts stand: %s", type(error).__name__)
            return {}

    async def _judge(self, shard: _Shard, runs: _Runs, told: Progress) -> None:
        if told.sign and shard.is_new:
            shard.is_new, shard.had_begun = False, True
            self._note(f"{shard.part.name} began on {told.sign.holder}")
        if told.has_ended:
            await self._gather(shard)
        elif why := self._why_lost(shard, runs, told):
            if told.sign:
                self._rotation.settle([], told.sign.requests)
            await self._lose(shard, why)
        elif self._rotation.stopped_by and shard.is_new:
            await self._call_off(shard)

    async def _gather(self, shard: _Shard) -> None:
        results, requests = read(await self._parts.report(shard.part.number))
        self._rotation.settle(results, requests)
        self.shards.remove(shard)
        self._note(f"{shard.part.name} ended: {tally(by_outcome(results))}")

    def _why_lost(self, shard: _Shard, runs: _Runs, told: Progress) -> str | None:
        now, run = monotonic(), runs.get(shard.flow_run_id)
        if runs and shard.flow_run_id and not run:
            return "its run was deleted"
        if run and run.state and run.state.is_final():
            message, *_ = (run.state.message or "no message").splitlines()
            return f"its run ended {run.state.name}: {message}"
        if shard.is_new:
            if run and run.state and not run.state.is_scheduled():
                shard.fetched_at = shard.fetched_at or now
            is_late = shard.fetched_at is not None and now - shard.fetched_at > BEGIN_SECONDS
            return f"a worker fetched it {BEGIN_SECONDS:g} seconds ago, and it never began" if is_late else None
        if min(told.silent_seconds or 0, now - self._seen_since) > LOST_SECONDS:
            return f"no sign of life for {LOST_SECONDS:g} seconds"
        return None

    async def _lose(self, shard: _Shard, why: str) -> None:
        part = shard.part
        self._note(f"{part.name} was lost: {why}")
        await self._end(shard, Crashed(message=f"Lost: {why}."))
        # From now on the former try is deaf, if it should live on.
        await self._parts.expect(part.number, part.attempt + 1)
        if part.attempt < MOST_TRIES and not self._rotation.stopped_by:
            self._note(f"{part.name} is taken up again, try {part.attempt + 1}")
            shard.part = replace(part, attempt=part.attempt + 1)
            shard.flow_run_id, shard.is_new, shard.fetched_at = None, True, None
            return
        self.shards.remove(shard)
        self._rotation.lose(shard.project_ids, f"{part.name} was lost: {why}", had_begun=shard.had_begun)

    async def _call_off(self, shard: _Shard) -> None:
        """What no worker has begun shall not begin any more."""
        part = shard.part
        await self._parts.expect(part.number, part.attempt + 1)
        await self._end(shard, Cancelled(message="The run this is a part of was stopped."))
        self.shards.remove(shard)
        self._note(f"{part.name} was called off")
        if shard.had_begun:
            self._rotation.lose(shard.project_ids, f"{part.name} was lost, and then the run stopped", had_begun=True)

    async def _end(self, shard: _Shard, state: State[Any]) -> None:
        if not shard.flow_run_id:
            return
        with suppress(Exception):  # whoever lives on is told by the table
            async with asyncio.timeout(LOST_SECONDS / 3), get_client() as client:
                await client.set_flow_run_state(shard.flow_run_id, state, force=True)

    def _note(self, text: str) -> None:
        self._rotation.note(text)
        get_run_logger().info(text)


def _stop_above(limits: Limits, rotation: Rotation) -> None:
    """The run itself held its plan against the limits; since then somebody else may have changed a lot."""
    try:
        limits.check(rotation.plans(), len(rotation.project_ids), rotation.failures)
    except LimitExceeded as refusal:
        rotation.stop(" ".join(str(refusal).split()), STOPPED_ADVICE)


def _parts(rotation: Rotation, run_id: str) -> "Parts":
    if not rotation.store:
        raise AssertionError("unreachable: shards need a store")
    return rotation.store.parts(run_id)
