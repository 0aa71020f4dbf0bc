"""The benchmarks' gateway answers as the package needs, so that what is measured is a whole rotation."""

import asyncio
import json
from contextlib import asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx

from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.references import local_handlers
from jelou_rotation.rotation import open_rotation
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings

spec = spec_from_file_location("bench_gateway", Path(__file__).parents[1] / "benchmarks" / "gateway.py")
bench_gateway = module_from_spec(spec)
spec.loader.exec_module(bench_gateway)


@asynccontextmanager
async def serving(**options):
    async with await bench_gateway.Gateway(latency=0, **options).serve(0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_rotation_is_verified_and_counted(monkeypatch):
    monkeypatch.setenv("NEW", "the-new-credential")
    rows = [
        Row.model_validate({"projectId": f"prj_{number}", "authType": "api_key", "authorization": "env:NEW"})
        for number in range(5)
    ]
    async with serving() as url, httpx.AsyncClient() as client:
        settings = Settings(base_url=url, api_key="key")
        async with open_rotation(settings, rows, local_handlers(), plan_only=False) as rotation:
            await rotation.plan(rotation.project_ids)
            await rotation.apply(rotation.project_ids)
        counters = (await client.get(f"{url}/counters")).json()
        again = (await client.get(f"{url}/counters")).json()

    assert {(each.outcome, each.evidence) for each in rotation.results()} == {(Outcome.ROTATED, Evidence.READ_BACK)}
    assert counters["requests"] == {"GET": 15, "PATCH": 5}
    assert again["requests"] == {}


async def test_a_patch_changes_what_is_read_and_when_it_was_written():
    async with serving() as url, httpx.AsyncClient(base_url=url) as client:
        before = (await client.get("/external-support/prj_1")).json()
        answer = (await client.patch("/external-support/prj_1", json={"webhookUrl": "https://new.example/"})).json()
        after = (await client.get("/external-support/prj_1")).json()
        other = (await client.get("/external-support/prj_2")).json()

    assert answer == after
    assert after["webhookUrl"] == "https://new.example/"
    assert after["authType"] == before["authType"]
    assert after["updatedAt"] > before["updatedAt"]
    assert other == before


async def test_a_request_may_come_in_pieces_and_ahead_of_an_answer():
    request = b"PATCH /external-support/prj_1 HTTP/1.1\r\nContent-Length: 21\r\n\r\n" + b'{"authType": "basic"}'
    async with serving() as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        for piece in (request[:20], request[20:-5], request[-5:] + request):
            writer.write(piece)
            await asyncio.sleep(0)
        answers = [await reader.readuntil(b"}") for _ in range(2)]
        writer.close()
        await writer.wait_closed()

    assert [json.loads(answer[answer.index(b"{") :])["authType"] for answer in answers] == ["basic", "basic"]


async def test_more_than_the_limit_is_refused():
    async with serving(per_second=2) as url, httpx.AsyncClient(base_url=url) as client:
        statuses = [(await client.get("/external-support/prj_1")).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
