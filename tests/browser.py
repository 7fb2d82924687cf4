"""Opens pages in headless Chromium, offline, and tells what was seen: what tests of pages share.

Beyond test_pages.see it can click: a copy of the page gets a script at its end, and what that finds stands in a
document that is dumped.
"""

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
    "--virtual-time-budget=30000",
]  # fmt: skip
BROWSER = "not an origin"


@dataclass(frozen=True)
class Visit:
    """A page after its scripts ran: its text, what the console said, who was asked, and what our script found."""

    text: str
    console: list[str]
    requests: list[str]
    found: Any


def visit(page: Path, script: str = "null", *, after: int = 6000, url: str = "") -> Visit:
    """Open a page; ``script`` is an expression, evaluated (and awaited) so many ms after it loaded.

    ``url`` is that of the page's folder, where a server serves it; without, the page is opened as a file.
    """
    # Beside the page, so that its links lead where they did.
    copy = page.with_name(f"{page.stem}-visited.html")
    copy.write_text(probed(page.read_text(), script, after))
    try:
        return see(f"{url}/{copy.name}" if url else f"file://{copy}")
    finally:
        copy.unlink()


def probed(page: str, script: str = "null", after: int = 6000) -> str:
    """A page with the script at its end, for `see`."""
    return page.replace("</body>", _probe(script, after) + "</body>")


def see(address: str) -> Visit:
    """Open an address; of a page that was not `probed` the text is its HTML, and nothing is found."""
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile) / "net.json"
        command = [*CHROMIUM, "--window-size=1300,900", f"--user-data-dir={profile}", f"--log-net-log={log}"]
        done = subprocess.run(
            [*command, "--dump-dom", address], capture_output=True, text=True, timeout=180, check=True
        )
        events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    # What Chromium asks on its own behalf has no origin; the rest is the page's doing.
    asked = [
        about["url"]
        for about in events
        if str(about.get("url")).startswith("http") and about.get("initiator", BROWSER) != BROWSER
    ]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    said = re.search(r'<template id="seen">(.*?)</template>', done.stdout, re.DOTALL)
    if said is None:
        assert "const seen = " not in done.stdout, "our script did not come to its end"
        return Visit(done.stdout, console, asked, None)
    seen = json.loads(said[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert not seen.get("error"), seen["error"]
    return Visit(seen["text"], console, asked, seen["found"])


def _probe(script: str, after: int) -> str:
    return f"""<script>
window.addEventListener("load", () => setTimeout(async () => {{
  let found = null, error = null;
  try {{ found = await ({script}); }} catch (problem) {{ error = String(problem); }}
  const seen = document.createElement("template");
  seen.id = "seen";
  const text = document.body.innerText;
  seen.innerHTML = "";
  seen.content.append(JSON.stringify({{text, found, error}}));
  document.body.append(seen);
}}, {after}));
</script>"""


@contextmanager
def served(folder: Path, kind: str = "text/html") -> Iterator[str]:
    """The files of a folder over HTTP; any unknown path is the folder's metrics.prom."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            data = (path if path.is_file() else folder / "metrics.prom").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
