"""What a chat is told of a night, and what it is spared: a lasting shift alerts once.

Knows verdicts in the order of their nights, and what was said before. Does not know how it is worded, stored or posted.

A night that is the newest of its source (before: the newest earlier night that was judged)

    drift      no drift since the last ok night that was told     drift, loud
               else                                               still drifting, night N, quiet
    warn       after ok, or first of all                          warn, loud
               after drift                                        eased to warn, quiet
               after warn                                         nothing
    ok         drift since the last ok night                      recovered, loud
               else                                               nothing
    unknown    a reason that was not told in the 30 days before   unknown, loud
               the 7th, 14th … night in a row without a verdict   unknown, loud
               else                                               nothing

N counts the nights of drift since the last ok one. Nights that are missing, unknown or warn are not counted and end
nothing: only an ok night does.

A night that was told before: with the same verdict nothing, and unknown never replaces a verdict. One that is less
grave than what was told is corrected, quiet; one that is graver follows the table. A night older than the newest one
changes only what N counts; its drift is told, late and quiet, where the chat knows of no drift that lasts, nor of any
between the ok nights before and after it. What was not posted, since the chat did not take it or since a later night of
the same catch-up is to tell it, is told by the next message, and by one of its own where the next night has nothing to
say.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

Kind = Literal[
    "drift", "still", "eased", "recovered", "warn", "unknown", "corrected", "late", "belated", "night", "again",
    "silent",
]  # fmt: skip
LOUD = ("drift", "recovered", "warn", "unknown", "again")
# A reason is news again after so many days.
REASON_DAYS = 30
# Silence must not look like health: so many nights in a row without a verdict are told, whatever the reason.
UNKNOWN_NIGHTS = 7
GRAVITY = {"ok": 0, "warn": 1, "drift": 2}


@dataclass(frozen=True)
class Judged:
    """A night's verdict as the chat would be told it. ``night`` is a date, YYYY-MM-DD."""

    night: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Alert:
    """What was said of a night, or that nothing was: record ``number`` of a source.

    ``posted``: whether the chat took it, and it was not held back for the next message. What is being posted right now
    counts as posted, what is ``silent`` too.
    """

    number: int
    night: str
    verdict: str
    sentence: str
    kind: Kind
    streak: int
    posted: bool

    @property
    def told(self) -> bool:
        """Whether the chat knows of it."""
        return self.posted and self.kind != "silent"


@dataclass(frozen=True)
class Saying:
    """What to say of a night. ``streak``: the N of its kind. ``was``: the verdict that a corrected night had.

    ``untold``: night and verdict of what was not posted before.
    """

    kind: Kind
    streak: int = 0
    was: str = ""
    untold: tuple[tuple[str, str], ...] = ()

    @property
    def loud(self) -> bool:
        """Whether it comes with details."""
        return self.kind in LOUD


def saying_of(tonight: Judged, alerts: Sequence[Alert], *, every_night: bool = False) -> Saying | None:
    """What to say of a night, by the table above; None where nothing has changed since it was told.

    ``alerts`` in the order of their numbers. ``every_night`` tells in a line what would be silent.
    """
    old = _standing(alerts).get(tonight.night)
    if old and _nothing_new(tonight, old, alerts):
        return None
    others = [alert for alert in alerts if alert.night != tonight.night]
    kind, streak = _kind(tonight, old, others)
    untold = _untold(alerts, tonight.night)
    if kind == "silent" and (untold or every_night):
        kind = "belated" if untold else "night"
    return Saying(kind, streak, old.verdict if old and kind == "corrected" else "", untold)


def reason(sentence: str) -> str:
    """Why there is no verdict, whatever the numbers of a night."""
    return re.sub(r"\d[\d.,]*", "#", sentence)


def _nothing_new(tonight: Judged, old: Alert, alerts: Iterable[Alert]) -> bool:
    """Whether the chat was told this of that very night, or must not be: unknown replaces no verdict."""
    if tonight.verdict == "unknown" != old.verdict:
        return True
    reasons = {reason(each.sentence) for each in (tonight, old)}
    heard = old.posted or _mentioned(old, alerts)
    return heard and tonight.verdict == old.verdict and (tonight.verdict != "unknown" or len(reasons) == 1)


def _mentioned(alert: Alert, alerts: Iterable[Alert]) -> bool:
    """Whether a later message said of what was not posted that it had not been told before."""
    return not alert.posted and any(_caught_up(each) and each.number > alert.number for each in alerts)


def _caught_up(alert: Alert) -> bool:
    """Whether the chat took a message with all that had not been told before: one by hand says nothing of it."""
    return alert.told and alert.kind != "again"


def _kind(tonight: Judged, old: Alert | None, others: Sequence[Alert]) -> tuple[Kind, int]:
    standing = _standing(others)
    before = [standing[night] for night in sorted(standing) if night < tonight.night]
    if len(before) < len(standing):
        return _late(tonight, old, [standing[night] for night in sorted(standing)])
    if tonight.verdict == "unknown":
        return _unknown(tonight, before, others)
    lasting = _since_ok(before)
    told = [alert for alert in lasting if alert.told]
    known = any(alert.verdict == "drift" for alert in told)
    drifts = sum(alert.verdict == "drift" for alert in lasting)
    if tonight.verdict == "ok" and known:
        return "recovered", drifts
    if old and old.told and GRAVITY[tonight.verdict] < GRAVITY.get(old.verdict, -1):
        return "corrected", 0
    if tonight.verdict == "drift":
        alarmed = any(alert.verdict == "drift" and alert.kind in ("drift", "again", "still") for alert in told)
        return ("still" if alarmed else "drift"), drifts + 1
    return _warn(lasting, told) if tonight.verdict == "warn" else ("silent", 0)


def _late(tonight: Judged, old: Alert | None, standing: Sequence[Alert]) -> tuple[Kind, int]:
    """What to say of a night that is not the newest one."""
    before = [alert for alert in standing if alert.night < tonight.night]
    after = [alert for alert in standing if alert.night > tonight.night]
    # Of a shift that is over nobody hears twice either.
    shift = [*_since_ok(before), *_since_ok(after[::-1])]
    drifts = [alert for alert in [*shift, *_since_ok(standing)] if alert.verdict == "drift"]
    known = any(alert.told or _mentioned(alert, standing) for alert in drifts)
    rejudged = old is not None and old.posted and old.verdict != "unknown"
    return ("late" if tonight.verdict == "drift" and not known and not rejudged else "silent"), 0


def _unknown(tonight: Judged, before: Sequence[Alert], others: Iterable[Alert]) -> tuple[Kind, int]:
    streak = 1
    for alert in reversed(before):
        if alert.verdict != "unknown":
            break
        streak += 1
    since = (date.fromisoformat(tonight.night) - timedelta(days=REASON_DAYS)).isoformat()
    known = {
        reason(alert.sentence) for alert in others if alert.told and alert.verdict == "unknown" and alert.night >= since
    }
    return ("silent" if reason(tonight.sentence) in known and streak % UNKNOWN_NIGHTS else "unknown"), streak


def _warn(lasting: Sequence[Alert], told: Iterable[Alert]) -> tuple[Kind, int]:
    """``lasting``: the nights since the last ok one; ``told``: what was said of them."""
    judged = [alert for alert in lasting if alert.verdict != "unknown"]
    known = {alert.night for alert in told}
    if judged and judged[-1].verdict == "drift" and judged[-1].night in known:
        return "eased", 0
    return ("silent" if known & {alert.night for alert in judged} else "warn"), 0


def _standing(alerts: Iterable[Alert]) -> dict[str, Alert]:
    """The newest record of each night."""
    return {alert.night: alert for alert in alerts}


def _since_ok(nights: Sequence[Alert]) -> list[Alert]:
    """Of nights in their order those after the last ok one."""
    last = max((place for place, alert in enumerate(nights) if alert.verdict == "ok"), default=-1)
    return list(nights[last + 1 :])


def _untold(alerts: Sequence[Alert], tonight: str) -> tuple[tuple[str, str], ...]:
    """What was not posted since something last was, and still holds: night and verdict."""
    last = max((place for place, alert in enumerate(alerts) if _caught_up(alert)), default=-1)
    standing = _standing(alerts)
    missed = [alert for alert in alerts[last + 1 :] if not alert.posted and alert is standing[alert.night]]
    return tuple(sorted((alert.night, alert.verdict) for alert in missed if alert.night != tonight))
