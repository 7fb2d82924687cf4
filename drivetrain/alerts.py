"""Tells a chat what has changed: decides by what it was told before, claims a record, posts, and records the answer.

Knows the numbered records of a source's alerts. Does not know when something is worth saying (`calm`), how it is
worded (`message`) or sent (`notify`). A record is created before its message is posted, so that of two commands one
posts; what the chat answered is a record beside it. A message that was not taken, that was held, or whose command died
over it, is told by the next one. No night fails on any of this: what went wrong comes back as a note.
"""

import base64
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import quote

from drivetrain.calm import Alert, Judged, Saying, saying_of
from drivetrain.config import WEBHOOK, Config, without_secrets
from drivetrain.console import say
from drivetrain.errors import DrivetrainError, RunError, SettingError
from drivetrain.layout import Layout, RecordPaths
from drivetrain.message import MOST_PICTURES, Picture, message, trial
from drivetrain.nights import latest_record
from drivetrain.notify import Answer, post
from drivetrain.review import thumbnails
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.several import several_at_once
from drivetrain.store import Store

# A record without an answer is being posted, which takes a minute at most; older ones are those of a dead command.
AT_WORK = timedelta(minutes=10)
# Nights that are told at the same moment take turns.
MOST_TRIES = 20
HELD = "Held: a later night of the same catch-up tells it."


@dataclass(frozen=True)
class Judgement:
    """A judged night, where it lies, and what is needed to tell of it.

    ``closed``: what verdict.json says. ``queue`` gives the rows of its review queue, for pictures.
    """

    store: Store
    layout: Layout
    config: Config
    record: RecordPaths
    closed: Mapping[str, Any]
    queue: Callable[[], list[dict[str, Any]]]

    @classmethod
    def stored(
        cls, store: Store, layout: Layout, config: Config, record: RecordPaths, closed: Mapping[str, Any]
    ) -> Self:
        """One whose record is closed, and whose review queue lies there."""
        return cls(store, layout, config, record, closed, lambda: store.read_table(record.review).to_pylist())

    @property
    def source(self) -> str:
        """The source whose chat it is."""
        return str(self.closed["source"])

    def known(self) -> list[Alert]:
        """What the chat was told of this source."""
        return alerts_of(self.store, self.layout, self.source)


Teller = Callable[[Judgement], tuple[str, ...]]


def tell(judgement: Judgement) -> tuple[str, ...]:
    """Tell the chat of a night what it does not know yet; returns notes on what went wrong."""
    if not _to_tell(judgement):
        return ()
    try:
        claimed = _claim(judgement)
        if claimed is None or claimed[1].kind == "silent":
            return ()
        answer = _post(judgement, *claimed)
    except (DrivetrainError, OSError) as error:
        return (without_secrets(f"The chat was not told: {error}"),)
    return (answer.note,) if answer.note else ()


def hold(judgement: Judgement) -> tuple[str, ...]:
    """Leave what there is to say of a night to the next message, so that a catch-up is one message; returns notes.

    Where all nights are to be told, it is told at once.
    """
    if judgement.config.notify == "all":
        return tell(judgement)
    if not _to_tell(judgement):
        return ()
    try:
        claimed = _claim(judgement)
        if claimed and claimed[1].kind != "silent":
            _answered(judgement, claimed[0], Answer(taken=False, note=HELD))
    except (DrivetrainError, OSError) as error:
        return (without_secrets(f"The chat was not told: {error}"),)
    return ()


def tell_again(judgement: Judgement) -> tuple[str, ...]:
    """Tell the chat of a night that is done already, if it was to be told and that failed."""
    try:
        known = judgement.known() if judgement.config.the_webhook() else []
    except (DrivetrainError, OSError) as error:
        return (without_secrets(f"The chat was not told: {error}"),)
    mine = [alert for alert in known if alert.night == judgement.closed["name"]]
    return () if not mine or mine[-1].posted else tell(judgement)


def notify_chat(config: Config, *, test: bool = False) -> dict[str, Any]:
    """Post a test message, or a judged night's message again.

    Needs a webhook, and with ``test`` nothing else; else ``root`` and ``run``. Returns what was posted. Raises
    SettingError when there is no webhook or nothing to post, and RunError, which says what to do, when the chat did not
    take it.
    """
    webhook = config.the_webhook()
    if not webhook:
        raise SettingError(f"No webhook. Put the address of the chat's incoming webhook here: export {WEBHOOK}=…")
    if test:
        return {"posted": "test"} | _heard(
            post(webhook, trial(config.site_url and f"{config.site_url}/site/index.html"))
        )
    if not config.run:
        raise SettingError("Nothing to post. A test message: --test   a night's message again: --root … --run RUN")
    store, layout = open_root(config, existing=True)
    run = Run.find(store, layout, config.run)
    done = latest_record(store, layout, run)
    if not done or done[1]["run_id"] != config.run:
        raise SettingError(f"Run {config.run} has no verdict. First: drivetrain drift measure --run {config.run}")
    record, closed = done
    judgement = Judgement.stored(store, layout, config, record, closed)
    again = Saying("again")
    answer = _post(judgement, _next(judgement, again), again) if closed["kind"] == "night" else _sent(judgement, again)
    return {"posted": config.run} | _heard(answer)


def alerts_of(store: Store, layout: Layout, source: str) -> list[Alert]:
    """What a source's chat was told, in the order of the records."""
    numbers = _numbers(store, layout.alerts(source))
    answered = set(_numbers(store, layout.alerts(source) + "/answers"))

    def read(number: int) -> Alert | None:
        found = from_json(store, layout.alert(source, number))
        answer = from_json(store, layout.answer(source, number)) if number in answered else None
        return _alert(number, found, answer) if found else None

    return [alert for alert in several_at_once(read, numbers) if alert]


def _numbers(store: Store, folder: str) -> list[int]:
    stems = (name.removesuffix(".json") for name in store.names(folder))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _alert(number: int, found: Mapping[str, Any], answer: Mapping[str, Any] | None) -> Alert:
    if answer:
        posted = bool(answer["taken"])
    else:
        age = datetime.now(UTC) - datetime.fromisoformat(found["made"])
        posted = found["say"] == "silent" or age < AT_WORK
    about = {key: found[key] for key in ("night", "verdict", "sentence", "streak")}
    return Alert(number=number, kind=found["say"], posted=posted, **about)


def _to_tell(judgement: Judgement) -> bool:
    return bool(judgement.config.the_webhook()) and judgement.closed["kind"] == "night"


def _claim(judgement: Judgement) -> tuple[int, Saying] | None:
    """The number under which this command, and no other, posts, with what to say; None where nothing is new."""
    closed = judgement.closed
    tonight = Judged(closed["name"], closed["verdict"], closed["sentence"])
    for _ in range(MOST_TRIES):
        known = judgement.known()
        saying = saying_of(tonight, known, every_night=judgement.config.notify == "all")
        if saying is None:
            return None
        number = known[-1].number + 1 if known else 1
        if _created(judgement, saying, number):
            return number, saying
    raise RunError(f"others told of nights of {judgement.source} at the same time, {MOST_TRIES} times.")


def _next(judgement: Judgement, saying: Saying) -> int:
    """The number of the next record, whatever was said before."""
    number = max(_numbers(judgement.store, judgement.layout.alerts(judgement.source)), default=0) + 1
    while not _created(judgement, saying, number):
        number += 1
    return number


def _created(judgement: Judgement, saying: Saying, number: int) -> bool:
    """Whether the record of that number is this command's: no other has its ``by``."""
    closed = judgement.closed
    about = {key: closed[key] for key in ("source", "run_id", "model_id", "verdict", "sentence")}
    said = {"night": closed["name"], "record": judgement.record.folder, "say": saying.kind, "streak": saying.streak}
    ours = {"untold": [list(each) for each in saying.untold], "made": _now(), "by": uuid.uuid4().hex}
    return judgement.store.create(judgement.layout.alert(judgement.source, number), to_json(about | said | ours))


def _post(judgement: Judgement, number: int, saying: Saying) -> Answer:
    """Post what a record announces, and record what the chat answered."""
    answer = _sent(judgement, saying)
    _answered(judgement, number, answer)
    return answer


def _answered(judgement: Judgement, number: int, answer: Answer) -> None:
    said = {"taken": answer.taken, "note": answer.note, "made": _now()}
    judgement.store.create(judgement.layout.answer(judgement.source, number), to_json(said))


def _sent(judgement: Judgement, saying: Saying) -> Answer:
    config, verdict = judgement.config, judgement.closed["verdict"]
    shown = saying.loud and verdict in ("warn", "drift") and (config.site_url or "").startswith("https://")
    link = _address(judgement.layout, config, judgement.record.report)
    payload = message(judgement.closed, saying, link, _pictures(judgement) if shown else [])
    return post(config.the_webhook() or "", payload)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _pictures(judgement: Judgement) -> list[Picture]:
    """Thumbnails of the first images of the queue that can be read, stored where the chat can fetch them.

    A message does not wait for its pictures to be mended: without them it says as much.
    """
    store, record = judgement.store, judgement.record
    pictures: list[Picture] = []
    try:
        rows = judgement.queue()[: 2 * MOST_PICTURES]
        small = zip(rows, thumbnails(store, [row["uri"] for row in rows]), strict=True)
        for row, data_uri in [(row, each) for row, each in small if each][:MOST_PICTURES]:
            path = record.picture(len(pictures) + 1)
            store.replace(path, base64.b64decode(data_uri.partition(",")[2]))
            sure = "" if row["confidence"] is None else f" {row['confidence']:.0%}"
            address = _address(judgement.layout, judgement.config, path)
            pictures.append(Picture(address, f"{row['label'] or 'image'}{sure}"))
    except (DrivetrainError, OSError) as error:
        say(f"The message has no more than {len(pictures)} pictures: {error}")
    return pictures


def _address(layout: Layout, config: Config, uri: str) -> str:
    """Where a browser finds a file of the root, or its uri where that is not known."""
    return f"{config.site_url}/{quote(uri.removeprefix(f'{layout.root}/'))}" if config.site_url else uri


def _heard(answer: Answer) -> dict[str, Any]:
    """What came back, for a person who waits for it."""
    if not answer.taken:
        raise RunError(f"{answer.note}\n{answer.mend}")
    notes = [" ".join(each for each in (answer.note, answer.mend) if each)] if answer.note else []
    return {"answer": "The chat took the message.", "notes": notes}
