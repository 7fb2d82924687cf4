"""What behaviour tests found of a learner: the newest record.

Knows where records lie. Does not know how one is made (`behaving`).
"""

from typing import Any

from drivetrain.layout import Layout
from drivetrain.root import from_json
from drivetrain.several import several_at_once
from drivetrain.store import Store


def latest_behaviour(store: Store, layout: Layout, model_id: str) -> dict[str, Any] | None:
    """The newest behaviour.json of a learner, or None if it was never tested. docs/behaviour.md lists its fields.

    ``passed`` says whether the learner passed, ``sentence`` why, ``against`` which champion it was held against, and
    ``page`` is the uri of the page for people.
    """
    digests = store.names(layout.behaviours(model_id))
    found = several_at_once(lambda digest: from_json(store, layout.behaviour_record(model_id, digest)), digests)
    return max((record for record in found if record), key=lambda record: record["made"], default=None)
