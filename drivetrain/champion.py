"""Who scores a source's nights: promote a learner, go back to the one before, give a challenger a scope first.

Knows what it takes to become champion: a learner under the root, its owner's word where the config asks for one, and
its behaviour tests. Does not score. A first night makes its learner champion; afterwards only these commands change
who it is, and each change is one more record.
"""

from typing import Any

from drivetrain import site
from drivetrain.admit import admit_known, admit_learner
from drivetrain.aliases import Alias, challenger_of, check_scope, current, history, name_first, name_next, one_before
from drivetrain.behaviour import latest_behaviour
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.errors import DrivetrainError, SettingError, TrustError
from drivetrain.export import LearnerInfo, read_export
from drivetrain.layout import Layout
from drivetrain.named import named_learner
from drivetrain.nights import nights_table
from drivetrain.reference import newest_reference
from drivetrain.root import open_root, to_json
from drivetrain.store import Store
from drivetrain.table import keep_table_current


def promote(
    config: Config, learner: str, *, scope: str | None = None, despite_behaviour: bool = False
) -> dict[str, Any]:
    """Make a learner the champion of the config's source, or with ``scope`` its challenger for a part of the images.

    Needs ``root`` and ``source`` (or ``images``, which name it). ``learner``: a model_id, the id of a committed run, or
    an export.pkl, which is copied into the root. ``scope``: a regular expression on the uri or a share such as ``0.1``.
    Returns champion, challenger and ``notes`` of what went wrong beside; asked again, it says so and does nothing.
    Raises TrustError, with the line to add, where the config does not vouch for the learner; SettingError when it
    failed its behaviour tests.
    """
    store, layout, source = _opened(config)
    scope = check_scope(scope) if scope is not None else None
    info = named_learner(store, layout, config, learner)
    champion, challenger = current(store, layout, source, "champion"), challenger_of(store, layout, source)
    is_champion = champion is not None and champion.model_id == info.model_id
    if is_champion and scope:
        raise SettingError(f"{info.model_id} is the champion of {source} and scores all of its images already.")
    if is_champion or (scope and challenger and (challenger.model_id, challenger.scope) == (info.model_id, scope)):
        say(f"{info.model_id} is the {'challenger' if scope else 'champion'} of {source} already; nothing to do.")
        # All the same: the command that made it so may have been ended before readers saw it.
        return _changed(store, layout, source)
    _check_behaviour(store, layout, info.model_id, despite_behaviour)
    if newest_reference(store, layout, info.model_id) is None:
        say(
            f"{info.model_id} has no reference: the verdict of its nights will be unknown. First: drivetrain reference "
            f"--learner {layout.export(info.model_id)} --root {layout.root} --images TRAINING_SET --labels labels.csv"
        )
    about: dict[str, Any] = {"model_id": info.model_id, "sha256": info.sha256}
    if scope:
        name_next(store, layout, source, "challenger", **about, reason="scope", scope=scope)
    else:
        name_next(store, layout, source, "champion", **about, reason="promoted")
    return _changed(store, layout, source)


def roll_back(config: Config) -> dict[str, Any]:
    """Make the champion before this one the champion again. Doing so twice goes further back, not to and fro.

    After one that was ended halfway it is done to its end, and goes no further.

    Needs ``root`` and ``source``. Returns champion and challenger; the challenger stays. Raises SettingError when there
    was no champion before, LearnerError when its export is gone or another, TrustError when nobody vouches for it now.
    """
    store, layout, source = _opened(config)
    records = history(store, layout, source, "champion")
    if records and _halfway(store, layout, records[-1]):
        now = records[-1].model_id
        say(f"The rollback to {now} was ended halfway; it is done now. To go further back, type the same again.")
        return _changed(store, layout, source)
    before = one_before(records)
    if before is None or before.sha256 is None:
        now = f"{records[-1].model_id} is the first" if records else "it has none yet; its first night makes one"
        raise SettingError(f"No champion of {source} to go back to: {now}.")
    admit_known(store, layout, config, before.sha256)
    about: dict[str, Any] = {"model_id": before.model_id, "sha256": before.sha256, "before": before.number}
    name_next(store, layout, source, "champion", **about, reason="rolled back")
    return _changed(store, layout, source)


def withdraw(config: Config) -> dict[str, Any]:
    """Take the challenger of a source away. Needs ``root`` and ``source``. Returns champion and challenger."""
    store, layout, source = _opened(config)
    if challenger_of(store, layout, source) is None:
        say(f"{source} has no challenger; nothing to do.")
        return _changed(store, layout, source)
    name_next(store, layout, source, "challenger", model_id=None, sha256=None, reason="withdrawn")
    return _changed(store, layout, source)


def admit_champion(store: Store, layout: Layout, config: Config) -> LearnerInfo:
    """The learner that scores the source's nights: its champion, which the config's learner becomes on a first night.

    Says what to type where the config names another. Raises LearnerError when the champion's export was written over.
    """
    source = config.the_source()
    champion = current(store, layout, source, "champion")
    if champion is None:
        config.need("learner")
        check_first(config)
        info = admit_learner(store, layout, config)
        champion = name_first(store, layout, source, model_id=info.model_id, sha256=info.sha256, reason="first night")
        if champion.sha256 == info.sha256:
            if not config.dry_run:
                say(f"{info.model_id} is the champion of {source} from now on.")
            return info
    _say_other(store, layout, config, champion)
    try:
        assert champion.sha256 is not None
        return admit_known(store, layout, config, champion.sha256)
    except TrustError as error:
        raise TrustError(
            f"{champion.model_id} is the champion of {source}. {error}\n"
            f"Or make another one champion:   {_how_to_promote(layout, config, 'LEARNER')}"
        ) from error


def _opened(config: Config) -> tuple[Store, Layout, str]:
    if config.images is None:
        config.need("source")
    store, layout = open_root(config, existing=True)
    # Its learner, if it is a file, is read at once anyway; images it needs none.
    check_first(config.model_copy(update={"learner": None, "images": None}))
    source, known = config.the_source(), store.names(layout.sources)
    if source not in known:
        raise SettingError(f"No source {source!r} under {layout.root}. Known: {', '.join(known) or 'none yet'}.")
    return store, layout, source


def _check_behaviour(store: Store, layout: Layout, model_id: str, despite: bool) -> None:
    """Raises SettingError when the newest behaviour tests of a learner failed, unless told otherwise."""
    newest = latest_behaviour(store, layout, model_id)
    if newest is None:
        say(
            f"No behaviour tests of {model_id} were run. To run them: drivetrain behave {model_id} --root {layout.root}"
        )
        return
    if newest["passed"]:
        return
    failed = f"{model_id} fails its behaviour tests of {newest['made']}: {newest['sentence']}"
    if not despite:
        raise SettingError(
            f"Not promoted: {failed}\nSee {newest['page']}. To promote it all the same: --despite-behaviour"
        )
    say(f"{failed} Promoted all the same.")


def _say_other(store: Store, layout: Layout, config: Config, champion: Alias) -> None:
    """Say what to type when the config's learner is not the champion. A learner that can't be read is no matter."""
    if config.learner is None:
        return
    try:
        _, sha256 = read_export(store, store.normalise(config.learner), ())
    except (DrivetrainError, OSError):
        say(f"The champion {champion.model_id} scores; the config's learner {config.learner} can't be read.")
        return
    if sha256 != champion.sha256:
        say(
            f"The champion {champion.model_id} scores, and not the config's learner {sha256[:12]}. To make that one "
            f"champion: {_how_to_promote(layout, config, config.learner)}"
        )


def _how_to_promote(layout: Layout, config: Config, learner: str) -> str:
    return f"drivetrain promote {learner} --root {layout.root} --source {config.the_source()}"


def _changed(store: Store, layout: Layout, source: str) -> dict[str, Any]:
    """What follows from a new record: pages show who it is."""
    _end_trial(store, layout, source)
    notes = keep_table_current(store, layout, source)
    site.build(store, layout)
    champion = current(store, layout, source, "champion")
    if champion and _halfway(store, layout, champion):
        store.create(layout.shown(source, champion.number), to_json(champion.record()))
    return _said(store, layout, source) | {"notes": notes}


def _halfway(store: Store, layout: Layout, record: Alias) -> bool:
    """Whether a record is of a rollback that readers were perhaps not shown to the end."""
    return record.before is not None and not store.exists(layout.shown(record.source, record.number))


def _end_trial(store: Store, layout: Layout, source: str) -> None:
    """A challenger that is champion now is none any more; the next rollback must not make it one again."""
    challenger, champion = current(store, layout, source, "challenger"), current(store, layout, source, "champion")
    if champion and challenger and challenger.model_id == champion.model_id:
        name_next(store, layout, source, "challenger", model_id=None, sha256=None, reason="became champion")


def _said(store: Store, layout: Layout, source: str) -> dict[str, Any]:
    champion, challenger = current(store, layout, source, "champion"), challenger_of(store, layout, source)
    return {
        "source": source,
        "champion": champion.record() if champion else None,
        "challenger": challenger.record() if challenger else None,
        "stale_nights": [night.night for night in nights_table(store, layout, source) if night.state == "stale"],
    }
