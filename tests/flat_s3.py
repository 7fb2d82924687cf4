"""An S3 endpoint to read from that keeps every key as it is, which SeaweedFS does not: it lays keys out as folders.

    with flat_s3({"a//b/../c": b"bytes"}) as endpoint:

Lists and hands out the objects of one bucket, whatever its name, on one page. Does not look at credentials.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote


@contextmanager
def flat_s3(objects: Mapping[str, bytes]) -> Iterator[str]:
    """Run the endpoint in a thread of its own until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # its name is http.server's
            path, _, query = self.path.partition("?")
            key = unquote(path.removeprefix("/").partition("/")[2])
            if key in objects:
                self._answer(200, objects[key], ETag=f'"{_md5(objects[key])}"')
            elif not key:
                self._answer(200, _listing(objects, parse_qs(query).get("prefix", [""])[0]))
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Mon, 02 Nov 2026 03:04:05 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listing(objects: Mapping[str, bytes], prefix: str) -> bytes:
    found = "".join(
        f"<Contents><Key>{quote(key)}</Key><Size>{len(data)}</Size><ETag>{_md5(data)}</ETag>"
        "<LastModified>2026-11-02T03:04:05.000Z</LastModified></Contents>"
        for key, data in sorted(objects.items())
        if key.startswith(prefix)
    )
    # Encoded, as clients ask for it: XML has no way to write some control characters.
    about = f"<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>{found}"
    return f"<?xml version='1.0'?><ListBucketResult>{about}</ListBucketResult>".encode()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
