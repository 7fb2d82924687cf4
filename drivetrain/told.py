"""What a command's result says to a person. Knows the results' keys; prints nothing."""

from typing import Any


def lines_of(result: dict[str, Any]) -> list[str]:
    """What a command's result says to a person, line by line."""
    lines = []
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
    if "queue" in result:
        lines += _queued(result)
    if "unlabelled" in result:
        lines += _labelled(result)
    if "resumable" in result:
        lines += _waste(result)
    return lines


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


def _queued(result: dict[str, Any]) -> list[str]:
    """Where the queue lies and what is in it."""
    before = result["labelled_before"]
    lines = [
        f"{result['images']:,} images to label in {result['queue']}: {result['moved']:,} moved most, "
        f"{result['random']:,} drawn at random" + (f"; {before:,} have labels and are left out." if before else ".")
    ]
    if "interface" in result:
        lines += ["Label Studio: Settings, Labeling Interface, Code:", *result["interface"].splitlines()]
    return lines


def _labelled(result: dict[str, Any]) -> list[str]:
    """What came in, and a line for each night on how often the learner was right."""
    lines = [
        f"{result['labels']:,} labels of {result['source']}, {result['new']:,} of them new; "
        f"{result['unlabelled']:,} images without a label, {result['unknown']:,} labels without an image."
    ]
    for night in result["nights"]:
        lines += [f"{night['night']}: {night['labels']:,} labels; {said}" for said in _realised(night)]
        if "report" in night:
            lines.append(f"  Report: {night['report']}")
    return lines


def _realised(night: dict[str, Any]) -> list[str]:
    if not night["realised"]:
        return [night.get("why", "nothing to count: no scored image has a label, or the learner predicts numbers")]
    lines = []
    for each in night["realised"]:
        of = {"all": "all its images", "random": "drawn at random", "moved": "chosen because they moved"}[
            each["chosen"]
        ]
        told = f"of {each['labelled']:,} ({of}) {each['right']:,} are right, {each['accuracy']:.1%}"
        told += f" (95% interval {each['low']:.1%} to {each['high']:.1%})"
        lines.append(told + ("; not the night's accuracy" if each["chosen"] == "moved" else ""))
    return lines
