"""Which engine computes a learner's runs: chosen once for a learner, on real images, and recorded for good.

Knows `models/<model_id>/{engine.json, network.json, int8.json}`. Does not know runs, or how an engine computes. All
runs of a learner are computed alike, so that a night differs from its reference by its images only.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.errors import ImageError, LearnerError, SettingError, StoreError
from drivetrain.export import LearnerInfo
from drivetrain.layout import Layout
from drivetrain.root import from_json, to_json
from drivetrain.several import several_at_once
from drivetrain.store import Store

# Real images that the fast engine is held against eager torch on, and the fewest that prove anything.
PROOF_IMAGES = 32
FEWEST_IMAGES = 4
# Images that int8's ranges are taken from, those that it is held against float32 on, and the fewest of these.
CALIBRATION_IMAGES = 300
CHECK_IMAGES = 1000
FEWEST_CHECKS = 200
# Images that are fetched together.
TOGETHER = 16

_AFRESH = "Copy it back, or start again in another --root."

# Gives the uris of images of the learner's world, in random order.
Some = Callable[[], Iterator[str]]


def choose_engine(store: Store, layout: Layout, config: Config, info: LearnerInfo, some: Some) -> tuple[str, str]:
    """The engine that computes this learner's runs, and what is to be said of it (or an empty text).

    ``some`` gives real images for the proof, if there is none yet.
    Raises SettingError when the config asks for what this learner or this machine can't do.
    """
    if config.precision == "float16" and not config.gpus_per_actor:
        raise SettingError('precision = "float16" is for GPUs: add   --gpus-per-actor 1   or leave it out.')
    if config.gpus_per_actor and config.engine not in ("auto", "torch"):
        raise SettingError(f'engine = "{config.engine}" is for CPUs: leave out   --gpus-per-actor   or   --engine.')
    if config.engine == "torch" or config.gpus_per_actor:
        return "torch", "asked for" if config.engine == "torch" else "the network runs on GPUs"
    record = layout.proof(info.model_id, config.embedding)
    proof = from_json(store, record)
    if proof is None:
        proof = _prove(store, layout, config, info, some)
        if proof["images"] or proof["final"]:
            store.create(record, to_json(proof))
            proof = from_json(store, record) or proof
    elif not proof["reason"] and not store.exists(layout.network(info.model_id, config.embedding)):
        # A root from before networks were stored. Its engine stays as it is, whatever comes of this: with no network
        # actors open the export.
        _prove(store, layout, config, info, some)
    reason = str(proof["reason"])
    if reason and config.engine != "auto":
        raise SettingError(
            f'engine = "{config.engine}" can\'t serve this learner: {reason}. Use   --engine torch   or auto.'
        )
    if reason:
        say(f"Scoring with torch, more slowly than with OpenVINO: {reason}.")
        return "torch", reason
    if config.engine == "int8":
        return "int8", _int8(store, layout, config, info, some)
    return "openvino", ""


def _prove(store: Store, layout: Layout, config: Config, info: LearnerInfo, some: Some) -> dict[str, Any]:
    from drivetrain.learner import engine_version

    if not engine_version():
        # True of this machine today, not of the learner.
        return {"images": 0, "reason": "OpenVINO is not installed here", "final": False}
    with busy("Holding the fast engine against torch"):
        learner = _open(store, layout, config, info)
        items = list(_prepared(store, config, learner, some, PROOF_IMAGES))
        if len(items) < FEWEST_IMAGES:
            few = f"only {len(items)} readable images to hold it against torch"
            return {"images": 0, "reason": few, "final": False}
        proof = _stored(store, layout, config, learner, items)
    # Without any image compared, the reason lies in the learner itself and holds for good.
    return asdict(proof) | {"final": True, "version": engine_version()}


def _stored(store: Store, layout: Layout, config: Config, learner: Any, items: list[Any]) -> Any:
    """Store the learner as actors open it, and prove what was stored; it stays unnamed if it can't be used."""
    from drivetrain.learner import Proof, StoredLearner

    try:
        made = learner.stored(items)
        proof = learner.prove(StoredLearner(made, learner.info), items)
    except LearnerError as error:
        return Proof(0, 0.0, 0.0, False, str(error))
    if not proof.reason:
        model_id, digest = learner.info.model_id, hashlib.sha256(made).hexdigest()
        # Of two writers the first wins; what the second made lies unnamed.
        store.create(layout.stored_network(model_id, digest), made)
        store.create(layout.network(model_id, config.embedding), to_json({"sha256": digest}))
    return proof


def _int8(store: Store, layout: Layout, config: Config, info: LearnerInfo, some: Some) -> str:
    """What the learner's network in int8 is worth, in words; made now if it is not there."""
    record = layout.int8(info.model_id, config.embedding)
    known = from_json(store, record)
    if known is None:
        made, quality = _make_int8(store, layout, config, info, some)
        digest = hashlib.sha256(made).hexdigest()
        # Of two writers the first wins; what the second made lies unnamed.
        store.create(layout.int8_network(info.model_id, digest), made)
        store.create(record, to_json({"sha256": digest, "worth": str(quality)} | asdict(quality)))
        known = from_json(store, record)
    assert known is not None
    say(f"{known['worth']}.")
    return str(known["worth"])


def _make_int8(store: Store, layout: Layout, config: Config, info: LearnerInfo, some: Some) -> tuple[bytes, Any]:
    with busy("Making the network in int8: half a minute or more, once for a learner"):
        from drivetrain.learner import StoredLearner

        stored = read_network(store, layout, info.model_id, config.embedding)
        learner = StoredLearner(stored, info)
        images = _prepared(store, config, learner, some, CALIBRATION_IMAGES + CHECK_IMAGES)
        calibration, checks = list(islice(images, CALIBRATION_IMAGES)), list(islice(images, FEWEST_CHECKS))
        if len(checks) < FEWEST_CHECKS:
            raise SettingError(
                f'engine = "int8" is made from {CALIBRATION_IMAGES + FEWEST_CHECKS} images or more, and '
                f"{len(calibration) + len(checks)} can be read here. Score a larger reference first, or leave it out."
            )
        try:
            return learner.make_int8(stored, calibration, chain(checks, images))
        except LearnerError as error:
            raise SettingError(f'engine = "int8" can\'t serve this learner: {error}. Leave it out.') from error


def read_network(store: Store, layout: Layout, model_id: str, embedding: str) -> bytes:
    """The stored learner that actors on CPUs open. Raises StoreError if it is not what was made, or not there."""
    data = network_if_stored(store, layout, model_id, embedding)
    if data is None:
        raise _gone(layout.network(model_id, embedding))
    return data


def network_if_stored(store: Store, layout: Layout, model_id: str, embedding: str) -> bytes | None:
    """As `read_network`, and None in a root from before networks were stored."""
    return _read(store, layout.network(model_id, embedding), lambda sha256: layout.stored_network(model_id, sha256))


def read_int8(store: Store, layout: Layout, model_id: str, embedding: str) -> bytes:
    """The network in int8 that a learner's runs are computed with. Raises StoreError if it is not what was made."""
    record = layout.int8(model_id, embedding)
    data = _read(store, record, lambda sha256: layout.int8_network(model_id, sha256))
    if data is None:
        raise _gone(record)
    return data


def _gone(record: str) -> StoreError:
    return StoreError(f"The run is computed with what {record} names, which is gone. " + _AFRESH)


def _read(store: Store, record: str, where: Callable[[str], str]) -> bytes | None:
    """What a record names, None if there is no record."""
    named = from_json(store, record)
    if named is None:
        return None
    try:
        sha256 = named["sha256"]
        data = store.fetch(where(sha256))[0]
    except (KeyError, FileNotFoundError) as error:
        raise _gone(record) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"The run is computed with what {record} names, which is damaged. " + _AFRESH)
    return data


def _open(store: Store, layout: Layout, config: Config, info: LearnerInfo) -> Any:
    from drivetrain.learner import open_learner

    data = store.read(layout.export(info.model_id))
    return open_learner(data, info.sha256, config.embedding, vouched=info.sha256 in config.trust)


def _prepared(store: Store, config: Config, learner: Any, some: Some, most: int) -> Iterator[Any]:
    """At most that many images as the network takes them; those that can't be read or decoded are passed over."""

    def read(uri: str) -> bytes:
        try:
            return store.read(uri)
        except (OSError, StoreError):
            return b""

    def prepared() -> Iterator[Any]:
        # A bucket that can't be read at all is not read to its end.
        uris = islice(some(), 2 * most)
        while together := list(islice(uris, TOGETHER)):
            for data in several_at_once(read, together):
                try:
                    yield learner.prepare(data, config.max_pixels)[0]
                except ImageError:
                    continue

    return islice(prepared(), most)
