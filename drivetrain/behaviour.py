"""What behaviour tests found of a learner: the record that was asked for last.

Knows where records lie. Does not know how one is made (`behaving`).
"""

from typing import Any

from drivetrain.layout import Layout
from drivetrain.root import from_json
from drivetrain.several import several_at_once
from drivetrain.store import Store


def latest_behaviour(store: Store, layout: Layout, model_id: str) -> dict[str, Any] | None:
    """The behaviour.json of a learner that was asked for last, or None if it was never tested.

    That need not be the one that was made last: a command that finds its record there shows that one, and it counts.
    docs/behaviour.md lists its fields.

    ``passed`` says whether the learner passed, ``sentence`` why, ``against`` which champion it was held against, and
    ``page`` is the uri of the page for people.
    """
    digests = store.names(layout.behaviours(model_id))
    found = several_at_once(lambda digest: from_json(store, layout.behaviour_record(model_id, digest)), digests)
    # Records made before this was noted were asked for when they were made.
    return max((each for each in found if each), key=lambda each: each.get("asked", each["made"]), default=None)
