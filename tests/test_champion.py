"""Who scores a source's nights: promoted, gone back from, limited to a scope. None is opened: the root knows them."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from builders import begun, committed, frozen, images
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from drivetrain import Config, promote, roll_back, withdraw
from drivetrain.admit import admit_known
from drivetrain.aliases import Alias, challenger_of, check_scope, current, history, in_scope, name_next, one_before
from drivetrain.champion import admit_champion
from drivetrain.cli import main
from drivetrain.errors import LearnerError, SettingError, TrustError
from drivetrain.export import LearnerInfo
from drivetrain.layout import Layout
from drivetrain.planruns import scope_name, scope_run
from drivetrain.root import to_json
from drivetrain.store import Store

STORE = Store()
EXPORTS = {name: f"the bytes of {name}".encode() for name in "ABC"}
HASHES = {name: hashlib.sha256(data).hexdigest() for name, data in EXPORTS.items()}
IDS = {name: sha256[:12] for name, sha256 in HASHES.items()}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root of one source that knows three learners, the third of which only fastai opens."""
    layout = Layout(str(tmp_path / "root"))
    STORE.create(layout.marker, to_json({"schema": 1}))
    for name, data in EXPORTS.items():
        knows(layout, name, data, "fastai" if name == "C" else "data")
    frozen(STORE, layout, images(3))
    return layout


def knows(layout: Layout, name: str, data: bytes, read: Any) -> None:
    STORE.create(layout.export(IDS[name]), data)
    info = LearnerInfo(IDS[name], HASHES[name], "single_label", ("cat", "dog"), 2, "1.4", 3, "net", read=read)
    STORE.create(layout.learner(IDS[name]), to_json(asdict(info)))


def config_of(layout: Layout, **more: Any) -> Config:
    return Config(root=layout.root, source="shop", actors=0, **more)


def champion(layout: Layout, source: str = "shop") -> str | None:
    found = current(STORE, layout, source, "champion")
    return next(name for name, each in IDS.items() if each == found.model_id) if found else None


def said(layout: Layout) -> list[tuple[str | None, str, int | None]]:
    return [(each.model_id, each.reason, each.before) for each in history(STORE, layout, "shop", "champion")]


# --- promoting ---


def test_a_promoted_learner_is_one_more_record(layout: Layout) -> None:
    config = config_of(layout)
    promote(config, IDS["A"])
    result = promote(config, IDS["B"])
    assert champion(layout) == "B"
    assert said(layout) == [(IDS["A"], "promoted", None), (IDS["B"], "promoted", None)]
    assert (result["champion"]["number"], result["challenger"]) == (2, None)


def test_who_is_champion_already_gets_no_record(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    first = promote(config_of(layout), IDS["A"])
    assert promote(config_of(layout), IDS["A"]) == first
    assert "already" in capsys.readouterr().err and len(said(layout)) == 1


def test_a_learner_is_named_by_a_run_too(layout: Layout) -> None:
    plan = frozen(STORE, layout, images(3), name="2026-01-05")
    run = begun(STORE, layout, plan, sha256=HASHES["B"])
    with pytest.raises(SettingError, match="not committed yet"):
        promote(config_of(layout), run.record.run_id)
    committed(run)
    promote(config_of(layout), run.record.run_id)
    assert champion(layout) == "B"


def test_a_learner_that_nobody_knows_is_refused_with_those_that_there_are(layout: Layout) -> None:
    with pytest.raises(SettingError, match=f"No learner 'nowhere.pkl'.*{min(IDS.values())}"):
        promote(config_of(layout), "nowhere.pkl")
    assert said(layout) == []


def test_a_table_that_could_not_be_written_is_a_note_for_programs(layout: Layout) -> None:
    committed(begun(STORE, layout, frozen(STORE, layout, images(3)), sha256=HASHES["A"]))
    STORE.replace(layout.table("shop"), b"a file where the table's folder would be")
    flags = ["--root", layout.root, "--source", "shop", "--json"]
    done = CliRunner().invoke(main, ["promote", IDS["A"], *flags])
    assert done.exit_code == 0, done.output
    (note,) = json.loads(done.stdout)["notes"]
    assert "could not be written" in note and champion(layout) == "A"


def test_a_mistyped_source_gets_no_champion(layout: Layout) -> None:
    with pytest.raises(SettingError, match=r"No source 'shpo'.*Known: shop"):
        promote(Config(root=layout.root, source="shpo"), IDS["A"])
    assert not STORE.names(layout.aliases("shpo", "champion"))


def test_two_sources_under_one_root_have_a_champion_each(layout: Layout) -> None:
    frozen(STORE, layout, images(3), source="mill")
    promote(config_of(layout), IDS["A"])
    promote(config_of(layout).model_copy(update={"source": "mill"}), IDS["B"])
    assert (champion(layout), champion(layout, "mill")) == ("A", "B")


# --- trust ---


def test_who_can_only_write_the_bucket_vouches_for_no_learner(layout: Layout) -> None:
    """The root says that only fastai opens it, and the config vouches for nobody."""
    with pytest.raises(TrustError, match=f'trust = \\["{HASHES["C"]}"\\]'):
        promote(config_of(layout), IDS["C"])
    assert said(layout) == []
    promote(config_of(layout, trust=(HASHES["C"],)), IDS["C"])
    assert champion(layout) == "C"


def test_a_trust_that_names_others_is_shown_as_the_line_that_it_must_become(layout: Layout) -> None:
    line = f'trust = ["{HASHES["A"]}", "{HASHES["B"]}"]'
    with pytest.raises(TrustError) as refused:
        promote(config_of(layout, trust=(HASHES["A"],)), IDS["B"])
    assert line in str(refused.value) and said(layout) == []


def test_going_back_asks_for_trust_as_well(layout: Layout) -> None:
    promote(config_of(layout), IDS["A"])
    promote(config_of(layout), IDS["B"])
    with pytest.raises(TrustError, match=HASHES["A"]):
        roll_back(config_of(layout, trust=(HASHES["B"],)))
    assert champion(layout) == "B"


def test_a_champion_whose_export_was_written_over_does_not_score(layout: Layout) -> None:
    promote(config_of(layout), IDS["A"])
    # Readable, and even vouched for: it is another learner all the same.
    STORE.replace(layout.export(IDS["A"]), EXPORTS["B"])
    with pytest.raises(LearnerError, match=f"expected the sha256 {HASHES['A']}, found {HASHES['B']}"):
        admit_champion(STORE, layout, config_of(layout, trust=(HASHES["A"], HASHES["B"])))
    with pytest.raises(LearnerError, match="Somebody wrote over it"):
        admit_known(STORE, layout, config_of(layout), IDS["A"])


def test_a_champion_that_trust_does_not_name_says_both_ways_out(layout: Layout) -> None:
    promote(config_of(layout), IDS["A"])
    with pytest.raises(TrustError, match=f"(?s){HASHES['A']}.*drivetrain promote"):
        admit_champion(STORE, layout, config_of(layout, trust=(HASHES["B"],)))


# --- going back ---


def test_going_back_twice_goes_further_back(layout: Layout) -> None:
    config = config_of(layout, trust=tuple(HASHES.values()))
    for name in "ABC":
        promote(config, IDS[name])
    assert roll_back(config)["champion"]["model_id"] == IDS["B"]
    assert roll_back(config)["champion"]["model_id"] == IDS["A"]
    assert said(layout)[3:] == [(IDS["B"], "rolled back", 2), (IDS["A"], "rolled back", 1)]
    with pytest.raises(SettingError, match=f"No champion of shop to go back to: {IDS['A']} is the first"):
        roll_back(config)
    assert len(said(layout)) == 5


def test_a_rollback_ended_before_readers_saw_it_is_ended_and_goes_no_further(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(layout, trust=tuple(HASHES.values()))
    for name in "ABC":
        promote(config, IDS[name])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("drivetrain.champion.keep_table_current", killed)
        with pytest.raises(KeyboardInterrupt):
            roll_back(config)
    assert champion(layout) == "B"
    assert roll_back(config)["champion"]["model_id"] == IDS["B"]
    assert len(said(layout)) == 4
    assert roll_back(config)["champion"]["model_id"] == IDS["A"]


def test_what_was_gone_back_from_is_not_gone_back_to(layout: Layout) -> None:
    config = config_of(layout, trust=tuple(HASHES.values()))
    promote(config, IDS["A"])
    promote(config, IDS["B"])
    roll_back(config)
    promote(config, IDS["C"])
    roll_back(config)
    assert champion(layout) == "A", "B was bad, and is not what C took over from"


def test_without_a_champion_nobody_can_be_gone_back_to(layout: Layout) -> None:
    with pytest.raises(SettingError, match="it has none yet"):
        roll_back(config_of(layout))


@given(st.lists(st.sampled_from(["A", "B", "C", "D", None]), max_size=12))
def test_going_back_is_an_undo(steps: list[str | None]) -> None:
    """Against a stack; None goes back."""
    stack: list[str] = []
    records: list[Alias] = []

    def record(model: str, before: int | None) -> None:
        records.append(Alias("s", "champion", len(records) + 1, model, model, None, "", before, ""))

    for step in steps:
        if step is None and len(stack) > 1:
            stack.pop()
            found = one_before(records)
            assert found and found.model_id == stack[-1]
            record(stack[-1], found.number)
        elif step and stack[-1:] != [step]:
            stack.append(step)
            record(step, None)
    found = one_before(records)
    assert (found.model_id if found else None) == (stack[-2] if len(stack) > 1 else None)


# --- behaviour tests ---


def behaved(layout: Layout, name: str, digest: str, made: str, passed: bool) -> None:
    record = {"model_id": IDS[name], "made": made, "passed": passed, "sentence": "Rotation turns 9 of 40 labels."}
    record["page"] = layout.behaviour_page(IDS[name], digest)
    STORE.replace(f"{layout.behaviour(IDS[name], digest)}/behaviour.json", to_json(record))


def test_a_learner_that_fails_its_behaviour_tests_is_refused_unless_told_otherwise(layout: Layout) -> None:
    behaved(layout, "A", "b", "2026-01-01T00:00:00+00:00", passed=True)
    behaved(layout, "A", "a", "2026-01-02T00:00:00+00:00", passed=False)
    for scope in (None, "0.5"):
        with pytest.raises(SettingError, match="Rotation turns 9 of 40 labels") as refused:
            promote(config_of(layout), IDS["A"], scope=scope)
        assert "--despite-behaviour" in str(refused.value)
    assert said(layout) == [] and challenger_of(STORE, layout, "shop") is None
    promote(config_of(layout), IDS["A"], despite_behaviour=True)
    assert champion(layout) == "A"


def test_the_newest_behaviour_tests_count_wherever_they_lie(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    behaved(layout, "A", "a", "2026-01-01T00:00:00+00:00", passed=False)
    behaved(layout, "A", "b", "2026-01-02T00:00:00+00:00", passed=True)
    behaved(layout, "B", "c", "2026-01-03T00:00:00+00:00", passed=False)
    promote(config_of(layout), IDS["A"])
    assert champion(layout) == "A" and "No behaviour tests" not in capsys.readouterr().err


def test_a_learner_without_a_reference_is_promoted_and_what_that_does_to_its_nights_is_said(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(config_of(layout), IDS["A"])
    said = capsys.readouterr().err
    assert f"{IDS['A']} has no reference: the verdict of its nights will be unknown" in said
    assert f"drivetrain reference --learner {layout.export(IDS['A'])} --root {layout.root}" in said


def test_a_learner_without_behaviour_tests_is_promoted_and_that_is_said(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(config_of(layout), IDS["A"])
    assert f"drivetrain behave {IDS['A']}" in capsys.readouterr().err


# --- a challenger and its scope ---


def test_a_scope_makes_a_challenger_and_promoting_it_ends_that(layout: Layout) -> None:
    config = config_of(layout)
    promote(config, IDS["A"])
    result = promote(config, IDS["B"], scope="0.1")
    assert champion(layout) == "A" and result["challenger"]["scope"] == "0.1"
    assert promote(config, IDS["B"], scope="0.1") == result, "asked again nothing happens"
    wider = promote(config, IDS["B"], scope="0.5")
    assert wider["challenger"]["number"] == 2
    assert promote(config, IDS["B"])["challenger"] is None
    last = history(STORE, layout, "shop", "challenger")[-1]
    assert (last.model_id, last.reason) == (None, "became champion")
    with pytest.raises(SettingError, match="is the champion of shop"):
        promote(config, IDS["B"], scope="0.1")


def test_a_challenger_that_became_champion_is_none_even_if_the_command_died_between(layout: Layout) -> None:
    promote(config_of(layout), IDS["A"], scope="0.1")
    name_next(STORE, layout, "shop", "champion", model_id=IDS["A"], sha256=HASHES["A"], reason="promoted")
    assert challenger_of(STORE, layout, "shop") is None
    # The same command ends the trial too: else the next rollback would begin it again.
    promote(config_of(layout), IDS["A"])
    promote(config_of(layout), IDS["B"])
    assert challenger_of(STORE, layout, "shop") is None


def test_promoting_or_going_back_to_another_leaves_the_challenger(layout: Layout) -> None:
    config = config_of(layout, trust=tuple(HASHES.values()))
    promote(config, IDS["A"])
    promote(config, IDS["B"], scope="cameras/3")
    assert promote(config, IDS["C"])["challenger"]["model_id"] == IDS["B"]
    assert roll_back(config)["challenger"]["model_id"] == IDS["B"]
    assert withdraw(config)["challenger"] is None
    assert withdraw(config)["challenger"] is None, "asked again nothing happens"
    assert [each.reason for each in history(STORE, layout, "shop", "challenger")] == ["scope", "withdrawn"]


URIS = [f"s3://bucket/camera-{n % 7}/{n:05d}.jpg" for n in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_share_holds_about_so_many_images(share: float) -> None:
    found = sum(in_scope(URIS, str(share))) / len(URIS)
    # Four standard errors of a binomial.
    assert abs(found - share) < 4 * (share * (1 - share) / len(URIS)) ** 0.5


def test_a_share_holds_the_same_images_for_ever() -> None:
    """The numbers are written down: a share that moved would score other images, and Python's own hash does."""
    assert [n for n, inside in enumerate(in_scope(URIS[:60], "0.1")) if inside] == [14, 15, 16, 48, 53]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_an_image_falls_in_whatever_else_there_is_and_a_larger_share_holds_a_smaller(
    uris: list[str], one: float, two: float
) -> None:
    small, large = (f"{share:.6f}" for share in sorted((one, two)))
    inside = in_scope(uris, small)
    assert inside == [in_scope([uri], small)[0] for uri in uris]
    assert all(there for there, wanted in zip(in_scope(uris, large), inside, strict=True) if wanted)


def test_a_regular_expression_is_searched_for_in_the_uri() -> None:
    uris = ["s3://b/camera-1/a.jpg", "s3://b/camera-12/a.jpg", "s3://b/x/camera-1.jpg"]
    assert in_scope(uris, "camera-1/") == [True, False, False]
    assert in_scope(uris, "^(?!.*camera-12)") == [True, False, True]


@pytest.mark.parametrize("scope", ["0", "1", "1.0", "-0.1", "10", "10%", "1.2.3", "(", ""])
def test_what_is_no_scope_is_refused(layout: Layout, scope: str) -> None:
    with pytest.raises(SettingError, match="--scope"):
        check_scope(scope)
    with pytest.raises(SettingError, match="--scope"):
        promote(config_of(layout), IDS["A"], scope=scope)
    assert challenger_of(STORE, layout, "shop") is None


def test_the_run_of_a_scope_is_the_challengers_newest(layout: Layout) -> None:
    promote(config_of(layout), IDS["B"], scope="0.5")
    challenger = challenger_of(STORE, layout, "shop")
    assert challenger and scope_run(STORE, layout, "shop", "2026-01-02", challenger) is None
    plan = frozen(STORE, layout, images(2), kind="plan", name=scope_name("2026-01-02", "0.5"))
    for name in "AB":
        committed(begun(STORE, layout, plan, sha256=HASHES[name]))
    found = scope_run(STORE, layout, "shop", "2026-01-02", challenger)
    assert found and found.record.model_id == IDS["B"]


# --- the command ---


@pytest.mark.parametrize(
    "words", [[], ["A", "--rollback"], ["--rollback", "--withdraw"], ["--scope", "0.1"], ["--rollback", "--scope", "1"]]
)
def test_a_command_that_says_two_things_or_none_is_a_usage_error(layout: Layout, words: list[str]) -> None:
    done = CliRunner().invoke(main, ["promote", *words, "--root", layout.root, "--source", "shop"])
    assert done.exit_code == 2 and said(layout) == []


def test_the_command_promotes_goes_back_and_shows_who_it_is(layout: Layout) -> None:
    where = ["--root", layout.root, "--source", "shop"]
    for words in ([IDS["A"]], [IDS["B"]], ["--rollback"], [IDS["B"], "--scope", "0.25"]):
        done = CliRunner().invoke(main, ["promote", *words, *where])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["nights", *where])
    assert f"shop: champion {IDS['A']} (rolled back" in done.output
    assert f"challenger {IDS['B']} in the scope 0.25" in done.output
    learners = json.loads(done.output.splitlines()[-1])["learners"]["shop"]
    assert (learners["champion"]["number"], learners["challenger"]["scope"]) == (3, "0.25")
