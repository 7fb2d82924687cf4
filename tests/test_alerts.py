"""What a chat is told over real HTTP, and the records of it: once, by one command, and again when it failed."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import begun, committed, frozen, images
from chats import SECRET, hook
from click.testing import CliRunner
from PIL import Image
from pydantic import SecretStr

from drivetrain import Config, alerts, notify
from drivetrain.alerts import Judgement, alerts_of, hold, notify_chat, tell, tell_again
from drivetrain.cli import main
from drivetrain.errors import RunError, SettingError
from drivetrain.layout import Layout
from drivetrain.root import open_root, to_json
from drivetrain.store import Store

SITE = "https://drivetrain.example.org/root"
LEVER = "label and retrain, then rescore"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "DRIVETRAIN_WEBHOOK"):
        monkeypatch.delenv(name, raising=False)


class Source:
    """A source in a folder, whose nights have verdicts without anybody having judged them."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        self.config = Config(root=str(folder / "root"), webhook=SecretStr(url), **settings)
        self.store, self.layout = open_root(self.config)
        self.folder = folder

    def judged(
        self, night: str, verdict: str, *, number: int = 1, queue: list[dict[str, Any]] | None = None
    ) -> Judgement:
        closed = {
            "source": "shop", "kind": "night", "name": night, "model_id": "m", "run_id": f"shop-{night}-m",
            "verdict": verdict, "lever": LEVER, "sentence": f"It is {verdict}.", "reasons": [],
            "numbers": {"rows": 1, "failed": 0, "p_value": 0.1, "effect": 0.5, "score": 0.2, "accuracy": None},
        }  # fmt: skip
        record = self.layout.plan("shop", "night", night).record("m", number)
        return Judgement(self.store, self.layout, self.config, record, closed, lambda: queue or [])

    def tells(self, night: str, verdict: str) -> tuple[str, ...]:
        return tell(self.judged(night, verdict))

    def records(self) -> dict[str, dict[str, Any]]:
        folder = Path(self.layout.alerts("shop"))
        return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}


def heads(chat: Any) -> list[str]:
    return [each["text"].split(": shop")[0] for each in chat.got]


def test_a_lasting_shift_is_told_once_then_in_a_line_then_that_it_is_over(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        for day, verdict in enumerate(["ok", "drift", "drift", "drift", "ok", "ok"], start=1):
            for _ in range(2):
                assert source.tells(f"2026-11-{day:02d}", verdict) == ()
    assert heads(chat) == [
        "◆ DRIFT", "◆ still drifting, night 2", "◆ still drifting, night 3", "✔ RECOVERED after 3 nights of drift",
    ]  # fmt: skip
    assert ["blocks" in each for each in chat.got] == [True, False, False, True]
    found = source.records()
    assert list(found) == [f"{n:04d}.json" for n in range(1, 7)] + [f"answers/{n:04d}.json" for n in range(2, 6)]
    assert {key: found["0003.json"][key] for key in ("night", "run_id", "verdict", "say", "streak")} == {
        "night": "2026-11-03", "run_id": "shop-2026-11-03-m", "verdict": "drift", "say": "still", "streak": 2,
    }  # fmt: skip
    assert found["0003.json"]["record"] == source.judged("2026-11-03", "drift").record.folder
    assert found["answers/0003.json"]["taken"] is True
    assert SECRET not in json.dumps(found) and "127.0.0.1" not in json.dumps(found)


def test_all_nights_where_that_is_asked_for(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url, notify="all")
        for day in ("2026-11-01", "2026-11-01", "2026-11-02"):
            source.tells(day, "ok")
    assert heads(chat) == ["✔ ok", "✔ ok"]


def test_without_a_webhook_nothing_is_told_and_nothing_written(tmp_path: Path) -> None:
    source = Source(tmp_path, "https://example.org")
    source.config = Config(root=source.config.root)
    assert source.tells("2026-11-01", "drift") == () and source.records() == {}


def test_a_plan_that_is_no_night_is_not_told(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        judged = source.judged("2026-11-01", "drift")
        assert tell(Judgement(**judged.__dict__ | {"closed": {**judged.closed, "kind": "plan"}})) == ()
    assert chat.got == []


def test_a_failed_post_is_a_note_and_a_record_and_the_same_command_tells_it(tmp_path: Path) -> None:
    with hook([500, 500, 500, 200]) as chat:
        source = Source(tmp_path, chat.url)
        judged = source.judged("2026-11-01", "drift")
        (note,) = tell(judged)
        assert note == "The webhook did not take the message: it answered 500."
        answer = source.records()["answers/0001.json"]
        assert (answer["taken"], answer["note"]) == (False, note)
        assert tell_again(judged) == () and tell_again(judged) == ()
    assert heads(chat) == ["◆ DRIFT"] * 4, "three tries, and one more"


def test_a_failed_post_is_told_by_the_next_night(tmp_path: Path) -> None:
    with hook([404, 200]) as chat:
        source = Source(tmp_path, chat.url)
        assert len(source.tells("2026-11-01", "drift")) == 1
        assert source.tells("2026-11-02", "ok") == ()
        assert source.tells("2026-11-03", "ok") == ()
    assert len(chat.got) == 2
    assert "✔ ok: shop 2026-11-02: Not told before: drift on 2026-11-01." in chat.got[1]["text"]


CAUGHT_UP = ["ok", "drift", "drift", "drift", "drift", "drift", "ok"]


@pytest.mark.parametrize(
    ("verdicts", "before", "told", "loud"),
    [
        (CAUGHT_UP, "", "✔ ok: shop 2026-11-07: Not told before: drift on 2026-11-02, drift on 2026-11-03", False),
        (CAUGHT_UP[:4], "", "◆ DRIFT: shop 2026-11-04: Not told before: drift on 2026-11-02, drift on", True),
        # The chat knows already of a shift that lasts, or of a night after the gap.
        (["drift"] * 3, "2026-10-31 drift", "◆ still drifting, night 4: shop 2026-11-03: Not told before", False),
        (["drift", "drift", "ok"], "2026-11-09 ok", "✔ ok: shop 2026-11-03: Not told before: drift on", False),
        (["unknown"] * 3, "", "? UNKNOWN for 3 nights: shop 2026-11-03: Not told before: unknown on 2026-11-01", True),
    ],
)  # fmt: skip
def test_nights_that_are_caught_up_are_one_message(
    tmp_path: Path, verdicts: list[str], before: str, told: str, loud: bool
) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        if before:
            source.tells(*before.split())
            chat.got.clear()
        for day, verdict in enumerate(verdicts, start=1):
            caught_up = source.judged(f"2026-11-{day:02d}", verdict)
            assert (hold if day < len(verdicts) else tell)(caught_up) == ()
        assert tell_again(source.judged("2026-11-02", verdicts[1])) == (), "what was told with it is not told again"
    (message,) = chat.got
    assert message["text"].startswith(told) and ("blocks" in message) == loud


def test_usual_nights_that_are_caught_up_are_no_message_and_each_one_where_that_is_asked_for(tmp_path: Path) -> None:
    for notify_of, number in (("changes", 0), ("all", 3)):
        with hook([200]) as chat:
            source = Source(tmp_path / notify_of, chat.url, notify=notify_of)
            for day, teller in enumerate((hold, hold, tell), start=1):
                assert teller(source.judged(f"2026-11-{day:02d}", "ok")) == ()
        assert len(chat.got) == number


def test_what_was_held_is_told_by_the_next_night_if_the_catch_up_was_ended(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        hold(source.judged("2026-11-01", "drift"))
        assert chat.got == [] and source.records()["answers/0001.json"]["note"].startswith("Held")
        source.tells("2026-11-02", "ok")
    assert "Not told before: drift on 2026-11-01." in chat.got[0]["text"]


def test_a_night_that_was_done_before_there_was_a_chat_is_not_told_when_its_command_comes_again(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        assert tell_again(source.judged("2026-11-01", "drift")) == ()
    assert chat.got == [] and source.records() == {}


def test_of_many_commands_at_once_one_posts(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: source.tells("2026-11-01", "drift"), range(16))) == [()] * 16
    assert len(chat.got) == 1
    assert list(source.records()) == ["0001.json", "answers/0001.json"]


def test_nights_at_once_each_get_a_record_and_one_is_the_alarm(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda day: source.tells(f"2026-11-{day:02d}", "drift"), range(1, 7)))
    known = alerts_of(source.store, source.layout, "shop")
    assert [alert.number for alert in known] == [1, 2, 3, 4, 5, 6]
    assert sorted(alert.night for alert in known) == [f"2026-11-{day:02d}" for day in range(1, 7)]
    assert heads(chat).count("◆ DRIFT") == 1


@pytest.mark.parametrize(("age", "heard"), [(timedelta(seconds=5), 0), (timedelta(hours=1), 1)])
def test_a_command_that_died_over_its_post_is_made_good_and_one_at_work_is_let_be(
    tmp_path: Path, age: timedelta, heard: int
) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        made = (datetime.now(UTC) - age).isoformat(timespec="seconds")
        claim = {
            "night": "2026-11-01", "verdict": "drift", "sentence": "It is drift.", "say": "drift", "streak": 1,
            "made": made,
        }  # fmt: skip
        source.store.create(source.layout.alert("shop", 1), to_json(claim))
        assert tell_again(source.judged("2026-11-01", "drift")) == ()
    assert len(chat.got) == heard


def test_a_store_that_refuses_is_a_note_and_nobody_is_told_twice(tmp_path: Path) -> None:
    """Without a record it could not be known that it was told."""
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url)
        Path(source.layout.alerts("shop")).parent.mkdir(parents=True)
        Path(source.layout.alerts("shop")).write_text("a file where a folder should be")
        (note,) = source.tells("2026-11-01", "drift")
    assert note.startswith("The chat was not told: ") and chat.got == []


def photo(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(sink, "PNG")
    return sink.getvalue()


def queue_of(folder: Path) -> list[dict[str, Any]]:
    """Six images; the second one is broken, and the third one has no label."""
    rows = []
    for place, colour in enumerate(["red", "green", "blue", "black", "white", "grey"]):
        path = folder / f"{colour} #1.png"
        path.write_bytes(b"broken" if place == 1 else photo(colour))
        rows.append(
            {"uri": str(path), "label": None if place == 2 else "<cat>", "confidence": None if place == 2 else 0.9}
        )
    return rows


def test_with_a_site_the_report_is_a_link_and_four_thumbnails_can_be_fetched(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url, site_url=f"{SITE}/")
        judged = source.judged("2026-11-01", "drift", queue=queue_of(tmp_path))
        assert tell(judged) == ()
    (payload,) = chat.got
    folder = judged.record.folder.removeprefix(source.layout.root)
    assert payload["text"].endswith(f"{SITE}{folder}/report.html")
    assert payload["blocks"][3]["text"]["text"] == f"<{SITE}{folder}/report.html|Open the report>"
    pictures = [block for block in payload["blocks"] if block["type"] == "image"]
    assert [each["alt_text"] for each in pictures] == ["&lt;cat&gt; 90%", "image", "&lt;cat&gt; 90%", "&lt;cat&gt; 90%"]
    assert [each["image_url"] for each in pictures] == [
        f"{SITE}{folder}/pictures/{place}.jpg" for place in (1, 2, 3, 4)
    ]
    for place in (1, 2, 3, 4):
        with Image.open(judged.record.picture(place)) as small:
            assert small.format == "JPEG" and max(small.size) <= 96, "never the original"


@pytest.mark.parametrize(("site", "verdict"), [(None, "drift"), ("http://drivetrain.lan", "drift"), (SITE, "unknown")])
def test_no_thumbnail_is_stored_where_none_can_be_shown(tmp_path: Path, site: str | None, verdict: str) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url, site_url=site)
        judged = source.judged("2026-11-01", verdict, queue=queue_of(tmp_path))
        assert tell(judged) == ()
    assert "image" not in {block["type"] for block in chat.got[0]["blocks"]}
    assert not Path(judged.record.folder).exists()


def test_a_queue_that_cannot_be_read_costs_its_pictures_and_no_message(tmp_path: Path) -> None:
    with hook([200]) as chat:
        source = Source(tmp_path, chat.url, site_url=SITE)
        judged = source.judged("2026-11-01", "drift")
        assert tell(Judgement.stored(source.store, source.layout, source.config, judged.record, judged.closed)) == ()
    assert "image" not in {block["type"] for block in chat.got[0]["blocks"]}


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "https://", "https://a b", "https://x|y", "https://x>y", "https://x?sig=1", "https://x#y"]
)
def test_a_site_that_is_no_web_prefix_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="site_url"):
        Config.load(None, site_url=url)


def test_a_site_with_a_secret_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingError, match="carries a secret") as refused:
        Config.load(None, site_url="https://user:hunter22@example.org")
    assert "hunter22" not in str(refused.value)


# --- drivetrain notify ---


def test_a_test_message_goes_the_same_way() -> None:
    with hook([200]) as chat:
        done = CliRunner().invoke(main, ["notify", "--test"], env={"DRIVETRAIN_WEBHOOK": chat.url})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "posted": "test", "answer": "The chat took the message.", "notes": [],
    }  # fmt: skip
    (payload,) = chat.got
    assert payload["text"] == "drivetrain: a test. If you can read this, alerts arrive here." and payload["blocks"]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("404 no_service", "it answered 404 (no_service).\nThe chat does not know this address"),
        ("403", "make a new webhook"),
        ("400 invalid_payload", "The chat does not take Slack's form"),
        ("302", "It sends on to another address"),
        ("503", "try again later"),
        ("reset", "Look whether this machine may reach the chat"),
    ],
)
def test_a_test_message_that_is_not_taken_says_what_to_do_and_shows_no_address(behaviour: str, said: str) -> None:
    with hook([behaviour]) as chat:
        done = CliRunner().invoke(main, ["notify", "--test", "--json"], env={"DRIVETRAIN_WEBHOOK": chat.url})
    assert done.exit_code == 1 and said in done.stderr
    assert SECRET not in done.output and "127.0.0.1" not in done.output and "T0AAA" not in done.output


def test_a_chat_that_refuses_blocks_alone_is_told_and_the_person_too() -> None:
    with hook(["400 invalid_blocks", 200]) as chat:
        result = notify_chat(Config(webhook=SecretStr(chat.url), site_url=SITE), test=True)
    assert "only without its blocks" in result["notes"][0] and "site_url" in result["notes"][0]
    assert chat.got[0]["blocks"][-1]["text"]["text"] == f"<{SITE}/site/index.html|Open the report>"


def test_without_a_webhook_or_anything_to_post_it_says_what_to_type() -> None:
    done = CliRunner().invoke(main, ["notify", "--test"])
    assert done.exit_code == 2 and "export DRIVETRAIN_WEBHOOK=" in done.stderr
    done = CliRunner().invoke(main, ["notify"], env={"DRIVETRAIN_WEBHOOK": "https://example.org"})
    assert done.exit_code == 2 and "--test" in done.stderr and "--run RUN" in done.stderr


def night(store: Store, layout: Layout, name: str) -> str:
    """A committed night whose record is closed as drift."""
    run = begun(store, layout, frozen(store, layout, images(2), name=name))
    committed(run)
    closed = {
        "source": "shop", "kind": "night", "name": name, "model_id": run.record.model_id, "run_id": run.record.run_id,
        "verdict": "drift", "lever": LEVER, "sentence": "It is drift.", "reasons": [], "inputs": {},
        "made": "2026-11-02T02:00:00+00:00",
        "numbers": {"rows": 2, "failed": 0, "p_value": 0.001, "effect": 0.9, "score": 3.0, "accuracy": None},
    }  # fmt: skip
    store.create(layout.plan("shop", "night", name).record(run.record.model_id, 1).verdict, to_json(closed))
    return run.record.run_id


def test_a_nights_message_is_posted_again_by_hand_and_counts_as_told(tmp_path: Path) -> None:
    with hook([404, 200]) as chat:
        source = Source(tmp_path, chat.url)
        run_id = night(source.store, source.layout, "2026-11-01")
        config = source.config.model_copy(update={"run": run_id})
        with pytest.raises(RunError, match="make a new webhook"):
            notify_chat(config)
        assert notify_chat(config)["posted"] == run_id
        assert source.tells("2026-11-02", "drift") == ()
    assert heads(chat) == ["◆ DRIFT", "◆ DRIFT", "◆ still drifting, night 2"]
    assert "blocks" in chat.got[1]


def test_a_run_without_a_verdict_has_no_message(tmp_path: Path) -> None:
    source = Source(tmp_path, "https://example.org")
    run = begun(source.store, source.layout, frozen(source.store, source.layout, images(2)))
    with pytest.raises(SettingError, match="drift measure --run"):
        notify_chat(source.config.model_copy(update={"run": run.record.run_id}))


def test_the_time_in_which_a_record_counts_as_being_posted_is_longer_than_a_post() -> None:
    assert alerts.AT_WORK.total_seconds() > 2 * notify.ALL_SECONDS
