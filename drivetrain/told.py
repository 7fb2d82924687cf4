"""What a command's result says to a person. Knows the results' keys; prints nothing."""

from typing import Any

from drivetrain.console import duration


def lines_of(result: dict[str, Any]) -> list[str]:
    """What a command's result says to a person, line by line."""
    lines = []
    if result.get("dry_run"):
        lines += _forecast(result)
    if "rows" in result:
        lines.append(f"{result['rows']:,} images, {result['failed']:,} failed; rows in {result['parts']}")
    if result.get("too_many_failed"):
        lines.append(
            f"Too many images failed: {result['reasons']}. If that is usual, raise --max-failed for the next run."
        )
    if "verdict" in result:
        lines += [f"Verdict: {result['verdict']}. {result['sentence']}", f"Lever to pull: {result['lever']}"]
        lines.append(f"Report: {result['report']}")
    if "accepted" in result:
        number = result["accepted_nights"]
        more = "how they differ enters the threshold" if number >= 20 else "from 20 on how they differ enters it"
        lines.append(f"Accepted {result['accepted']}. {number} accepted nights; {more}.")
    if result.get("self_test"):
        lines += _seen(result["self_test"])
    lines += [f"Note: {note}" for note in result.get("notes", ())]
    if "checks" in result:
        lines += _checked(result)
    if "architecture" in result:
        lines += _about(result)
    if "comparison" in result:
        agreement = result["agreement"]
        same = f"{agreement:.1%} of the labels are the same; " if agreement is not None else ""
        lines.append(f"{same}comparison: {result['comparison']}")
    if "reached" in result:
        lines += _reached(result)
    if "config" in result:
        lines.append(f"Wrote {result['config']}. Read it through, then:  drivetrain doctor --config {result['config']}")
    if "nights" in result:
        lines += _nights(result["nights"])
    if "dashboard" in result:
        lines.append(f"Evidently's dashboard: {result['dashboard']}")
    if "resumable" in result:
        lines += _waste(result)
    return lines


def _forecast(found: dict[str, Any]) -> list[str]:
    """What a command would do, for a person."""
    images = [f"{found['new']:,} new images, {found['changed']:,} changed"]
    if found["known"]:
        images.append(f"{found['known']:,} known from other plans")
    if skipped := found["skipped"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
        images.append(f"{sum(skipped.values()):,} passed over ({kinds})")
    there = f", {found['parts_there']:,} are there" if found["parts_there"] else ""
    said = [", ".join(images), f"{found['parts_to_write']:,} parts to write{there}"]
    if found["images_per_second"] is None:
        return ["; ".join([*said, "no image to score."])]
    actors = f"{found['actors']:,} actor" + ("" if found["actors"] == 1 else "s")
    time = (
        f"about {duration(found['seconds'])} at {found['images_per_second']:,.1f} images/s on {actors} "
        f"({found['probed']} images probed; {duration(found['start_seconds'])} of it until the first image)"
    )
    cost = ""
    if found["cost"] is not None:
        price = f"about {found['cost']:,.2f}" if found["cost"] >= 0.01 else "less than 0.01"
        cost = f", {price} at {found['price_per_hour']:,.2f} an hour"
    return ["; ".join([*said, f"{time}{cost}."]), "Nothing was written."]


def _nights(nights: list[dict[str, Any]]) -> list[str]:
    """The table of nights."""
    return [
        f"{each['source']}  {each['night']}  {each['verdict'] or each['state']:8}  {each['images']:>9,} images  "
        f"{each['lever']}"
        for each in nights
    ] or ["No night yet."]


def _reached(demo: dict[str, Any]) -> list[str]:
    """The end of the demo."""
    lines = ["", "Accuracy really reached (labels are known here), only on images that no training saw:", ""]
    lines.append(f"  {'images':18} {'learner':10} {'accuracy':>8}   verdict of the night")
    lines += [
        f"  {each['images']:18} {each['learner']:10} {each['accuracy']:8.1%}   {each['verdict']}"
        for each in demo["reached"]
    ]
    return [
        *lines,
        "",
        f"The last two lines are on the same {demo['unseen']:,} images.",
        f"Done in {duration(demo['seconds'])}. Open this page:",
        f"  {demo['page']}",
    ]


def _seen(found: dict[str, Any]) -> list[str]:
    """What the test could have seen, for a person: a line for each planted shift, a column for each size of night."""
    sizes = sorted({each["n"] for each in found["seen"]})
    lines = [
        f"Self-test: {found['false_alarms']} of {found['trials']} nights without a shift alarmed "
        f"(alpha {found['alpha']:.2g}). Smallest share of a night that was seen in 8 of 10:",
        " " * 30 + "".join(f"{f'n = {n:,}':>12}" for n in sizes),
    ]
    for shift in dict.fromkeys(each["shift"] for each in found["seen"]):
        shares = {each["n"]: each["share"] for each in found["seen"] if each["shift"] == shift}
        cells = ["" if n not in shares else "not seen" if shares[n] is None else f"{shares[n]:.0%}" for n in sizes]
        lines.append(f"{shift:30}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


def _checked(result: dict[str, Any]) -> list[str]:
    """What the doctor found, for a person: a line for each check, and below it what to type."""
    lines = []
    for check in result["checks"]:
        state = "FAILED" if check["state"] == "failed" else check["state"]
        lines.append(f"{check['name']:9} {state:12} {check['found']}")
        lines += [" " * 23 + line for line in check["mend"].splitlines()]
    return lines


def _about(learner: dict[str, Any]) -> list[str]:
    """A learner for a person."""
    words = learner["vocab"]
    classes = f"{len(words)} classes: {', '.join(words[:8])}{', …' if len(words) > 8 else ''}" if words else "numbers"
    threshold = f", threshold {learner['threshold']:g}" if learner["threshold"] is not None else ""
    read = "as data; nothing of the file was run" if learner["read"] == "data" else "by fastai, vouched for"
    lines = [
        f"sha256        {learner['sha256']}",
        f"read          {read}",
        f"network       {learner['architecture']}; {learner['parameters']:,} parameters",
        f"predicts      {learner['task'].replace('_', '-')}, {classes}",
        f"loss          {learner['loss']}; {learner['activation']}{threshold}",
        f"embedding     {learner['layer'] or 'none'}, {learner['embedding_size']} numbers",
        f"pixels        {learner['pixels']}",
        *(f"                {transform}" for transform in learner["transforms"]),
        f"engine        {learner['engine']}",
        "layers        " + ", ".join(f"{name} {kind}" for name, kind in learner["layers"].items()),
    ]
    return lines + [f"note          {note}" for note in learner["unread"]]


def _waste(result: dict[str, Any]) -> list[str]:
    """What nobody refers to, and what is kept though it is not done."""
    done = "removed" in result
    found = result["removed" if done else "removable"]
    lines = [f"{each['what']:9}  {each['bytes']:>13,} bytes  {each['path']}" for each in found]
    size, objects = (sum(each[key] for each in found) for key in ("bytes", "objects"))
    lines.append(f"{size:,} bytes in {objects:,} objects {'removed' if done else 'may be removed: add --delete'}")
    for each in result["resumable"]:
        name = each["path"].rsplit("/", 1)[-1]
        lines.append(
            f"Kept, its own command would finish it: {name}, {each['bytes']:,} bytes; to remove it: --run {name}"
        )
    return lines
