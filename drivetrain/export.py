"""An export.pkl as a file: its hash, whether its owner vouched for it, and what is known about it.

Knows bytes. Does not open them: a pickle runs code, and only `learner` opens one, after this room let it pass.
"""

import hashlib
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
    """

    model_id: str
    sha256: str
    task: Task
    vocab: tuple[str, ...]
    outputs: int
    layer: str
    embedding_size: int
    architecture: str
    loss: str
    transforms: tuple[str, ...]
    unread: tuple[str, ...]
    read: Literal["data", "fastai"]


def read_export(store: Store, uri: str, trust: Sequence[str]) -> tuple[bytes, str]:
    """The bytes of an export and their sha256.

    Raises TrustError if ``trust`` names hashes and this is none of them, and LearnerError if there is no such object.
    """
    try:
        data = store.read(uri)
    except OSError as error:
        raise LearnerError(f"No learner at {uri}: {error}\nExpected the file that learn.export() wrote.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if trust and sha256 not in trust:
        raise TrustError(f"Not opened: {uri}\nThe hashes in trust are others. " + how_to_trust(sha256))
    return data, sha256


def how_to_trust(sha256: str) -> str:
    """What to type to vouch for an export."""
    return (
        f"Its sha256 is {sha256}\n"
        f"If that is the file you exported (sha256sum export.pkl), add   --trust {sha256}\n"
        f'or, in the config file,   trust = ["{sha256}"]'
    )
