"""A night's message for a chat, and its way through a webhook: whatever the night, whatever the other side does."""

import json
import logging
import re
import socket
import time
from typing import Any

import pytest
from chats import SECRET, hook
from hypothesis import example, given
from hypothesis import strategies as st

from drivetrain import notify
from drivetrain.calm import Saying
from drivetrain.message import MOST_TEXT, Picture, message, trial

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
PICTURES = [Picture(f"https://example.org/root/pictures/{place}.jpg", f"cat {place}0%") for place in range(1, 7)]
ALARM = Saying("drift", 1)
PAYLOAD = {"text": "text"}


def texts(value: Any) -> list[str]:
    """Every text of a payload that a person reads."""
    if isinstance(value, dict):
        return [text for key, each in value.items() if key != "type" for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def markup(payload: dict[str, Any]) -> list[str]:
    """The texts in which Slack reads markup."""
    return [
        block["text"]["text"] for block in payload.get("blocks", []) if block.get("text", {}).get("type") == "mrkdwn"
    ]


def test_an_alarm_is_one_line_and_blocks_with_verdict_three_numbers_link_and_four_pictures() -> None:
    payload = message(RECORD, ALARM, LINK, PICTURES)
    said = (
        "The images are not like the ones the learner was validated on. Lever to pull: label and retrain, then rescore."
    )
    numbers = "1,207 images (7 failed), drift score 3.20 (alarms from 1), estimated accuracy 83.0%."
    assert payload["text"] == f"◆ DRIFT: shop 2026-11-23: {said} {numbers} {LINK}"
    blocks = payload["blocks"]
    assert [block["type"] for block in blocks] == ["header", "section", "section", "section", *["image"] * 4]
    assert [block["text"]["text"] for block in blocks[:4]] == [
        "◆ DRIFT: shop 2026-11-23", said, numbers, f"<{LINK}|Open the report>",
    ]  # fmt: skip
    assert [block["image_url"] for block in blocks[4:]] == [picture.url for picture in PICTURES[:4]]


@pytest.mark.parametrize(
    ("verdict", "saying", "begins"),
    [
        ("drift", Saying("still", 3), "◆ still drifting, night 3: shop 2026-11-23. 1,207 images"),
        ("warn", Saying("eased"), "▲ eased to warn: shop 2026-11-23. 1,207 images"),
        ("ok", Saying("corrected", was="drift"), "✔ judged again, ok now and no longer drift: shop 2026-11-23. 1,207"),
        ("drift", Saying("late"), "◆ drift in a night that was caught up late: shop 2026-11-23. 1,207 images"),
        ("ok", Saying("night"), "✔ ok: shop 2026-11-23. 1,207 images"),
        (
            "ok",
            Saying("belated", untold=(("2026-11-22", "drift"),)),
            "✔ ok: shop 2026-11-23: Not told before: drift on 2026-11-22. 1,207 images",
        ),
    ],
)
def test_what_is_quiet_is_one_line_without_blocks(verdict: str, saying: Saying, begins: str) -> None:
    payload = message(RECORD | {"verdict": verdict}, saying, LINK, PICTURES)
    assert payload["text"].startswith(begins) and payload["text"].endswith(LINK)
    assert "blocks" not in payload


@pytest.mark.parametrize(
    ("verdict", "saying", "head"),
    [
        ("ok", Saying("recovered", 1), "✔ RECOVERED after 1 night of drift: shop 2026-11-23"),
        ("ok", Saying("recovered", 12), "✔ RECOVERED after 12 nights of drift: shop 2026-11-23"),
        ("unknown", Saying("unknown", 1), "? UNKNOWN: shop 2026-11-23"),
        ("unknown", Saying("unknown", 7), "? UNKNOWN for 7 nights: shop 2026-11-23"),
        ("warn", Saying("warn"), "▲ WARN: shop 2026-11-23"),
    ],
)
def test_what_is_loud_has_its_head(verdict: str, saying: Saying, head: str) -> None:
    payload = message(RECORD | {"verdict": verdict}, saying, LINK)
    assert payload["text"].startswith(head + ": The images") and payload["blocks"][0]["text"]["text"] == head


def test_a_record_of_before_the_score_and_one_without_a_measurement_have_their_line() -> None:
    old = RECORD | {"numbers": {"rows": 1, "failed": 0, "p_value": None, "effect": None, "mean_confidence": None}}
    assert " 1 image. https" in message(old | {"verdict": "unknown"}, Saying("unknown", 1), LINK)["text"]
    old = RECORD | {"numbers": {"rows": 2, "failed": 0, "p_value": 0.5, "effect": 0.52}}
    assert " 2 images, effect 0.52 (0.5 is chance). https" in message(old, ALARM, LINK)["text"]


def test_many_nights_that_could_not_be_posted_are_counted() -> None:
    untold = tuple((f"2026-11-{day:02d}", "drift") for day in range(1, 11))
    text = message(RECORD, Saying("drift", 11, untold=untold), LINK)["text"]
    assert "drift on 2026-11-05 and 5 nights more." in text and "2026-11-06" not in text


def test_a_root_that_no_browser_reaches_is_named_and_no_link() -> None:
    payload = message(RECORD, ALARM, "s3://bucket/root/a|b>c.html")
    assert payload["text"].endswith("s3://bucket/root/a|b&gt;c.html") and markup(payload) == []
    assert payload["blocks"][3]["text"]["text"] == "s3://bucket/root/a|b&gt;c.html"


def test_nobody_is_called_and_nothing_is_linked_by_a_label() -> None:
    evil = "Most changed label: '<!channel> <https://evil.example|ok> @here @ALL https://evil.example' & more.\n*x*"
    payload = message(RECORD | {"sentence": evil}, ALARM, LINK, [Picture(LINK, evil)])
    for text in texts(payload):
        assert "<!" not in text and "https://evil" not in text and "|ok>" not in text and "\n" not in text
        assert not re.search("@(here|all)", text, re.IGNORECASE)
    assert "&lt;!channel&gt;" in payload["text"] and "&amp; more" in payload["text"]
    assert markup(payload) == [f"<{LINK}|Open the report>"], "what others named stands in plain text alone"
    assert payload["mrkdwn"] is False and payload["unfurl_links"] is False


evil = st.sampled_from(
    ["<!channel>", "<@U1|x>", "<https://e.example|x>", "`", "*", "\n", "\u2028", "&", '"', "@everyone"]
)
words = st.one_of(
    st.text(max_size=30), st.builds(lambda text, times: text * times, evil | st.text(min_size=1), st.integers(0, 3000))
)
kinds = st.sampled_from(["drift", "still", "eased", "recovered", "warn", "unknown", "late", "belated", "again"])


@given(
    verdict=st.sampled_from(["ok", "warn", "drift", "unknown"]),
    kind=kinds,
    sentence=words,
    lever=words,
    link=st.one_of(st.text(max_size=50), words.map("https://example.org/{}".format)),
    alts=st.lists(words, max_size=6),
    untold=st.integers(0, 400),
    number=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    rows=st.integers(0, 10**12),
)
@example("ok", "drift", "", "", "https://example.org/" + "&" * 593, [], 0, None, 0)  # as &amp; five times as long
def test_any_night_fits_into_a_message_of_slack(
    verdict: str,
    kind: Any,
    sentence: str,
    lever: str,
    link: str,
    alts: list[str],
    untold: int,
    number: float | None,
    rows: int,
) -> None:
    numbers = {"rows": rows, "failed": rows} | dict.fromkeys(("p_value", "effect", "score", "accuracy"), number)
    about = {"verdict": verdict, "sentence": sentence, "lever": lever, "numbers": numbers}
    missed = tuple((f"2026-11-{day}", "drift") for day in range(untold))
    pictures = [Picture(f"https://example.org/{'x' * 90 * place}", alt) for place, alt in enumerate(alts)]
    payload = message(RECORD | about, Saying(kind, rows, untold=missed), link, pictures)
    holds_slacks_limits(payload)
    assert len(payload["text"]) <= MOST_TEXT
    for text in texts(payload):
        assert len(text.splitlines()) == 1
    for text in [payload["text"], *(block["text"]["text"] for block in payload.get("blocks", []) if "text" in block)]:
        if text not in markup(payload):
            assert "<" not in text and ">" not in text and "@everyone" not in text.replace("\u200b", "!")
            assert re.fullmatch(r"([^&]|&(amp|lt|gt);)*", text), "no half of an escape"
    for text in markup(payload):
        assert re.fullmatch(r"<https?://[^<>|\s`]+\|Open the report>", text)


def holds_slacks_limits(payload: dict[str, Any]) -> None:
    """docs.slack.dev: blocks, and the lengths of each kind's texts; in UTF-16, as a browser counts."""

    def length(text: str) -> int:
        return len(text.encode("utf-16-le")) // 2

    blocks = payload.get("blocks", [])
    assert len(blocks) <= 50 and len(json.dumps(payload, ensure_ascii=False)) <= 13_000
    for block in blocks:
        if block["type"] == "image":
            assert 1 <= length(block["alt_text"]) <= 2000 and length(block["image_url"]) <= 3000
        else:
            assert 1 <= length(block["text"]["text"]) <= {"header": 150, "section": 3000}[block["type"]]


@given(st.integers(0, 5000))
def test_a_message_names_its_link_for_any_number_of_classes(classes: int) -> None:
    sentence = "Moved: " + ", ".join(f"class {place}" for place in range(classes))
    text = message(RECORD | {"sentence": sentence}, ALARM, LINK)["text"]
    assert len(text) <= MOST_TEXT and text.endswith(LINK) and "score 3.20" in text


# --- the webhook ---


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ANSWER_SECONDS": 0.3, "PAUSE_SECONDS": 0.01, "ALL_SECONDS": 5.0}.items():
        monkeypatch.setattr(notify, name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_message_arrives_in_slacks_form() -> None:
    payload = message(RECORD, ALARM, LINK, PICTURES)
    with hook([200]) as chat:
        assert notify.post(chat.url, payload) == notify.Answer(True)
    assert chat.got == [payload]
    assert chat.kinds == ["application/json"]


def test_blocks_that_are_refused_cost_no_message() -> None:
    """Slack refuses all of a message for one picture that it can't fetch; other chats know no blocks at all."""
    payload = message(RECORD, ALARM, LINK, PICTURES)
    with hook(["400 invalid_blocks", 200]) as chat:
        answer = notify.post(chat.url, payload)
    assert answer.taken and "only without its blocks and pictures: it answered 400 (invalid_blocks)." in answer.note
    assert chat.got == [payload, {"text": payload["text"]}]
    with hook(["400 invalid_payload"]) as chat:
        answer = notify.post(chat.url, trial(None))
    assert not answer.taken and len(chat.got) == 2 and "it answered 400 (invalid_payload)" in answer.note


@pytest.mark.parametrize("body", [SECRET.rsplit("/", 1)[1], "B0BBB", "services", "<html>", "a b", "x" * 5000, "", "ü"])
def test_what_a_chat_answers_is_repeated_only_if_it_is_a_word_and_no_part_of_the_address(body: str) -> None:
    with hook([f"403 {body}"]) as chat:
        assert notify.post(chat.url, {"text": "x"}).note == "The webhook did not take the message: it answered 403."


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
        note = notify.post(chat.url, PAYLOAD).note or None
    assert len(chat.got) == tries
    assert (note is None) if said is None else (note is not None and said in note)
    assert SECRET not in str(note) and "127.0.0.1" not in str(note)


def test_an_answer_that_never_ends_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "ALL_SECONDS", 1.0)
    begun = time.monotonic()
    with hook(["drip"]) as chat:
        note = notify.post(chat.url, PAYLOAD).note or None
    assert note is not None and "no answer within 1 s" in note
    assert time.monotonic() - begun < 30, "it is bounded, whatever the machine does meanwhile"


@pytest.mark.parametrize(
    "url", [f"ftp://host/{SECRET}", SECRET, "", "https://", f"http://[{SECRET}", f"http://127.0.0.1:99999/{SECRET}"]
)
def test_an_address_that_is_none_is_a_note_and_no_error(url: str) -> None:
    note = notify.post(url, PAYLOAD).note
    assert note and SECRET not in note


def test_nobody_there_is_a_note() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        note = notify.post(f"http://127.0.0.1:{held.getsockname()[1]}/{SECRET}", PAYLOAD).note
    assert note == "The webhook did not take the message: it could not be reached, or broke off."


def test_the_address_stands_in_no_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    for behaviour in ([200], [500], ["reset"]):
        with hook(behaviour) as chat:
            notify.post(chat.url, PAYLOAD)
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())
