"""Behaviour tests of a learner: do its answers stay under changes that should not matter, and do own cases come right?

Knows which images are looked at, and who stands beside. Does not know pixels (`perturbations`), how learners are asked
(`answers`) or what is written of it (`behaved`). Nothing is kept until all is known: behaviour.json comes last, and the
same command again finds it by what went in.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain import site
from drivetrain.admit import admit_known
from drivetrain.aliases import current
from drivetrain.answers import Sample, asked, tested_as
from drivetrain.behaved import digest_of, now, record_of, refuse_unreadable
from drivetrain.behaviour import latest_behaviour
from drivetrain.broken import broken_images, pictured
from drivetrain.bundle import groups_of
from drivetrain.cases import check_cases, read_cases
from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.doctor import check_first
from drivetrain.errors import SettingError
from drivetrain.export import LearnerInfo
from drivetrain.groups import GROUPING
from drivetrain.layout import Layout
from drivetrain.named import known_id, named_learner
from drivetrain.perturbations import OF_ANOTHER_SIZE, PERTURBATIONS
from drivetrain.reference import newest_reference
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.several import several_at_once
from drivetrain.stability import FEWEST_IMAGES
from drivetrain.store import Store

# Pictures on the page: the rest is counted, and stands in behaviour.json.
SHOWN, SHOWN_OF_ONE = 60, 12


def check_behaviour(config: Config) -> dict[str, Any]:
    """Test the behaviour of the config's learner, with the champion beside it.

    Needs ``root``, ``learner``: an export, or the id of a learner in the root or of a run of it. Returns behaviour.json
    without the images that broke, and its uri as ``behaviour``. The same config again finds the record there, unless
    images, cases, champion or settings changed. Raises SettingError when there is no reference to take images from, or
    for a case that can't be used.
    """
    _, named = config.need("root", "learner")
    store, layout = open_root(config, existing=True)
    known = known_id(store, layout, named)
    check_first(config.model_copy(update={"images": None, "learner": layout.export(known) if known else named}))
    info = named_learner(store, layout, config, named)
    other = _champion(store, layout, config, info)
    cases = read_cases(store, store.normalise(config.cases)) if config.cases else ()
    check_cases(cases, [info, *([other] if other else [])])
    sample = _sample(store, layout, config, info, other)
    learner = tested_as(store, layout, config, info, sample)
    champion = tested_as(store, layout, config, other, sample) if other else None
    digest = digest_of(learner, champion, sample, cases)
    record = from_json(store, layout.behaviour_record(info.model_id, digest))
    if record:
        say(f"These behaviour tests of {info.model_id} were made at {record['made']}; nothing to do.")
        _count_again(store, layout, record, layout.behaviour_record(info.model_id, digest))
    else:
        answers, beside = asked(store, layout, config, (learner, champion), sample, cases)
        refuse_unreadable(cases, answers)
        record = record_of(learner, champion, sample, cases, answers, beside)
        record["page"] = layout.behaviour_page(info.model_id, digest)
        _publish(store, record, layout.behaviour_record(info.model_id, digest))
    short = {key: value for key, value in record.items() if key != "broke"}
    return short | {"behaviour": layout.behaviour_record(info.model_id, digest)}


def _count_again(store: Store, layout: Layout, record: dict[str, Any], where: str) -> None:
    """Let a record that was found count, where another was asked for since: promote goes by what was shown last."""
    if latest_behaviour(store, layout, record["model_id"]) != record:
        record["asked"] = now()
        store.replace(where, to_json(record))


def _champion(store: Store, layout: Layout, config: Config, info: LearnerInfo) -> LearnerInfo | None:
    """The champion to stand beside a learner: that of the config's source, or the only one under the root.

    None where there is none, and beside the champion itself. Raises SettingError when sources have different ones.
    """
    named = config.source or config.images
    sources = [config.the_source()] if named else store.names(layout.sources)
    found = {source: alias.sha256 for source in sources if (alias := current(store, layout, source, "champion"))}
    if len(set(found.values())) > 1:
        raise SettingError(
            f"The sources have different champions ({', '.join(found)}). Say which source: --source {next(iter(found))}"
        )
    sha256 = next(iter(found.values()), None)
    return None if sha256 in (None, info.sha256) else admit_known(store, layout, config, sha256)


def _sample(store: Store, layout: Layout, config: Config, info: LearnerInfo, champion: LearnerInfo | None) -> Sample:
    """Images of the learner's newest reference, else of the champion's, chosen by the hash of their uris.

    Held-out ones where there are any; each content once; none that the champion was trained on, whose answers it knows
    by heart, and one of each group, as long as enough are left.
    """
    references = [newest_reference(store, layout, each.model_id) for each in (info, champion) if each]
    reference = next((each for each in references if each), None)
    if reference is None:
        raise SettingError(
            f"The learner {info.model_id} has no reference{' and its champion neither' if champion else ''}: there are "
            "no images to test it on. Type   drivetrain reference --learner … --images …   first."
        )
    run, notes = Run.find(store, layout, reference.run_id), []
    only = {"split": "held_out"} if reference.held_out else {}
    rows = run.rows(("uri", *GROUPING), only=only)
    order = np.argsort([hashlib.sha256(f"{config.seed} {uri}".encode()).digest() for uri in rows["uri"].to_pylist()])
    rows = rows.take(pa.array(order))
    every = tuple(rows["uri"].to_pylist())
    rows = rows.take(pa.array(_firsts(rows["content_hash"].to_pylist())))
    if champion and (known := _trained_on(store, layout, champion)):
        strange = rows.filter(pa.array([each not in known for each in rows["content_hash"].to_pylist()], pa.bool_()))
        if len(strange) < min(FEWEST_IMAGES, len(rows)):
            notes.append("The champion was trained on most of these images, which makes it look more stable.")
        else:
            rows = strange
    if config.group_by:
        firsts = _firsts(groups_of(rows, None, config.group_by)[0].tolist())
        if len(firsts) < min(FEWEST_IMAGES, len(rows)):
            notes.append(
                f"The images belong to {len(firsts)} groups, too few to take one of each: p-values are too small."
            )
        else:
            rows = rows.take(pa.array(firsts))
    if not reference.held_out:
        notes.append("No image of the reference is marked as held out: the learner may know them by heart.")
    rows = rows.slice(0, config.behaviour_images)
    uris, hashes = (tuple(rows[name].to_pylist()) for name in ("uri", "content_hash"))
    changes = tuple(PERTURBATIONS)
    if not all(_resizes(each) for each in (info, champion) if each):
        changes = tuple(name for name in changes if name != OF_ANOTHER_SIZE)
        notes.append("Images are not enlarged: without a Resize in its transforms a learner takes size for content.")
    return Sample(reference.run_id, reference.held_out, uris, hashes, every, changes, tuple(notes))


def _resizes(info: LearnerInfo) -> bool:
    """Whether a learner brings images of any size to its own: fastai's Resize or RandomResizedCrop."""
    return any("Resize" in each for each in info.transforms)


def _firsts(values: Sequence[Any]) -> list[int]:
    """The places at which a value comes up for the first time; what is None is like no other."""
    seen: dict[Any, int] = {}
    for place, value in enumerate(values):
        seen.setdefault(object() if value is None else value, place)
    return list(seen.values())


def _trained_on(store: Store, layout: Layout, champion: LearnerInfo) -> set[str]:
    """The hashes of the images that the champion's newest reference marks as trained on."""
    reference = newest_reference(store, layout, champion.model_id)
    if reference is None:
        return set()
    rows = Run.find(store, layout, reference.run_id).rows(("content_hash",), only={"split": "trained"})
    return set(rows["content_hash"].drop_null().to_pylist())


def _publish(store: Store, record: Mapping[str, Any], where: str) -> None:
    """Write the page, then the record: who finds the record finds its page."""
    with busy("Writing the page"):
        broke = several_at_once(partial(pictured, store), broken_images(record, SHOWN, SHOWN_OF_ONE))
        wrong_first = sorted(record["cases"], key=lambda case: case["passed"])[:SHOWN]
        cases = several_at_once(partial(pictured, store), wrong_first)
        store.replace(record["page"], site.behaviour_page(record, broke, cases))
        store.replace(where, to_json(dict(record)))
