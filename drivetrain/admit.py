"""A learner's way into a root: vouched for or read as data, copied in, described, and its engine chosen.

Knows `models/<model_id>/`. Does not know runs. The engine is chosen once for a learner, on real images, so that all of
its runs are computed alike; the record of that choice is never changed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.errors import ImageError, SettingError, TrustError
from drivetrain.export import LearnerInfo, how_to_trust, read_export
from drivetrain.layout import Layout
from drivetrain.root import from_json, to_json
from drivetrain.store import Store

# Real images that the fast engine is held against eager torch on, and the fewest that prove anything.
PROOF_IMAGES = 32
FEWEST_IMAGES = 4


def admit_learner(store: Store, layout: Layout, config: Config) -> LearnerInfo:
    """Read the config's learner, copy it into the root at first use, and say what it is.

    Raises TrustError if ``trust`` names other hashes, or if the learner can't be read as data and nobody vouched for
    it; LearnerError if it can't be served.
    """
    (uri,) = config.need("learner")
    data, sha256 = read_export(store, store.normalise(uri), config.trust)
    about = layout.learner(sha256[:12], config.embedding)
    known = from_json(store, about)
    if known is None:
        # torch and fastai take seconds to import, and a driver whose learner is known needs neither.
        from drivetrain.learner import open_learner

        with busy(f"Opening the learner {uri}"):
            info = open_learner(data, sha256, config.embedding, vouched=sha256 in config.trust).info
        for note in info.unread:
            say(f"Learner {info.model_id}: {note}.")
        store.create(layout.export(info.model_id), data)
        store.create(about, to_json(asdict(info)))
        known = from_json(store, about)
    assert known is not None
    lists = {key: tuple(known.get(key, ())) for key in ("vocab", "transforms", "unread")}
    info = LearnerInfo(**{**known, **lists})
    if info.read == "fastai" and sha256 not in config.trust:
        raise TrustError(f"Not opened: {uri} can be opened only by running its code. " + how_to_trust(sha256))
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


def choose_engine(
    store: Store, layout: Layout, config: Config, info: LearnerInfo, uris: Sequence[str]
) -> tuple[str, str]:
    """The engine that computes this learner's runs, and why it is not the fast one (or an empty text).

    ``uris`` are images of the plan; a few of them serve as the proof, unless there is one already.
    Raises SettingError when the config asks for OpenVINO and it does not give the same as torch, or for half precision
    without a GPU.
    """
    if config.precision == "float16" and not config.gpus_per_actor:
        raise SettingError('precision = "float16" is for GPUs: add   --gpus-per-actor 1   or leave it out.')
    if config.engine == "torch" or config.gpus_per_actor:
        return "torch", "asked for" if config.engine == "torch" else "the network runs on GPUs"
    record = layout.proof(info.model_id, config.embedding)
    proof = from_json(store, record) or _prove(store, layout, config, info, uris)
    if proof["images"] or proof["final"]:
        store.create(record, to_json(proof))
        proof = from_json(store, record) or proof
    if not proof["reason"]:
        return "openvino", ""
    if config.engine == "openvino":
        raise SettingError(
            f'engine = "openvino" can\'t serve this learner: {proof["reason"]}. Use   --engine torch   or auto.'
        )
    say(f"Scoring with torch, more slowly than with OpenVINO: {proof['reason']}.")
    return "torch", str(proof["reason"])


def _prove(store: Store, layout: Layout, config: Config, info: LearnerInfo, uris: Sequence[str]) -> dict[str, Any]:
    from drivetrain.learner import engine_version, open_learner

    if not engine_version():
        # True of this machine today, not of the learner.
        return {"images": 0, "reason": "OpenVINO is not installed here", "final": False}
    with busy("Holding the fast engine against torch"):
        data = store.read(layout.export(info.model_id))
        learner = open_learner(data, info.sha256, config.embedding, vouched=info.sha256 in config.trust)
        items = []
        for uri in uris:
            try:
                items.append(learner.prepare(store.read(uri), config.max_pixels)[0])
            except (OSError, ImageError):
                continue
            if len(items) == PROOF_IMAGES:
                break
        if len(items) < FEWEST_IMAGES:
            few = f"only {len(items)} readable images to hold it against torch"
            return {"images": 0, "reason": few, "final": False}
        proof = learner.prove(items)
    # Without any image compared, the reason lies in the learner itself and holds for good.
    return asdict(proof) | {"final": True, "version": engine_version()}
