"""Posts a message to a chat's webhook.

Knows HTTP and patience. Does not know what the message says. A webhook's url is a secret, since whoever has it can
post: it stands in no message, no log and no error. A night never fails on its webhook: what went wrong comes back as a
note.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

TRIES = 3
ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 2.0
# A server that answers drop by drop is never late: the whole of it has an end too.
ALL_SECONDS = 60.0
# Slack says in one word what it does not like: no_service, invalid_blocks.
WORD_BYTES = 60


@dataclass(frozen=True)
class Answer:
    """What came of a post. ``note`` says in plain words, without the url, what went wrong; ``mend`` what to do."""

    taken: bool
    note: str = ""
    mend: str = ""


def post(webhook: str, payload: Mapping[str, Any]) -> Answer:
    """Post a message in Slack's form, at most three times; one whose blocks are refused once more as ``text`` alone."""
    said: list[Answer] = []
    # A daemon: a job that is done does not wait for a message that hangs.
    posting = threading.Thread(target=lambda: said.append(_posted(webhook, payload)), daemon=True)
    posting.start()
    posting.join(ALL_SECONDS)
    return said[0] if said else _refused(f"no answer within {ALL_SECONDS:.0f} s", _SLOW)


def _posted(webhook: str, payload: Mapping[str, Any]) -> Answer:
    if not webhook.startswith(("https://", "http://")):
        return _refused("its address begins neither with https:// nor with http://", _ADDRESS)
    # urllib3 logs the path of each request, in which Slack's token stands.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
    first = _tried(webhook, payload)
    if first.taken or first.mend != _FORM or "blocks" not in payload:
        return first
    # A picture that it can't fetch is enough for Slack to refuse all of it.
    bare = _tried(webhook, {"text": payload["text"]})
    if not bare.taken:
        return first
    reason = first.note.removeprefix(_REFUSED).rstrip(".")
    return Answer(True, f"The webhook took the message only without its blocks and pictures: {reason}.", _PICTURES)


def _tried(webhook: str, payload: Mapping[str, Any]) -> Answer:
    """What the last try came to."""
    answer, again = _try(webhook, payload)
    for number in range(1, TRIES):
        if not again:
            break
        time.sleep(PAUSE_SECONDS * number)
        answer, again = _try(webhook, payload)
    return answer


def _try(webhook: str, payload: Mapping[str, Any]) -> tuple[Answer, bool]:
    """What one try came to, and whether another one may help."""
    try:
        # Not to wherever it redirects: the text is for this address.
        with requests.post(webhook, json=payload, timeout=ANSWER_SECONDS, allow_redirects=False, stream=True) as answer:
            code = answer.status_code
            word = "" if 200 <= code < 300 else _word(answer, webhook)
    except requests.Timeout:
        return _refused(f"no answer within {ANSWER_SECONDS:.0f} s", _SLOW), True
    except requests.ConnectionError:
        return _refused("it could not be reached, or broke off", _REACH), True
    except Exception as error:
        # Whatever it is, its text may hold the url.
        return _refused(f"its address can't be used ({type(error).__name__})", _ADDRESS), False
    if 200 <= code < 300:
        return Answer(True), False
    # Too many requests, or their own trouble; anything else is an answer for good.
    return _refused(f"it answered {code}{word}", _mend(code)), code == 429 or code >= 500


def _word(answer: Any, webhook: str) -> str:
    """The one word of an answer's body that says why, if it is one and no part of the address."""
    try:
        said = answer.raw.read(WORD_BYTES, decode_content=True).decode("ascii")
    except Exception:
        return ""
    return f" ({said})" if re.fullmatch(r"[a-z_]{2,40}", said) and said not in webhook else ""


_REFUSED = "The webhook did not take the message: "
_NEW = "make a new webhook in the chat, and export DRIVETRAIN_WEBHOOK=… with its address."
_ADDRESS = f"Look at the address: {_NEW}"
_GONE = f"The chat does not know this address, or no longer: {_NEW}"
_MOVED = "It sends on to another address: export DRIVETRAIN_WEBHOOK=… with the one where it ends."
_FORM = (
    'The chat does not take Slack\'s form, {"text": …}: use an incoming webhook of Slack, or one compatible with it.'
)
_LATER = "The chat has trouble of its own, or too many messages: try again later."
_SLOW = "The chat is slow, or something between drops what is sent: try again, then look at proxy and firewall."
_REACH = "Look whether this machine may reach the chat: HTTPS_PROXY, firewall, and whether the host is typed right."
_PICTURES = "Pictures need a site_url that the chat can reach without a login; without site_url none are sent."


def _mend(code: int) -> str:
    if code in (401, 403, 404, 410):
        return _GONE
    if code == 429 or code >= 500:
        return _LATER
    return _MOVED if 300 <= code < 400 else _FORM


def _refused(why: str, mend: str) -> Answer:
    return Answer(False, f"{_REFUSED}{why}.", mend)
