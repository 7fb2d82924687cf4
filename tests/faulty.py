"""An S3 endpoint that is not well: passes requests on to a real server and spoils the answers that a rule names.

    with faulty_proxy(server.endpoint, rule) as proxy:
        Store({"s3": {"endpoint_url": proxy.endpoint}})

A rule gets the method, the decoded path (``/bucket/key``) and how often that path was asked for by this method (1 is
the first), and returns a fault's name or None. ``proxy.asked`` counts requests by (method, path).
Faults: ``503`` SlowDown, ``500``, ``403``, ``expired`` keys; ``reset`` closes the connection; ``hang`` never answers;
``cut`` sends half of the body with a Content-Length that fits it, ``flip`` the body with one bit changed, both without
the checksum that an object may have been stored with, ``crc`` flips and keeps it; ``short`` closes the
connection in the middle of a body; ``html`` a login page with status 200.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from servers import free_ports
from yarl import URL

Rule = Callable[[str, str, int], str | None]

STATUS = {
    "503": (503, "SlowDown", "planned"),
    "500": (500, "InternalError", "planned"),
    "403": (403, "AccessDenied", "planned"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}
PAGE = b"<html><body>Please log in to the hotel's network.</body></html>"
# They belong to one connection, or were true of the body before aiohttp unpacked it.
OWN = {"connection", "transfer-encoding", "content-length", "keep-alive", "content-encoding"}


@dataclass
class Proxy:
    """A running proxy."""

    endpoint: str
    rule: Rule
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)


@contextmanager
def faulty_proxy(target: str, rule: Rule) -> Iterator[Proxy]:
    """Run the proxy in a thread of its own until the block ends."""
    (port,) = free_ports(1)
    proxy = Proxy(f"http://127.0.0.1:{port}", rule)
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(proxy, target, port, ready, over)))
    thread.start()
    assert ready.wait(30), "the proxy did not start"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


async def _serve(proxy: Proxy, target: str, port: int, ready: threading.Event, over: asyncio.Event) -> None:
    connections = TCPConnector(limit=0)
    async with ClientSession(connector=connections, auto_decompress=False, timeout=ClientTimeout()) as client:

        async def handle(request: web.Request) -> web.StreamResponse:
            path = unquote(request.raw_path.split("?", 1)[0])
            proxy.asked[request.method, path] += 1
            fault = proxy.rule(request.method, path, proxy.asked[request.method, path])
            if fault in STATUS:
                status, code, message = STATUS[fault]
                text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
                return web.Response(status=status, text=text, content_type="application/xml")
            if fault == "hang":
                await over.wait()
            if fault in ("reset", "hang"):
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if fault == "html":
                return web.Response(body=PAGE, content_type="text/html")
            if fault == "short":
                return await _broken_off(request)
            return await _passed_on(client, target, request, fault)

        runner = web.AppRunner(_app(handle), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1).start()
        ready.set()
        await over.wait()
        await runner.cleanup()


def _app(handle: Callable[[web.Request], object]) -> web.Application:
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handle)  # type: ignore[arg-type]
    return app


async def _broken_off(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b"half of it")
    assert request.transport is not None
    request.transport.close()
    return answer


async def _passed_on(client: ClientSession, target: str, request: web.Request, fault: str | None) -> web.Response:
    """The server's answer, as it is or spoilt. The Host header stays: the signature covers it."""
    headers = {name: value for name, value in request.headers.items() if name.lower() not in OWN}
    url = URL(target + request.raw_path, encoded=True)
    async with client.request(request.method, url, headers=headers, data=await request.read()) as answer:
        body = await answer.read()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in OWN}
        if fault == "cut":
            body = body[: len(body) // 2]
        if fault in ("cut", "flip"):
            kept = {name: value for name, value in kept.items() if not name.lower().startswith("x-amz-checksum")}
        if fault in ("crc", "flip"):
            body = body[:-1] + bytes([body[-1] ^ 1])
        if request.method == "HEAD":
            kept["Content-Length"] = answer.headers.get("Content-Length", "0")
        return web.Response(status=answer.status, body=body, headers=kept)
