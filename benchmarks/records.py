"""
How long the record store takes for a whole rotation: take, stage, mark sent, promote and read back every project.

    python benchmarks/records.py [PROJECTS] [URL]        10,000 projects in a new SQLite file, if nothing is said
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable

from pydantic import SecretStr

from jelou_rotation.gateway import Integration
from jelou_rotation.records import Lease, new_key
from jelou_rotation.records.store import Store
from jelou_rotation.row import AuthType

AT_ONCE = 128
SEEN = Integration("https://panel.acme.example/jelou/events", "bearer")


async def measure(url: str, projects: int) -> None:
    async with Store.open(url, SecretStr(new_key())) as store:
        begin = time.perf_counter()
        leases = await store.take([f"prj_{number}" for number in range(projects)], "benchmark", "run", 3600)
        tell("take", projects, begin)

        async def rotate(lease: Lease) -> None:
            await store.stage(lease, SecretStr(f"value of {lease.project_id}"), AuthType.BEARER)
            await store.mark_sent(lease)
            await store.promote(lease, SEEN, None)

        begin = time.perf_counter()
        await each(leases.values(), rotate)
        tell(f"stage, mark sent, promote; {AT_ONCE} at once", projects, begin)

        begin = time.perf_counter()
        await store.read(leases)
        tell("read", projects, begin)

        begin = time.perf_counter()
        await store.renew(leases)
        tell("renew", projects, begin)

        begin = time.perf_counter()
        for lease in list(leases.values())[:200]:
            await store.note_failure(lease, 3)
        tell("one transition, one at a time", 200, begin)

        begin = time.perf_counter()
        await store.rekey()
        tell("rekey", projects, begin)


async def each(leases: Iterable[Lease], work: Callable[[Lease], Awaitable[None]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(lease: Lease) -> None:
        async with slots:
            await work(lease)

    await asyncio.gather(*(one(lease) for lease in leases))


def tell(what: str, count: int, begin: float) -> None:
    seconds = time.perf_counter() - begin
    print(f"{what:<45} {seconds:6.2f} s   {seconds / count * 1000:6.2f} ms each")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = [*sys.argv[1:], *["10000", f"sqlite:///{folder}/records.db"][len(sys.argv) - 1 :]]
        asyncio.run(measure(given[1], int(given[0])))
