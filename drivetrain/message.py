"""A night for a chat: one message in Slack's form, whose ``text`` alone says it to any other.

Knows what fits into a message and what a chat would take for a command. Does not know when something is said, nor how
it is sent. What others named (labels, keys, reasons) stands in plain text only, in which Slack reads no markup.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivetrain.calm import Saying

# Slack takes 50 blocks, 3,000 characters a section and about 13,000 in all. A quote counts twice in JSON, a letter
# beyond the first 65,536 twice as well: half of each is meant here.
MOST_TEXT = 2000
MOST_SECTION = 1000
MOST_HEADER = 150
MOST_PICTURES = 4
MOST_URL = 700
MOST_ALT = 100
MARKS = {"ok": "✔", "warn": "▲", "drift": "◆", "unknown": "?"}
# Other chats than Slack call everybody by these.
_CALLS = re.compile(r"@(?=\s*(all|channel|everyone|here))", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A thumbnail by its web address, and what is said where it can't be shown."""

    url: str
    alt: str


def message(record: Mapping[str, Any], saying: Saying, link: str, pictures: Sequence[Picture] = ()) -> dict[str, Any]:
    """What is posted of a night: ``text``, one line of at most 2,000 characters, and blocks if it is loud.

    ``record`` is verdict.json; ``link`` leads to the report; at most four ``pictures`` are shown.
    """
    head, said = _head(record, saying), _said(record, saying)
    numbers = _numbers(record["numbers"])
    payload = _payload(_line(f"{head}: {said}".rstrip(": ") + ("" if said else "."), f"{numbers} {_plain(link)}"))
    if saying.loud:
        payload["blocks"] = [_header(head), *([_section(said)] if said else []), _section(numbers), _link(link)]
        payload["blocks"] += [_image(picture) for picture in pictures if len(picture.url) <= MOST_URL][:MOST_PICTURES]
    return payload


def trial(link: str | None) -> dict[str, Any]:
    """What `drivetrain notify --test` posts; ``link`` leads to the site, where that is known."""
    head, said = "drivetrain: a test", "If you can read this, alerts arrive here."
    payload = _payload(_line(f"{head}. {said}", _plain(link or "")))
    return payload | {"blocks": [_header(head), _section(said), *([_link(link)] if link else [])]}


def _payload(text: str) -> dict[str, Any]:
    """Without markup, and without previews of whatever a text looks like a link to."""
    return {"text": text, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False}


def _head(record: Mapping[str, Any], saying: Saying) -> str:
    """The beginning of a line: what happened, to which source, in which night."""
    verdict, streak = record["verdict"], saying.streak
    words = {
        "still": f"still drifting, night {streak:,}",
        "recovered": f"RECOVERED after {_count(streak, 'night')} of drift",
        "eased": "eased to warn",
        "corrected": f"judged again, {verdict} now and no longer {saying.was}",
        "late": "drift in a night that was caught up late",
        "unknown": f"UNKNOWN for {streak:,} nights" if streak > 1 else "UNKNOWN",
        "belated": verdict,
        "night": verdict,
    }.get(saying.kind, verdict.upper())
    return _plain(f"{MARKS[verdict]} {words}: {record['source']} {record['name']}")


def _said(record: Mapping[str, Any], saying: Saying) -> str:
    """What a reader has to know beside the numbers; of a quiet message that is nothing, or what was missed."""
    said = [f"{record['sentence']} Lever to pull: {record['lever']}."] if saying.loud else []
    if saying.untold:
        first = ", ".join(f"{verdict} on {night}" for night, verdict in saying.untold[:5])
        more = f" and {_count(len(saying.untold) - 5, 'night')} more" if len(saying.untold) > 5 else ""
        said.insert(0, f"Not told before: {first}{more}.")
    return _defused(" ".join(said))


def _numbers(numbers: Mapping[str, Any]) -> str:
    """Three numbers: how many images, how far they moved, and what that may do to the labels."""
    said = [_count(numbers["rows"], "image") + (f" ({numbers['failed']:,} failed)" if numbers["failed"] else "")]
    if numbers.get("score") is not None:
        said.append(f"drift score {numbers['score']:.2f} (alarms from 1)")
    if numbers.get("accuracy") is not None:
        said.append(f"estimated accuracy {numbers['accuracy']:.1%}")
    elif numbers.get("effect") is not None:
        said.append(f"effect {numbers['effect']:.2f} (0.5 is chance)")
    return ", ".join(said) + "."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _line(said: str, tail: str) -> str:
    """The link is worth more than any sentence, unless it could not be followed anyway."""
    tail = _cut(tail, MOST_TEXT * 3 // 4)
    return f"{_cut(said, MOST_TEXT - len(tail) - 1)} {tail}".strip()


def _header(text: str) -> dict[str, Any]:
    return {"type": "header", "text": {"type": "plain_text", "text": _cut(text, MOST_HEADER), "emoji": False}}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "plain_text", "text": _cut(text, MOST_SECTION), "emoji": False}}


def _link(link: str) -> dict[str, Any]:
    """The only text with markup: an address of our own making, in which nothing can end the link."""
    text = f"<{link.replace('&', '&amp;')}|Open the report>"
    written = re.fullmatch(r"https?://[!#-;=?-\[\]_a-z~]+", link)
    if not written or len(link) > MOST_URL or len(text) > MOST_SECTION:
        return _section(_plain(link) or "No report.")
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _image(picture: Picture) -> dict[str, Any]:
    alt = _cut(_defused(picture.alt), MOST_ALT)
    return {"type": "image", "image_url": picture.url, "alt_text": alt or "An image of the review queue"}


def _defused(text: str) -> str:
    """Plain, and nothing in it that a chat makes a link of."""
    return _plain(text).replace("://", ":\u200b//")


def _plain(text: str) -> str:
    """One line, in which nothing calls a whole channel: Slack reads <!channel> and links between angle brackets."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+", " ", text)
    line = _CALLS.sub("@\u200b", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").strip()


def _cut(text: str, most: int) -> str:
    """The first characters of an escaped text, and no half of an escape at its end."""
    if len(text) <= most:
        return text
    return re.sub(r"&[a-z]*$", "", text[: most - 1]) + "…"
