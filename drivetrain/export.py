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
    """What an export is. ``embedding_size`` is 0 and ``layer`` empty when no embedding is stored."""

    model_id: str
    sha256: str
    task: Task
    vocab: tuple[str, ...]
    outputs: int
    layer: str
    embedding_size: int
    architecture: str


def read_trusted(store: Store, uri: str, trust: Sequence[str]) -> tuple[bytes, str]:
    """The bytes of an export and their sha256.

    Raises TrustError if the hash is not in ``trust``, and LearnerError if there is no such object.
    """
    try:
        data = store.read(uri)
    except OSError as error:
        raise LearnerError(f"No learner at {uri}: {error}\nExpected the file that learn.export() wrote.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 not in trust:
        given = "the hashes in trust are others" if trust else "no hash is trusted yet"
        raise TrustError(
            f"Not opened: {uri}\nAn export.pkl is a pickle, and opening one runs the code inside it; {given}.\n"
            f"Its sha256 is {sha256}\n"
            f"If that is the file you exported (sha256sum export.pkl), add   --trust {sha256}\n"
            f'or, in the config file,   trust = ["{sha256}"]'
        )
    return data, sha256
