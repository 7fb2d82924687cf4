"""A chat on this machine: answers as it is told to, and keeps what it was sent."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0AAA/B0BBB/planted-webhook-3141592653"


@dataclass
class Hook:
    """A local chat: answers as it is told to, and keeps what it was sent."""

    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)


@contextmanager
def hook(behaviour: Sequence[int | str]) -> Iterator[Hook]:
    """A server that does one thing a request, the last one for ever.

    A status, "400 words" for one with a body, "hang", "reset" or "drip".
    """
    found, ended, left = Hook(), threading.Event(), list(behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found.kinds.append(self.headers["Content-Type"])
            does = left.pop(0) if len(left) > 1 else left[0]
            if does == "hang":
                ended.wait(30)
            elif does == "drip":
                while not ended.wait(0.05):
                    self.wfile.write(b"H")
            elif does == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
            else:
                status, _, body = str(does).partition(" ")
                self.send_response(int(status))
                if status.startswith("3"):
                    self.send_header("Location", found.url + "/elsewhere")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
