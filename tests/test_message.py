"""The line for a chat, and its way through a webhook: whatever the night, whatever the other side does."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain import notify
from drivetrain.message import MOST, message

SECRET = "T0AAA/B0BBB/planted-webhook-3141592653"
RECORD: dict[str, Any] = {
    "source": "shop",
    "name": "2026-11-23",
    "verdict": "drift",
    "lever": "label and retrain, then rescore",
    "sentence": "The images are not like the ones the learner was validated on.",
    "reasons": [],
    "numbers": {"rows": 1207, "failed": 7, "p_value": 0.000999, "effect": 0.812, "score": 3.2, "accuracy": 0.83},
}
LINK = "https://example.org/root/report.html"


def test_a_night_is_one_line_with_all_that_a_reader_needs() -> None:
    assert message(RECORD, LINK) == (
        "◆ DRIFT shop 2026-11-23: The images are not like the ones the learner was validated on. Lever to pull: label "
        "and retrain, then rescore. 1,207 images, 7 failed, p = 0.001, effect 0.81, score 3.20 (1 alarms), estimated "
        f"accuracy 83.0%. {LINK}"
    )


def test_a_record_of_before_the_score_and_one_without_a_measurement_have_their_line() -> None:
    old = RECORD | {"numbers": {"rows": 10, "failed": 0, "p_value": None, "effect": None, "mean_confidence": None}}
    assert "10 images, 0 failed. https" in message(old | {"verdict": "unknown"}, LINK)


def test_nobody_is_called_by_a_label() -> None:
    line = message(RECORD | {"sentence": "Most changed label: '<!channel> <https://evil.example|ok>' & more."}, LINK)
    assert "<" not in line and ">" not in line
    assert "&lt;!channel&gt;" in line and "&amp; more" in line


words = st.text(max_size=6000)


@given(
    verdict=st.sampled_from(["ok", "warn", "drift", "unknown"]),
    sentence=words,
    lever=words,
    link=st.text(max_size=1024),
    number=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    rows=st.integers(0, 10**12),
)
def test_any_night_fits_into_a_line_of_slack(
    verdict: str, sentence: str, lever: str, link: str, number: float | None, rows: int
) -> None:
    numbers = {"rows": rows, "failed": rows} | dict.fromkeys(("p_value", "effect", "score", "accuracy"), number)
    about = {"verdict": verdict, "sentence": sentence, "lever": lever, "numbers": numbers}
    line = message(RECORD | about, link)
    assert len(line) <= MOST
    assert len(line.splitlines()) == 1
    assert "<" not in line and ">" not in line
    assert re.fullmatch(r"([^&]|&(amp|lt|gt);)*", line), "no half of an escape"


@given(st.integers(0, 5000))
def test_a_message_names_its_link_for_any_number_of_classes(classes: int) -> None:
    sentence = "Moved: " + ", ".join(f"class {place}" for place in range(classes))
    line = message(RECORD | {"sentence": sentence}, LINK)
    assert len(line) <= MOST and line.endswith(LINK) and "score 3.20" in line


# --- the webhook ---


@dataclass
class Hook:
    """A local chat: answers as it is told to, and keeps what it was sent."""

    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)


@contextmanager
def hook(behaviour: Sequence[int | str]) -> Iterator[Hook]:
    """A server that does one thing a request, the last one for ever: a status, "hang", "reset" or "drip"."""
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
                self.send_response(int(does))
                if 300 <= int(does) < 400:
                    self.send_header("Location", found.url + "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ANSWER_SECONDS": 0.3, "PAUSE_SECONDS": 0.01, "ALL_SECONDS": 5.0}.items():
        monkeypatch.setattr(notify, name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_message_arrives_in_slacks_form() -> None:
    with hook([200]) as chat:
        assert notify.post(chat.url, message(RECORD, LINK)) is None
    assert chat.got == [{"text": message(RECORD, LINK)}]
    assert chat.kinds == ["application/json"]


@pytest.mark.parametrize(
    ("behaviour", "tries", "said"),
    [
        ([500, 200], 2, None),
        ([429, 503, 204], 3, None),
        (["reset", 200], 2, None),
        (["hang", 200], 2, None),
        ([500], 3, "it answered 500"),
        ([404], 1, "it answered 404"),
        ([302], 1, "it answered 302"),
        (["hang"], 3, "no answer within"),
        (["reset"], 3, "could not be reached, or broke off"),
    ],
)
def test_trouble_is_tried_again_a_few_times_and_then_told(
    behaviour: list[int | str], tries: int, said: str | None
) -> None:
    with hook(behaviour) as chat:
        note = notify.post(chat.url, "text")
    assert len(chat.got) == tries
    assert (note is None) if said is None else (note is not None and said in note)
    assert SECRET not in str(note) and "127.0.0.1" not in str(note)


def test_an_answer_that_never_ends_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "ALL_SECONDS", 1.0)
    begun = time.monotonic()
    with hook(["drip"]) as chat:
        note = notify.post(chat.url, "text")
    assert note is not None and "no answer within 1 s" in note
    assert time.monotonic() - begun < 30, "it is bounded, whatever the machine does meanwhile"


@pytest.mark.parametrize(
    "url", [f"ftp://host/{SECRET}", SECRET, "", "https://", f"http://[{SECRET}", f"http://127.0.0.1:99999/{SECRET}"]
)
def test_an_address_that_is_none_is_a_note_and_no_error(url: str) -> None:
    note = notify.post(url, "text")
    assert note is not None and SECRET not in note


def test_nobody_there_is_a_note() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        note = notify.post(f"http://127.0.0.1:{held.getsockname()[1]}/{SECRET}", "text")
    assert note == "The webhook did not take the message: it could not be reached, or broke off."


def test_the_address_stands_in_no_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    for behaviour in ([200], [500], ["reset"]):
        with hook(behaviour) as chat:
            notify.post(chat.url, "text")
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())
