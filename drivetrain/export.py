"""An export.pkl as a file: its hash, whether its owner vouched for it, and what is known about it.

Knows bytes. Does not open them: a pickle runs code, and only `learner` opens one, after this room let it pass.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from drivetrain.errors import LearnerError, TrustError
from drivetrain.store import Store

Task = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class LearnerInfo:
    """What an export is. ``embedding_size`` is 0 and ``layer`` empty when no embedding is stored.

    ``transforms`` are those of the valid set in their order, ``unread`` says what was assumed or left to fastai, and
    ``read`` is ``data`` when nothing of the file was run, ``fastai`` when it was unpickled because it is vouched for.
    Version 0.1.0 always did that, and wrote none of these four. ``body`` is the sha256 of the network up to the
    embedding and ``road`` that of how an image gets there; empty where they can't be told, or nobody looked.
    """

    model_id: str
    sha256: str
    task: Task
    vocab: tuple[str, ...]
    outputs: int
    layer: str
    embedding_size: int
    architecture: str
    loss: str = ""
    transforms: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    read: Literal["data", "fastai"] = "fastai"
    body: str = ""
    road: str = ""


def read_export(store: Store, uri: str, trust: Sequence[str]) -> tuple[bytes, str]:
    """The bytes of an export and their sha256.

    Raises TrustError if ``trust`` names hashes and this is none of them, and LearnerError if there is no such object or
    it is plainly something else.
    """
    try:
        data = store.read(uri)
    except OSError as error:
        raise LearnerError(f"No learner at {uri}: {error}\nExpected the file that learn.export() wrote.") from error
    if instead := what_instead(data):
        raise LearnerError(f"No learner at {uri}: expected the file that learn.export() wrote, found {instead}")
    sha256 = hashlib.sha256(data).hexdigest()
    check_trust(uri, sha256, trust)
    return data, sha256


def check_trust(uri: str, sha256: str, trust: Sequence[str]) -> None:
    """Raises TrustError if ``trust`` names hashes and this is none of them."""
    if trust and sha256 not in trust:
        raise TrustError(f"Not opened: {uri}\nThe hashes in trust are others. " + how_to_trust(sha256, trust))


def what_instead(data: bytes) -> str | None:
    """What a file is that was meant to be another: nothing, a pointer, a page, half of itself. And what to type.

    None if it may be what it should be. Looks at the ends only, and opens nothing.
    """
    head = data[:512].lstrip().lower()
    if not data:
        return "no bytes.\nCopy it again, and compare the two with   sha256sum FILE"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer in its place.\nWhere it was copied from, type   git lfs pull   and copy it again"
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, e.g. of a login or an error.\nDownload the file itself: type   curl -fL -o FILE URL"
    if head.startswith(b"pk\x03\x04") and not zipfile.is_zipfile(io.BytesIO(data)):
        again = "Copy it again, and compare the two with   sha256sum FILE"
        return f"the first {len(data):,} bytes of one; its end is missing.\n{again}"
    return None


def how_to_trust(sha256: str, trust: Sequence[str] = ()) -> str:
    """What to type to vouch for an export, beside those in ``trust``."""
    line = ", ".join(f'"{each}"' for each in (*trust, sha256))
    return (
        f"Its sha256 is {sha256}\n"
        f"If that is the file you exported (sha256sum export.pkl), add   --trust {sha256}\n"
        f"or, in the config file,   trust = [{line}]"
    )
