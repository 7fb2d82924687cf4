"""The images that behaviour tests broke, chosen and pictured for a page: as they were, and as they were changed.

Knows behaviour.json and small pictures. Does not know how a learner is asked, or what stands around them on a page.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from drivetrain.perturbations import PERTURBATIONS
from drivetrain.review import thumbnail
from drivetrain.store import Store


def broken_images(record: Mapping[str, Any], most: int, most_of_one: int) -> list[dict[str, Any]]:
    """The turned answers of the learner of a behaviour.json: of changes that fail first, and where the champion holds.

    At most ``most`` of them, and ``most_of_one`` of one change.
    """
    passed = {each["perturbation"]: each["passed"] for each in record["perturbations"]}
    mine = [each for each in record["broke"] if not each["learner"]["stayed"]]
    mine.sort(
        key=lambda each: (passed[each["perturbation"]], bool(each["champion"] and not each["champion"]["stayed"]))
    )
    shown, so_far = [], dict.fromkeys(passed, 0)
    for each in mine:
        so_far[each["perturbation"]] += 1
        if so_far[each["perturbation"]] <= most_of_one:
            shown.append(each)
    return shown[:most]


def pictured(store: Store, each: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a small picture of the image, and one of it changed; None for what can't be shown."""
    from drivetrain.plant import damaged

    pictures: dict[str, str | None] = {"picture": None, "changed": None}
    # Whatever goes wrong with a picture, the page must not fail on it.
    with suppress(Exception):
        data = store.read(each["uri"])
        pictures["picture"] = thumbnail(data)
        if "perturbation" in each:
            pictures["changed"] = thumbnail(damaged(data, PERTURBATIONS[each["perturbation"]]))
    return {**each, **pictures}
