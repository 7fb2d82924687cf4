"""Calm alerts as a state machine: what a chat is told over many sequences of nights, in order and out of it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.calm import LOUD, Alert, Judged, Saying, saying_of

FIRST = date(2026, 11, 1)
EMPTY = "Unknown: no new image arrived."


def day(number: int) -> str:
    return (FIRST + timedelta(days=number - 1)).isoformat()


class Chat:
    """Keeps records as the room above does. Each night is a word: its day, its verdict, and ``!`` if the post fails."""

    def __init__(self, *, every_night: bool = False) -> None:
        self.alerts: list[Alert] = []
        self.every_night = every_night

    def judge(self, number: int, verdict: str, *, fails: bool = False, why: str = EMPTY) -> Saying | None:
        sentence = why if verdict == "unknown" else f"It is {verdict}."
        saying = saying_of(Judged(day(number), verdict, sentence), self.alerts, every_night=self.every_night)
        if saying:
            posted = saying.kind == "silent" or not fails
            self.alerts.append(
                Alert(len(self.alerts) + 1, day(number), verdict, sentence, saying.kind, saying.streak, posted)
            )
        return saying

    def hears(self, nights: str) -> list[str]:
        """What is said of each night of ``1 ok, 2 drift!``: kind and number, ``-`` for nothing."""
        return [self._hears(*night.split()) for night in nights.split(",")]

    def _hears(self, number: str, verdict: str) -> str:
        saying = self.judge(int(number), verdict.rstrip("!"), fails=verdict.endswith("!"))
        if saying is None or saying.kind == "silent":
            return "-"
        return f"{saying.kind} {saying.streak}" if saying.streak else saying.kind


@pytest.mark.parametrize(
    ("nights", "heard"),
    [
        # In order.
        ("1 ok, 2 ok, 3 ok", "-, -, -"),
        ("1 drift, 2 drift, 3 drift, 4 ok, 5 ok", "drift 1, still 2, still 3, recovered 3, -"),
        ("1 ok, 2 drift, 3 ok, 4 drift, 5 ok", "-, drift 1, recovered 1, drift 1, recovered 1"),
        ("1 warn, 2 warn, 3 ok, 4 warn", "warn, -, -, warn"),
        ("1 warn, 2 drift, 3 drift, 4 ok", "warn, drift 1, still 2, recovered 2"),
        ("1 drift, 2 warn, 3 warn, 4 drift, 5 ok", "drift 1, eased, -, still 2, recovered 2"),
        ("1 drift, 2 warn, 3 ok", "drift 1, eased, recovered 1"),
        # Without a verdict: it neither ends a shift nor counts.
        ("1 drift, 2 unknown, 3 drift, 4 unknown, 5 ok", "drift 1, unknown 1, still 2, -, recovered 2"),
        ("1 ok, 2 unknown, 3 unknown, 4 ok, 5 unknown", "-, unknown 1, -, -, -"),
        ("1 unknown, 2 warn, 3 unknown, 4 warn", "unknown 1, warn, -, -"),
        # Missing nights: the same as if there was no day.
        ("1 drift, 4 drift, 9 ok", "drift 1, still 2, recovered 2"),
        # Judged again.
        ("1 drift, 1 drift, 2 drift, 2 drift, 1 drift", "drift 1, -, still 2, -, -"),
        ("1 ok, 2 drift, 2 ok, 3 ok, 4 drift", "-, drift 1, corrected, -, drift 1"),
        ("1 drift, 2 drift, 2 ok, 3 ok", "drift 1, still 2, recovered 1, -"),
        ("1 drift, 1 warn, 2 warn, 3 ok", "drift 1, corrected, -, -"),
        ("1 warn, 1 ok, 1 warn", "warn, corrected, warn"),
        ("1 ok, 1 drift, 2 drift", "-, drift 1, still 2"),
        ("1 warn, 1 drift, 2 ok", "warn, drift 1, recovered 1"),
        ("1 unknown, 1 drift, 1 drift", "unknown 1, drift 1, -"),
        ("1 unknown, 1 ok", "unknown 1, -"),
        ("1 drift, 1 unknown, 2 drift", "drift 1, -, still 2"),
        ("1 drift, 2 drift, 1 ok, 3 drift, 4 ok", "drift 1, still 2, -, still 2, recovered 2"),
        # Caught up late.
        ("1 ok, 3 ok, 2 drift, 2 drift, 4 ok", "-, -, late, -, -"),
        ("1 drift, 3 drift, 2 drift, 4 drift", "drift 1, still 2, -, still 4"),
        ("1 drift, 3 drift, 2 ok, 4 drift", "drift 1, still 2, -, still 2"),
        ("3 ok, 1 ok, 2 warn, 0 unknown, 4 ok", "-, -, -, -, -"),
        ("3 warn, 2 drift, 4 drift, 5 drift", "warn, late, drift 2, still 3"),
        ("4 ok, 1 drift, 2 drift, 3 drift", "-, late, -, -"),
        ("4 ok, 3 drift, 2 drift, 1 drift", "-, late, -, -"),
        ("5 ok, 1 drift, 2 ok, 3 drift", "-, late, -, late"),
        ("1 ok, 2 drift, 6 ok, 4 drift, 5 drift", "-, drift 1, recovered 1, -, -"),
        ("4 ok, 1 drift!, 2 drift", "-, late, late"),
        # Posts that fail.
        ("1 drift!, 2 ok, 1 drift, 3 ok", "drift 1, belated, -, -"),
        ("1 unknown!, 2 ok, 1 unknown", "unknown 1, belated, -"),
        ("1 ok, 2 drift!, 3 ok, 1 drift", "-, drift 1, belated, -"),
        ("1 drift!, 2 drift, 3 drift", "drift 1, drift 2, still 3"),
        ("1 drift!, 2 drift!, 3 drift!, 4 drift", "drift 1, drift 2, drift 3, drift 4"),
        ("1 drift!, 1 drift, 1 drift", "drift 1, drift 1, -"),
        ("1 drift!, 2 ok, 3 ok", "drift 1, belated, -"),
        ("1 drift!, 2 ok!, 3 ok, 4 ok", "drift 1, belated, belated, -"),
        ("1 drift, 2 drift!, 3 drift", "drift 1, still 2, still 3"),
        ("1 drift, 2 ok!, 3 ok", "drift 1, recovered 1, belated"),
        ("1 drift, 2 ok!, 2 ok", "drift 1, recovered 1, recovered 1"),
        ("1 warn!, 2 warn, 3 warn", "warn, warn, -"),
        ("1 unknown!, 2 unknown, 3 unknown", "unknown 1, unknown 2, -"),
        ("1 drift!, 1 ok, 2 ok", "drift 1, -, -"),
        ("1 drift!, 1 unknown, 2 ok", "drift 1, -, belated"),
    ],
)  # fmt: skip
def test_what_is_heard(nights: str, heard: str) -> None:
    assert ", ".join(Chat().hears(nights)) == heard


def test_what_could_not_be_posted_is_told_by_the_next_message() -> None:
    chat = Chat()
    chat.hears("1 warn!, 2 drift!, 3 ok!")
    saying = chat.judge(4, "ok")
    assert saying == Saying("belated", untold=((day(1), "warn"), (day(2), "drift"), (day(3), "ok")))
    assert chat.judge(5, "drift") == Saying("drift", 1), "and once"


def test_a_message_by_hand_tells_nothing_of_what_could_not_be_posted() -> None:
    chat = Chat()
    chat.hears("1 ok, 2 drift!")
    chat.alerts.append(Alert(3, day(1), "ok", "It is ok.", "again", 0, posted=True))
    assert chat.judge(3, "ok") == Saying("belated", untold=((day(2), "drift"),))
    chat = Chat()
    chat.hears("1 drift!")
    chat.alerts.append(Alert(2, day(1), "drift", "It is drift.", "again", 0, posted=True))
    assert chat.judge(2, "warn") == Saying("eased"), "but of its own night it tells all"


def test_a_reason_is_told_again_after_a_month_and_another_one_at_once() -> None:
    chat = Chat()
    few = "Unknown: {} scored images are too few to say anything; min_images is 100."
    assert [chat.judge(1, "unknown", why=few.format(7)), chat.judge(3, "ok")] == [
        Saying("unknown", 1),
        Saying("silent"),
    ]
    found = [chat.judge(4, "unknown", why=few.format(91)), chat.judge(5, "unknown"), chat.judge(6, "ok")]
    assert [each and each.kind for each in found] == ["silent", "unknown", "silent"]
    assert chat.judge(31, "unknown", why=few.format(3)) == Saying("silent", 1)
    assert chat.judge(36, "unknown") == Saying("unknown", 2)


def test_a_week_without_a_verdict_is_told_whatever_was_told_before() -> None:
    heard = Chat().hears(", ".join(f"{number} unknown" for number in range(1, 22)))
    assert [place for place, each in enumerate(heard, start=1) if each != "-"] == [1, 7, 14, 21]


def test_all_nights_are_told_where_that_is_asked_for_and_each_once() -> None:
    chat = Chat(every_night=True)
    assert chat.hears("1 ok, 1 ok, 2 drift, 3 drift, 4 ok, 5 ok") == [
        "night", "-", "drift 1", "still 2", "recovered 2", "night",
    ]  # fmt: skip


def test_what_is_loud() -> None:
    assert set(LOUD) == {"drift", "warn", "recovered", "unknown", "again"}
    assert Saying("drift").loud and not Saying("still").loud


verdicts = st.sampled_from(["ok", "warn", "drift", "unknown"])


@given(st.lists(verdicts, max_size=40))
def test_in_order_a_shift_alerts_once_and_ends_once(nights: Sequence[str]) -> None:
    chat, drifting, count = Chat(), False, 0
    for number, verdict in enumerate(nights, start=1):
        saying = chat.judge(number, verdict)
        assert saying is not None
        if verdict == "drift":
            count += 1
            assert saying == Saying("still" if drifting else "drift", count)
            drifting = True
        elif verdict == "ok":
            assert saying.kind == ("recovered" if drifting else "silent")
            drifting, count = False, 0
        else:
            assert saying.kind in ("warn", "eased", "unknown", "silent")


@given(st.lists(st.tuples(st.integers(1, 12), verdicts, st.booleans()), max_size=40))
def test_in_any_order_no_night_is_told_twice_and_no_alarm_is_lost(nights: Sequence[tuple[int, str, bool]]) -> None:
    chat = Chat()
    for number, verdict, fails in nights:
        chat.judge(number, verdict, fails=fails)
        if not fails:
            assert chat.judge(number, verdict) is None, "the same command again posts nothing"
    chat.judge(20, "ok")
    last = max(place for place, alert in enumerate(chat.alerts) if alert.posted)
    owed = {alert.night for alert in chat.alerts[last + 1 :] if not alert.posted}
    assert not owed, "a night that is told leaves nothing untold"


@given(st.lists(st.tuples(st.integers(1, 12), verdicts), max_size=30), st.integers(0, 29))
def test_a_failed_post_of_the_newest_night_is_said_by_the_same_command_again(
    nights: Sequence[tuple[int, str]], at: int
) -> None:
    chat = Chat()
    for number, verdict in nights[:at]:
        chat.judge(number, verdict)
    first = chat.judge(20, "drift", fails=True)
    assert first == chat.judge(20, "drift") and first is not None and first.kind in ("drift", "still")
    assert chat.judge(20, "drift") is None


def test_what_is_being_posted_counts_as_told() -> None:
    """Its record says posted until its command is known to be dead."""
    chat = Chat()
    chat.judge(1, "drift", fails=True)
    at_work = [replace(alert, posted=True) for alert in chat.alerts]
    assert saying_of(Judged(day(1), "drift", "It is drift."), at_work) is None
