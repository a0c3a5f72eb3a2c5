"""The HTTP client against servers that send too much, too slowly, or something else."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from aiohttp import web

from curate.endpoints.client import MAX_BYTES, EndpointClient, Response, TransportError
from curate.endpoints.settings import EndpointSettings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def post(handler: Handler, *, timeout_s: float = 5.0) -> Response:
    async def run() -> Response:
        app = web.Application()
        app.router.add_post("/v1/x", handler)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        settings = EndpointSettings(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", timeout_s=timeout_s)
        client = EndpointClient(settings)
        try:
            return await client.post("x", {})
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_response_may_be_eight_megabytes_long_and_no_longer() -> None:
    def of(length: int) -> Handler:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=b"begin" + b"x" * (length - 5))

        return answer

    assert len(post(of(MAX_BYTES)).body) == MAX_BYTES
    with pytest.raises(TransportError, match="longer than 8 MB: beginxxx") as caught:
        post(of(MAX_BYTES + 1))
    assert caught.value.costly
    assert len(str(caught.value)) < 400


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_limit_holds_after_decompression(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(b"x" * 50 * MAX_BYTES)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": encoding})

    with pytest.raises(TransportError, match="longer than 8 MB"):
        post(answer)


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def silent(_: web.Request) -> web.StreamResponse:
    return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("handler", "message"), [(drip, "no complete answer within 2 s"), (silent, "nothing came for 1 s")]
)
def test_neither_silence_nor_a_byte_at_a_time_holds_a_request_for_ever(handler: Handler, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(TransportError, match=message) as caught:
        post(handler, timeout_s=1)
    assert caught.value.costly
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}])
def test_a_body_that_is_not_compressed_as_it_says_is_an_error_or_bytes(headers: dict[str, str]) -> None:
    async def lie(_: web.Request) -> web.Response:
        return web.Response(body=b'{"choices": []}', headers=headers)

    # Never another exception.
    with suppress(TransportError):
        assert post(lie).body


def test_a_redirect_is_not_followed() -> None:
    async def away(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": str(request.url.with_path("/elsewhere"))})

    assert post(away).status == 307


@pytest.mark.parametrize("said", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b""])
def test_what_is_no_http_is_a_transport_error(said: bytes) -> None:
    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        client = EndpointClient(
            EndpointSettings(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout_s=5)
        )
        async with server:
            try:
                await client.post("x", {})
            finally:
                await client.close()

    with pytest.raises(TransportError):
        asyncio.run(run())
