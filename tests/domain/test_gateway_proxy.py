"""The way to Jelou is the environment's: a proxy where it names one, and no login or cookie of anybody's own."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from jelou_rotation.errors import SettingsError, Unreachable
from jelou_rotation.gateway import ClientPair, Gateway

CALLER = ClientPair(SecretStr("client"), SecretStr("client-secret"))


@pytest.fixture(autouse=True)
def no_proxy_of_ours(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def listening():
    """A server on loopback: its port, and the first line and the headers of each request it has answered."""
    heads = []

    async def serve(reader, writer):
        request, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
        heads.append((request, {name.lower(): value for name, value in (line.split(": ") for line in headers)}))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: who=me\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1], heads


async def read_one(base_url):
    async with Gateway(base_url, CALLER, timeout_seconds=5) as gateway:
        await gateway.get("prj")


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_requests_go_through_the_proxy_that_the_environment_names(monkeypatch, name, scheme):
    async with listening() as (port, heads):
        monkeypatch.setenv(name, f"{scheme}ops:proxy-password@127.0.0.1:{port}")

        with pytest.raises(Unreachable):  # the tunnel ends at a server without TLS
            await read_one("https://jelou.example/v1")

    request, headers = heads[0]
    assert request == "CONNECT jelou.example:443 HTTP/1.1"
    assert headers["proxy-authorization"] == "Basic b3BzOnByb3h5LXBhc3N3b3Jk"


async def test_a_host_that_is_to_be_reached_without_the_proxy_is(monkeypatch):
    async with listening() as (port, heads):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

        await read_one(f"http://127.0.0.1:{port}/v1")

    assert len(heads) == 1


async def test_a_login_in_the_users_netrc_is_not_presented_to_jelou(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async with listening() as (port, heads):
        await read_one(f"http://127.0.0.1:{port}/v1")

    ((_, headers),) = heads
    assert headers["authorization"] == CALLER.header()["Authorization"]


async def test_a_cookie_that_came_with_one_project_is_not_sent_with_the_next():
    # By name: for an address of numbers aiohttp keeps none anyway.
    async with listening() as (port, heads), Gateway(f"http://localhost:{port}", CALLER, timeout_seconds=5) as gateway:
        await gateway.get("prj")
        await gateway.get("other")

    assert ["cookie" in headers for _, headers in heads] == [False, False]


@pytest.mark.parametrize("address", ["http://ops:proxy-password@127.0.0.1:port", "ftp://ops:proxy-password@127.0.0.1"])
def test_what_is_not_the_address_of_a_proxy_is_refused_without_showing_it(monkeypatch, address):
    monkeypatch.setenv("HTTP_PROXY", address)

    with pytest.raises(SettingsError) as caught:
        Gateway("http://jelou.example/v1", CALLER)

    assert "HTTP_PROXY" in str(caught.value)
    assert "password" not in str(caught.value)
