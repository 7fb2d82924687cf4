"""A learner's way into a root: vouched for or read as data, copied in, described.

Knows `models/<model_id>/`. Does not know runs.
"""

from dataclasses import asdict, replace
from typing import Any

from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.errors import LearnerError, TrustError
from drivetrain.export import LearnerInfo, check_trust, how_to_trust, read_export
from drivetrain.layout import Layout
from drivetrain.root import from_json, to_json
from drivetrain.store import Store


def admit_learner(store: Store, layout: Layout, config: Config) -> LearnerInfo:
    """Read the config's learner, copy it into the root at first use, and say what it is.

    Raises TrustError if ``trust`` names other hashes, or if the learner can't be read as data and nobody vouched for
    it; LearnerError if it can't be served.
    """
    (uri,) = config.need("learner")
    data, sha256 = read_export(store, store.normalise(uri), config.trust)
    return _admitted(store, layout, config, uri, data, sha256)


def admit_known(store: Store, layout: Layout, config: Config, sha256: str) -> LearnerInfo:
    """Say what a learner is that lies in the root, by its own bytes there.

    ``sha256``: its hash, or the model_id, which begins it. Raises LearnerError if the bytes have another, and
    TrustError as `admit_learner` does.
    """
    uri = layout.export(sha256[:12])
    data, found = read_export(store, uri, ())
    if not found.startswith(sha256):
        raise LearnerError(
            f"{uri} is not the learner {sha256[:12]}: expected the sha256 {sha256}, found {found}\n"
            "Somebody wrote over it. Put the export.pkl with the expected hash in its place."
        )
    check_trust(uri, found, config.trust)
    return _admitted(store, layout, config, uri, data, found)


def _admitted(store: Store, layout: Layout, config: Config, uri: str, data: bytes, sha256: str) -> LearnerInfo:
    """What the root knows of an export, after it was opened and copied in at first use."""
    about = layout.learner(sha256[:12], config.embedding)
    known = from_json(store, about)
    if known is None:
        # torch and fastai take seconds to import, and a driver whose learner is known needs neither.
        from drivetrain.learner import open_learner

        with busy(f"Opening the learner {uri}"):
            opened = open_learner(data, sha256, config.embedding, vouched=sha256 in config.trust)
            info = _comparable(opened)
        for note in info.unread:
            say(f"Learner {info.model_id}: {note}.")
        store.create(layout.export(info.model_id), data)
        store.create(about, to_json(asdict(info)))
        known = from_json(store, about)
    assert known is not None
    info = _info(known)
    if info.read == "fastai" and sha256 not in config.trust:
        how = how_to_trust(sha256, config.trust)
        raise TrustError(f"Not opened: {uri} can be opened only by running its code. {how}")
    return info


def known_learner(store: Store, layout: Layout, model_id: str, embedding: str) -> LearnerInfo | None:
    """What the root says of a learner that it holds, or None."""
    known = from_json(store, layout.learner(model_id, embedding))
    return _info(known) if known else None


def _info(known: dict[str, Any]) -> LearnerInfo:
    lists = {key: tuple(known.get(key, ())) for key in ("vocab", "transforms", "unread")}
    return LearnerInfo(**{**known, **lists})


def _comparable(learner: Any) -> LearnerInfo:
    """What a learner is, with what tells whether another one's embeddings are its own where anybody can tell."""
    info: LearnerInfo = learner.info
    try:
        return replace(info, body=learner.body().digest, road=learner.road())
    except LearnerError:
        return info


def inspect_learner(config: Config) -> dict[str, Any]:
    """Say what an export is, without running anything of it unless it is vouched for.

    Needs ``learner``. Raises TrustError, naming what can't be read as data; LearnerError if it can't be served.
    """
    from drivetrain.learner import open_learner

    (uri,) = config.need("learner")
    store = Store(config.storage)
    data, sha256 = read_export(store, store.normalise(uri), config.trust)
    with busy(f"Opening the learner {uri}"):
        learner = open_learner(data, sha256, config.embedding, vouched=sha256 in config.trust)
    return asdict(learner.info) | {"bytes": len(data)} | learner.details()
