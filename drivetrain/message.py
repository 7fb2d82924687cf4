"""A night in one line, for a chat.

Knows what fits into a chat's line and what a chat would take for a command. Does not know how it is sent.
"""

import re
from collections.abc import Mapping
from typing import Any

# Slack cuts a section of a message at 3,000 characters. The sentences of a verdict are cut before numbers and link.
MOST = 3000
MARKS = {"ok": "✔", "warn": "▲", "drift": "◆", "unknown": "?"}


def message(record: Mapping[str, Any], link: str) -> str:
    """A line of at most 3,000 characters. ``record`` is verdict.json; ``link`` leads to the report."""
    head = f"{MARKS[record['verdict']]} {record['verdict'].upper()} {record['source']} {record['name']}: "
    tail = f" {_numbers(record['numbers'])} {link}"
    said = f"{record['sentence']} Lever to pull: {record['lever']}."
    # The link is worth more than any sentence, unless it could not be followed anyway.
    head, tail = _plain(head), _cut(_plain(tail), MOST // 2)
    return head + _cut(_plain(said), MOST - len(head) - len(tail)) + tail


def _numbers(numbers: Mapping[str, Any]) -> str:
    said = [f"{numbers['rows']:,} images", f"{numbers['failed']:,} failed"]
    for name, words in (("p_value", "p = {:.2g}"), ("effect", "effect {:.2f}"), ("score", "score {:.2f} (1 alarms)")):
        if numbers.get(name) is not None:
            said.append(words.format(numbers[name]))
    if numbers.get("accuracy") is not None:
        said.append(f"estimated accuracy {numbers['accuracy']:.1%}")
    return ", ".join(said) + "."


def _plain(text: str) -> str:
    """One line, in which nothing calls a whole channel: Slack reads <!channel> and links between angle brackets."""
    line = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, most: int) -> str:
    """The first characters of an escaped text, and no half of an escape at its end."""
    if len(text) <= most:
        return text
    return re.sub(r"&[a-z]*$", "", text[: most - 1]) + "…"
