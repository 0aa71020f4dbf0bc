"""
The least that the same requests cost: one loop on httpx's fastest transport. No manifest, no checks, no Prefect.

    python benchmarks/floor.py URL PROJECTS CONCURRENCY
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator

import httpx
from httpx_aiohttp import AiohttpTransport

FIELDS = {"authType": "bearer", "authorization": "the-new-credential"}


async def rotate(url: str, projects: int, concurrency: int) -> None:
    transport = AiohttpTransport(limits=httpx.Limits(max_connections=concurrency))
    async with httpx.AsyncClient(transport=transport, headers={"x-api-key": "key"}, timeout=30) as client:

        async def look(path: str) -> None:
            (await client.get(path)).raise_for_status().json()

        async def change(path: str) -> None:
            await look(path)
            (await client.patch(path, json=FIELDS)).raise_for_status().json()
            await look(path)

        paths = [f"{url}/external-support/prj_{number}" for number in range(projects)]
        await each(paths, look, concurrency)
        await each(paths, change, concurrency)


async def each(paths: list[str], work: Callable[[str], Awaitable[None]], concurrency: int) -> None:
    left = iter(paths)

    async def worker(left: Iterator[str]) -> None:
        for path in left:
            await work(path)

    await asyncio.gather(*(worker(left) for _ in range(concurrency)))


if __name__ == "__main__":
    asyncio.run(rotate(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
