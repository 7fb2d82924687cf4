"""Is everything there that a job needs? The true cause of what is not, and the line to type that mends it.

Knows what a job stands on: packages, a root that can be written, a learner that opens, images that decode, a cluster
that answers. Does not mend anything, and does not do a job's work. Whatever may hang is asked in a thread with a
deadline, since a store's own patience is minutes: all of `check_setup` ends within MOST_SECONDS.

`check_setup` looks at everything. `check_first` is what a job runs before its work: versions, the root, the learner's
object and one image, all at once. It leaves out what the job does next anyway, with the same messages: hashing and
opening the learner, and, where a learner is new to a root, scoring real images (`engine`). A known learner is not
opened here: it would cost every job torch's import, and each actor holds what it opens against torch's answers.
"""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from PIL import Image

from drivetrain.causes import Asked, explained, listing_line, silent
from drivetrain.config import Config, without_secrets
from drivetrain.console import busy, say
from drivetrain.errors import DrivetrainError, ImageError, RunError, SettingError, StoreError
from drivetrain.export import read_export, what_instead
from drivetrain.fetch import most_bytes
from drivetrain.manifest import why_no_image
from drivetrain.packages import misfits, version_of, versions
from drivetrain.root import open_root, store_of, to_json
from drivetrain.store import Store

# A store or a cluster that takes longer to answer a small question does not answer.
ANSWER_SECONDS = 6.0
# For everything together, with what a command needs to start and to end.
MOST_SECONDS = 12.0
# Among so many objects there must be an image, and among so many images one that decodes.
LOOKED_AT = 1000
TRIED_IMAGES = 8
SCORED_IMAGES = 3

State = Literal["ok", "failed", "not given", "not checked"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """What one check found: ``found`` is the cause when it failed, ``mend`` what to type then."""

    name: str
    state: State
    found: str
    mend: str = ""
    kind: type[DrivetrainError] = StoreError

    def record(self) -> dict[str, str]:
        """As JSON."""
        said = {"found": without_secrets(self.found), "mend": without_secrets(self.mend)}
        return {"name": self.name, "state": self.state, **said}


@dataclass
class _Look:
    """What the checks have in hand: the settings, when they must be done, a store that does not wait for long."""

    config: Config
    until: float

    def __post_init__(self) -> None:
        self.patient = store_of(self.config)
        self.store = self.patient.hasty(ANSWER_SECONDS)

    @property
    def left(self) -> float:
        return max(0.1, self.until - time.monotonic())


def check_setup(config: Config) -> dict[str, Any]:
    """Check everything that the config's job would stand on, without doing its work.

    Looks at packages, ``root``, ``learner``, ``images``, GPUs and the Ray cluster, as far as they are given. Returns
    ``ok``, ``checks`` (name, state, found, mend of each) and ``versions``. A root is marked as one, as by a job, and
    holds ``probe.json`` afterwards. A failed check does not hold up those that do not depend on it.
    """
    started = time.monotonic()
    look = _Look(config, started + MOST_SECONDS)
    with busy("Checking"):
        checks = [check_packages(), *_everything(look)]
    return {
        "ok": all(each.state != "failed" for each in checks),
        "checks": [each.record() for each in checks],
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }


def check_first(config: Config) -> None:
    """What a job checks before its work, in the time of one answer of the store.

    Raises what stands behind the first failure: the root can't be written, or there is no learner. About images and
    versions it only says what it found: a plan that is frozen needs no listing, a bad image is a row, and another
    version may do.
    """
    look = _Look(config, time.monotonic() + ANSWER_SECONDS)
    asked = [
        _start(lambda: check_root(look)),
        _start(lambda: check_learner_there(look)),
        _start(lambda: _first_images(look)[0]),
    ]
    packages = check_packages()
    names = ("root", "learner", "images")
    root, learner, images = (
        _by(found, look, lambda error, name=name: _explained(look, name, "reach", error))  # type: ignore[misc]
        for found, name in zip(asked, names, strict=True)
    )
    for each in (root, learner):
        if each.state == "failed":
            raise each.kind(without_secrets(f"{each.found}\n{each.mend}".strip()))
    for each in (packages, images):
        if each.state == "failed":
            say(without_secrets(f"{each.found}\n{each.mend}".strip()))


def _everything(look: _Look) -> Iterator[Finding]:
    """Every check but that of the packages: those that wait for an answer together, then what needs computing."""
    ray = _start(lambda: check_cluster(look))
    root, learner, images = (
        _start(lambda: check_root(look)),
        _start(lambda: check_learner_there(look)),
        _start(lambda: _first_images(look, SCORED_IMAGES)),
    )
    answer = _Look(look.config, min(look.until, time.monotonic() + ANSWER_SECONDS))
    yield _by(root, answer, lambda error: _explained(look, "root", "write", error))
    there = _by(learner, answer, lambda error: _explained(look, "learner", "read", error))
    found: tuple[Finding, list[bytes]] = _by(
        images, answer, lambda error: (_explained(look, "images", "list", error), [])
    )
    yield found[0]
    yield from _learner(look, there, found[1])
    if look.config.gpus_per_actor:
        gpu = _start(lambda: check_gpu(look.config))
        yield _by(gpu, look, lambda error: _late_or(look, "gpu", error))
    yield _by(ray, look, lambda error: _explained(look, "ray", "reach", error))


def _learner(look: _Look, there: Finding, images: Sequence[bytes]) -> Iterator[Finding]:
    """The learner opened, and one image scored by it."""
    if there.state != "ok":
        yield there
        yield Finding("score", "not checked", "needs a learner")
        return
    opening = _start(lambda: _open(look))
    opened: tuple[Finding, Any] = _by(opening, look, lambda error: (_late_or(look, "learner", error), None))
    yield opened[0]
    if opened[1] is None or not images:
        yield Finding("score", "not checked", "needs a learner and an image")
        return
    scoring = _start(lambda: check_score(opened[1], images, look.config.max_pixels))
    yield _by(scoring, look, lambda error: _late_or(look, "score", error))


def check_packages() -> Finding:
    """Whether the versions here are those that drivetrain was made for."""
    here = versions()
    wrong = misfits()
    if not wrong:
        return Finding("packages", "ok", ", ".join(f"{name} {number}" for name, number in here.items()))
    said = ", ".join(f"{each.name} {found} (needed: {each.specifier or 'any'})" for each, found in wrong)
    wanted = " ".join(f"'{each.name}{each.specifier}'" for each, _ in wrong)
    return Finding("packages", "failed", f"versions that do not fit: {said}", f"Type   pip install {wanted}")


def check_root(look: _Look) -> Finding:
    """Whether the root is one, or can be made one, and can be written."""
    config = look.config
    if config.root is None:
        return _not_given("root")
    hasty = config.model_copy(update={"storage": look.store.options})
    try:
        uri = look.store.normalise(config.root)
        # First of all: a write may make a bucket, or be refused for another reason than that there is none.
        look.store.names(uri)
        _, layout = open_root(hasty, dry_runs=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        look.store.replace(layout.probe, to_json({"written": now, "drivetrain": version_of("drivetrain")}))
    except (DrivetrainError, OSError, ValueError) as error:
        return _explained(look, "root", "write to", error)
    return Finding("root", "ok", f"{layout.root} can be written")


def check_learner_there(look: _Look) -> Finding:
    """Whether the learner's object can be read; not what is in it."""
    if look.config.learner is None:
        return _not_given("learner")
    try:
        uri = look.store.normalise(look.config.learner)
        look.store.peek(uri, 512)
    except (DrivetrainError, OSError) as error:
        return _explained(look, "learner", "read", error)
    return Finding("learner", "ok", f"{uri} can be read")


def _open(look: _Look) -> tuple[Finding, Any]:
    """The learner, opened as a job would: read as data, or vouched for."""
    from drivetrain.learner import open_learner

    config = look.config
    (uri,) = config.need("learner")
    try:
        data, sha256 = read_export(look.patient, look.patient.normalise(uri), config.trust)
        learner = open_learner(data, sha256, config.embedding, vouched=sha256 in config.trust)
    except (DrivetrainError, OSError) as error:
        return _explained(look, "learner", "read", error), None
    info = learner.info
    read = "read as data" if info.read == "data" else "vouched for"
    what = f"{info.architecture}, {info.task.replace('_', '-')}, {info.outputs} outputs, {read}"
    return Finding("learner", "ok", f"{info.model_id}: {what}"), learner


def _first_images(look: _Look, wanted: int = 1) -> tuple[Finding, list[bytes]]:
    """Whether there are images whose header Pillow reads, and the bytes of some for which it does."""
    config, store = look.config, look.store
    if config.images is None:
        return _not_given("images"), []
    try:
        prefix = store.normalise(config.images_of(config.the_night()))
        objects = store.first(prefix, LOOKED_AT)
        most = most_bytes(config.max_pixels)
        possible = [each for each in objects if why_no_image(each.uri.removeprefix(prefix)) is None]
        # What a run would not read is not read here either.
        uris = [each.uri for each in possible if (each.size or 0) <= most]
        if not uris:
            return _no_image(config, prefix, len(objects)), []
        good, bad = _pictures(store, uris[:TRIED_IMAGES], wanted)
    except (DrivetrainError, OSError) as error:
        return _explained(look, "images", "list", error), []
    cause, _, mend = bad[0].partition("\n") if bad else ("", "", "")
    if not good:
        said = f"none of the first {len(bad)} images below {prefix} can be decoded: {cause}"
        return Finding("images", "failed", said, mend or "Correct --images, or copy the images again"), []
    more = f"; of the first {len(good) + len(bad)}, {len(bad)} can't be decoded: {cause}" if bad else ""
    at_least = f"{len(uris):,}{' or more' if len(objects) == LOOKED_AT else ''}"
    return Finding("images", "ok", f"{at_least} images below {prefix}{more}"), good


def _pictures(store: Store, uris: Sequence[str], wanted: int) -> tuple[list[bytes], list[str]]:
    """The bytes of as many images as are wanted, and what the others are that were met on the way."""
    good: list[bytes] = []
    bad: list[str] = []
    for uri in uris:
        data = store.read(uri)
        if wrong := _no_picture(data):
            bad.append(f"{uri} is {wrong}")
        else:
            good.append(data)
        if len(good) == wanted:
            break
    return good, bad


def _no_picture(data: bytes) -> str | None:
    """What the bytes are when they are no image, as far as the header tells."""
    if instead := what_instead(data):
        return instead
    try:
        Image.open(io.BytesIO(data)).close()
    except Exception:
        return f"{len(data):,} bytes that begin with {data[:16]!r}, no image that Pillow knows"
    return None


def _no_image(config: Config, prefix: str, objects: int) -> Finding:
    """A prefix without an image: a quiet night, or a mistake."""
    there = f"{objects:,} objects are there, none of which can be an image" if objects else "nothing is there"
    if config.dated:
        mend = "Correct --images, or name a night that has images: type   --night YYYY-MM-DD"
    else:
        mend = f"Correct --images; type   {listing_line(prefix)}   to see what is there"
    return Finding("images", "failed", f"no image below {prefix}: {there}", mend, SettingError)


def check_score(learner: Any, images: Sequence[bytes], max_pixels: int) -> Finding:
    """Whether the learner says something of a real image: decoded in full, transformed, computed."""
    said: list[str] = []
    for data in images:
        try:
            item, header = learner.prepare(data, max_pixels)
            (found,) = learner.predict([item])
        except ImageError as error:
            found = error
        if not isinstance(found, ImageError):
            answer = _answer(learner.info, found.outputs[0])
            return Finding("score", "ok", f"an image of {header.width} x {header.height} pixels: {answer}")
        said.append(f"{found.reason}: {found}")
    mend = {
        "too_large": "Type   --max-pixels NUMBER   with a larger one",
        "undecodable": "Copy the images again",
    }.get(said[0].split(":", 1)[0], "Type   drivetrain learner inspect LEARNER   to see what it does with an image")
    return Finding("score", "failed", f"none of {len(images)} images can be scored: {said[0]}", mend)


def _answer(info: Any, outputs: Any) -> str:
    if info.vocab:
        return f"{info.vocab[int(outputs.argmax())]}, {float(outputs.max()):.2f}"
    return ", ".join(f"{value:.3g}" for value in outputs[:4])


def check_cluster(look: _Look) -> Finding:
    """Whether the Ray cluster answers, if one is named."""
    address = look.config.ray_address or os.environ.get("RAY_ADDRESS")
    if look.config.actors == 0 or not address:
        return Finding("ray", "not given", "no --ray-address: a job starts Ray on this machine, or needs none")
    from drivetrain import cluster

    try:
        return Finding("ray", "ok", f"{address}: {cluster.look(address, look.left - 1)}")
    except RunError as error:
        found, _, mend = str(error).partition("\n")
        return Finding("ray", "failed", found, mend or "Correct --ray-address", RunError)


def check_gpu(config: Config) -> Finding:
    """Whether there is a GPU where actors are to have one; on a cluster it is the cluster's nodes that count."""
    if config.actors != 0 and (config.ray_address or os.environ.get("RAY_ADDRESS")):
        return Finding("gpu", "not checked", "the cluster's nodes have it, or not: see how many GPUs ray says")
    from drivetrain.learner.eager import gpus_here

    if names := gpus_here():
        return Finding("gpu", "ok", f"{len(names)} here: {', '.join(names)}")
    mend = "Leave out --gpus-per-actor; or, if there is one, type   nvidia-smi   and install the torch for its CUDA"
    return Finding("gpu", "failed", f"--gpus-per-actor is set, and torch {versions()['torch']} finds no GPU here", mend)


def _not_given(key: str) -> Finding:
    return Finding(key, "not given", f"no --{key}")


def _explained(look: _Look, name: str, doing: str, error: Exception) -> Finding:
    """A failure as a finding: the cause, and what mends it."""
    config = look.config
    given = config.images_of(config.the_night()) if name == "images" else str(getattr(config, name))
    asked = Asked(name, look.store.normalise(given), doing, look.store)
    kind = type(error) if isinstance(error, DrivetrainError) else StoreError
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(error, _Late):
        found, mend = silent(asked, ANSWER_SECONDS)
    elif isinstance(error, DrivetrainError) and not isinstance(cause, OSError):
        # Its own words are plain, and name what is wrong.
        found, _, mend = str(error).partition("\n")
        other = "Type   drivetrain learner inspect LEARNER" if name == "learner" else f"Correct --{name}"
        return Finding(name, "failed", found, mend or other, kind)
    else:
        found, mend = explained(asked, cause or error, _line(error))
    return Finding(name, "failed", f"{name}: {found}", mend, kind)


def _late_or(look: _Look, name: str, error: Exception) -> Finding:
    """For what only takes long: a large learner on a slow line is no mistake."""
    if isinstance(error, _Late):
        return Finding(name, "not checked", f"not done after {MOST_SECONDS:.0f} s; a job waits for as long as it takes")
    return Finding(name, "failed", _line(error), "Type   drivetrain learner inspect LEARNER")


class _Late(Exception):
    """The deadline is over and there is no answer."""


def _start(work: Callable[[], Result]) -> "Future[Result]":
    """Begin to work in a thread that holds up no exit: an executor's would be waited for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _by(future: "Future[Result]", look: _Look, explain: Callable[[Exception], Result]) -> Result:
    """What was worked out by the deadline, or what the failure, be it lateness, means."""
    try:
        return future.result(look.left)
    except Exception as error:
        return explain(error if future.done() else _Late())


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
