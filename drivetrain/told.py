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
    if result.get("too_many_failed") and "nights" not in result:
        lines.append(
            f"Too many images failed: {result['reasons']}. If that is usual, raise --max-failed for the next run."
        )
    if "verdict" in result:
        lines += [f"Verdict: {result['verdict']}. {result['sentence']}", f"Lever to pull: {result['lever']}"]
        lines.append(f"Report: {result['report']}")
    if "posted" in result:
        lines.append(result["answer"])
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
    if "champion" in result:
        lines += _in_use(result)
    for night in result.get("caught_up", ()):
        lines.append(f"{night['night']}  {night['rows']:>9,} images  {night['verdict']:8}  {night['report']}")
    if "shadow_run_id" in result:
        scope = f" in the scope {result['scope']}" if result["scope"] else ""
        lines.append(f"Beside the champion: {result['shadow']}{scope}, run {result['shadow_run_id']}")
    if "learner" in result and "nights" in result:
        lines += _rescored(result)
    if result.get("comparison"):
        lines += _compared(result)
    if "perturbations" in result:
        lines += _behaved(result)
    if "queue" in result:
        lines += _queued(result)
    if "unlabelled" in result:
        lines += _labelled(result)
    if "reached" in result:
        lines += _reached(result)
    if "config" in result:
        lines.append(f"Wrote {result['config']}. Read it through, then:  drivetrain doctor --config {result['config']}")
    if "learners" in result:
        lines += _nights(result)
    if "dashboard" in result:
        lines.append(f"Evidently's dashboard: {result['dashboard']}")
    if "resumable" in result:
        lines += _waste(result)
    if "read_with" in result:
        lines += _table(result)
    return lines


def _table(result: dict[str, Any]) -> list[str]:
    """A source's Delta table, and what other programs read it with."""
    table = result["table"]
    lines = [
        table["uri"],
        f"version {table['version']}: {table['rows']:,} images in {table['files']:,} files, {table['bytes']:,} bytes",
    ]
    if table["rewritten"]:
        lines.append(f"Written anew: {', '.join(table['rewritten'])}")
    if table["removed_files"]:
        lines.append(f"{table['removed_files']:,} files removed that no version of the last 7 days needs")
    for program, code in result["read_with"].items():
        lines += ["", f"{program}:", *(f"    {line}" for line in code.splitlines())]
    return lines


def _in_use(result: dict[str, Any]) -> list[str]:
    """Who scores a source now, and what that means for nights before."""
    champion, challenger, source = result["champion"], result["challenger"], result["source"]
    lines = [in_use(source, result)] if champion or challenger else [f"{source} has no champion yet."]
    if stale := result["stale_nights"]:
        lines.append(
            f"{len(stale)} nights, {stale[0]} to {stale[-1]}, were scored by another learner; what to type: "
            "drivetrain nights"
        )
    return lines


def in_use(source: str, named: dict[str, Any]) -> str:
    """A source's champion and challenger in a line."""
    champion, challenger = named["champion"], named["challenger"]
    words = f"champion {champion['model_id']} ({champion['reason']} {champion['made'][:10]})" if champion else ""
    beside = f"challenger {challenger['model_id']} in the scope {challenger['scope']}" if challenger else ""
    return f"{source}: {', '.join(each for each in (words, beside) if each) or 'no champion yet'}"


def night_line(night: dict[str, Any]) -> str:
    """One line of the table of nights."""
    word = " ".join(each for each in (night["verdict"], night["state"] if night["state"] != "done" else "") if each)
    lever = " ".join(dict.fromkeys(each for each in (night["lever"], night["command"]) if each))
    told = next((each for each in night["realised"] if each["chosen"] != "moved"), None)
    right = f"{told['accuracy']:.0%} of {told['labelled']:,} labelled right  " if told else ""
    return f"{night['source']}  {night['night']}  {word:8}  {night['images']:>9,} images  {right}{lever}"


def _rescored(result: dict[str, Any]) -> list[str]:
    """The nights under a new learner, a line each, and in what they can be opened."""
    lines = []
    for night in result["nights"]:
        agreement = night["agreement"]
        same = (
            "no labels to compare" if agreement is None else f"{agreement:6.1%} same labels, {night['flips']:,} flips"
        )
        judged = f"  {night['verdict']}" if night["verdict"] else ""
        lines.append(f"{night['night']}  {night['made']:9}  {same}, {night['failed']:,} failed{judged}")
        if night["comparison"]:
            lines.append(f"            {night['comparison']}")
    lines.append(
        f"{len(result['nights'])} nights under {result['learner']}; reference: {result['reference'] or 'none'}"
    )
    if result["too_many_failed"]:
        lines.append("In at least one night too many images failed. To score those again: --reprocess failed")
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
    if found["beside"]:
        said.insert(1, f"{found['beside']:,} of them scored beside the champion too")
    if nights := found.get("nights_to_do"):
        said.insert(0, f"{len(nights):,} nights, {nights[0]} to {nights[-1]}" if nights[1:] else f"night {nights[0]}")
    if found["head_only"]:
        said.append(f"the embeddings of {found['head_only']:,} images go through the new head, which takes seconds")
    if found["images_per_second"] is None:
        return ["; ".join([*said, "no image to score."])]
    actors = f"{found['actors']:,} actor" + ("" if found["actors"] == 1 else "s")
    time = (
        f"scoring takes about {duration(found['seconds'])} at {found['images_per_second']:,.1f} images/s on {actors} "
        f"({found['probed']} images probed; {duration(found['start_seconds'])} of it until the first image)"
    )
    cost = ""
    if found["cost"] is not None:
        price = f"about {found['cost']:,.2f}" if found["cost"] >= 0.01 else "less than 0.01"
        cost = f", {price} at {found['price_per_hour']:,.2f} an hour"
    return ["; ".join([*said, f"{time}{cost}."]), "Nothing was written."]


def _nights(result: dict[str, Any]) -> list[str]:
    """Who scores, and the table of nights."""
    lines = [in_use(source, named) for source, named in result["learners"].items()]
    return lines + ([night_line(each) for each in result["nights"]] or ["No night yet."])


def _reached(demo: dict[str, Any]) -> list[str]:
    """The end of the demo."""
    lines = ["", "Accuracy really reached (labels are known here), only on images that no training saw:", ""]
    lines.append(f"  {'images':18} {'learner':10} {'accuracy':>8}   verdict of the night")
    lines += [
        f"  {each['images']:18} {each['learner']:10} {each['accuracy']:8.1%}   {each['verdict']}"
        for each in demo["reached"]
    ]
    if demo["unseen"]:
        lines += ["", f"The last two lines are on the same {demo['unseen']:,} images."]
    return [
        *lines,
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


def _compared(result: dict[str, Any]) -> list[str]:
    """Two learners side by side, for a person: agreement, who is right more often, the worst part, what to do."""
    lines, truth, advice = [], result["truth"], result["recommendation"]
    if result["agreement"] is not None:
        lines.append(f"{result['agreement']:.1%} of the labels are the same, {result['flips']:,} changed.")
    if truth["labelled"]:
        factor, form = (1, ".4g") if truth["measure"] == "error" else (100, ".1f")
        old, new, change, low, high = (
            format(factor * truth[key], ("" if key in ("old", "new") else "+") + form)
            for key in ("old", "new", "difference", "low", "high")
        )
        unit = "" if truth["measure"] == "error" else " %"
        lines.append(
            f"{truth['measure'].capitalize()} on {truth['labelled']:,} labelled images: {old}{unit} (old), {new}{unit} "
            f"(new); difference {change}, 95 % interval {low} to {high}, p = {truth['p_value']:.2g}"
        )
    if result["worst_slice"]:
        lines.append(f"Worst part: {result['worst_slice']}")
    lines.append(advice["sentence"])
    if advice["next"]:
        lines.append(f"Next: {advice['next']}")
    return [*lines, f"Comparison: {result['comparison']}"]


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
        f"body          {learner['body'] or 'not to be compared: ' + learner['no_body']}",
        "layers        " + ", ".join(f"{name} {kind}" for name, kind in learner["layers"].items()),
    ]
    return lines + [f"note          {note}" for note in learner["unread"]]


def _behaved(result: dict[str, Any]) -> list[str]:
    """What behaviour tests found, for a person: a line for each change, then the verdict and the page."""
    lines = [f"{'':30}{'labels that stay':>18}{'champion':>12}"] if result["perturbations"] else []
    for each in result["perturbations"]:
        beside = each["champion_stable"]
        champion = "" if beside is None else f"{beside / each['n']:.1%}" if each["n"] else "-"
        stable = f"{each['stable'] / each['n']:.1%}" if each["n"] else "-"
        lines.append(f"{each['perturbation']:30}{stable:>18}{champion:>12}{'' if each['passed'] else '   FAILED'}")
    return [*lines, result["sentence"], f"Page: {result['page']}"]


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
    words = {
        "moved": "moved most", "unsure": "the learner is least sure of (no reference says what moved)",
        "flipped": "with another label in the other run", "random": "drawn at random",
    }  # fmt: skip
    kinds = ", ".join(f"{result[kind]:,} {said}" for kind, said in words.items() if result[kind]) or "none left"
    lines = [
        f"{result['images']:,} images to label in {result['queue']}: {kinds}"
        + (f"; {before:,} have labels and are left out." if before else ".")
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
        of = {"all": "all its images", "random": "drawn at random", "moved": "chosen, not drawn"}[each["chosen"]]
        told = f"of {each['labelled']:,} ({of}) {each['right']:,} are right, {each['accuracy']:.1%}"
        told += f" (95% interval {each['low']:.1%} to {each['high']:.1%})"
        lines.append(told + ("; not the night's accuracy" if each["chosen"] == "moved" else ""))
    return lines
