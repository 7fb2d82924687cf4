"""How often the drift test is wrong, what it sees, and whether it can say why: on worlds that `worlds.py` made.

    python benchmarks/drift.py world.npz [--references 20] [--nights 50] [--page drift-cifar10.md]
    python benchmarks/drift.py --by clothing.npz --senders 204 181 48 260 322 [--page drift-clothing.md]

Evidently's defaults (EmbeddingsDrift and ValueDrift of the confidence) are asked in the same run, on fewer nights, as
they are slow. Intervals are 95 %; those over references resample references (bootstrap), the others are Wilson's.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tables import heading, table

from drivetrain import severity, why
from drivetrain.drift import Yardstick, area_under_roc, decide, moved, splits_for
from drivetrain.groups import near_duplicates
from drivetrain.lens import Scores, concatenated, learn, plain_scores
from drivetrain.sketch import totals_of

ALPHA = 0.01
M = 5000
BARS = {"jpeg": 0.30, "rotation": 0.20, "noise": 0.30}
CURVE = (0.02, 0.05, 0.1, 0.2, 0.3)
Draw = Callable[[np.random.Generator], Scores]


@dataclass(frozen=True)
class World:
    """The arrays of a world as scores. ``clean`` holds all images; ``kinds`` the shifted ones, which are ``places``."""

    clean: Scores
    kinds: dict[str, Scores]
    places: np.ndarray
    frames: Scores | None
    vocab: tuple[str, ...]
    by: np.ndarray | None


def load(path: str, layer: str) -> World:
    """Read a world."""
    found = np.load(path, allow_pickle=False)

    def scores(kind: str, truth: np.ndarray, groups: np.ndarray | None = None) -> Scores:
        embeddings = found[f"{kind}_embeddings"].astype(np.float64)
        scores = plain_scores(
            embeddings if layer == "head" else np.zeros((len(embeddings), 0)),
            found[f"{kind}_outputs"].astype(np.float64),
            truth=truth.astype(np.int64),
            groups=groups,
        )
        # Brightness, contrast, sharpness; files and sizes are the benchmark's own, and say nothing.
        scores.properties[:, :3] = found[f"{kind}_looks"]
        return scores

    truth, places = found["truth"], found["shifted"] if "shifted" in found else np.zeros(0, np.int64)
    kinds = [
        name.removesuffix("_outputs") for name in found.files
        if name.endswith("_outputs") and not name.startswith(("clean", "frames"))
    ]  # fmt: skip
    source = found.get("frames_source")
    return World(
        clean=scores("clean", truth),
        kinds={kind: scores(kind, truth[places]) for kind in kinds},
        places=places,
        frames=scores("frames", truth[source], source) if source is not None else None,
        vocab=tuple(found["vocab"].tolist()),
        by=found.get("by"),
    )


class Stand:
    """One reference of a world, and nights that hold none of its images."""

    def __init__(self, world: World, seed: int, m: int) -> None:
        self.world, self.rng = world, np.random.default_rng([seed, 77])
        order = self.rng.permutation(len(world.clean))
        self.reference, self.rest = world.clean.take(order[:m]), order[m:]
        self.lens = learn(self.reference, seed)
        self.yardstick = Yardstick(self.reference, self.lens, seed)
        self._usable = np.flatnonzero(np.isin(world.places, self.rest))

    def quiet(self, n: int) -> Scores:
        """A night of n images without a shift."""
        return self.world.clean.take(self.rng.choice(self.rest, n, replace=False))

    def shifted(self, kind: str, n: int, share: float) -> Scores:
        """A night of n images, the last ``share`` of which are damaged."""
        world, number = self.world, round(n * share)
        if kind == "class":
            label = self.rng.integers(len(world.vocab))
            pool = self.rest[world.clean.truth[self.rest] == label]
            strange = world.clean.take(self.rng.choice(pool, number, replace=False))
            return concatenated([self.quiet(n - number), strange])
        chosen = self.rng.choice(self._usable, number, replace=False)
        others = np.setdiff1d(self.rest, world.places[chosen])
        night = world.clean.take(self.rng.choice(others, n - number, replace=False))
        return concatenated([night, world.kinds[kind].take(chosen)])

    def one_class(self, kind: str, n: int, number: int) -> tuple[Scores, int]:
        """A night in which only one class's images are damaged; and the class."""
        world = self.world
        counts = np.bincount(world.clean.truth[world.places[self._usable]], minlength=len(world.vocab))
        label = int(self.rng.choice(np.flatnonzero(counts >= number)))
        usable = self._usable[world.clean.truth[world.places[self._usable]] == label]
        chosen = self.rng.choice(usable, number, replace=False)
        others = self.rest[world.clean.truth[self.rest] != label]
        night = world.clean.take(self.rng.choice(others, n - number, replace=False))
        return concatenated([night, world.kinds[kind].take(chosen)]), label

    def alarms(self, night: Scores, alpha: float = ALPHA) -> bool:
        """Whether the test alarms on a night."""
        return p_value(self.yardstick, night, alpha) <= alpha


def p_value(yardstick: Yardstick, night: Scores, alpha: float = ALPHA) -> float:
    """The p-value of the deciding statistic, without what a decision holds beside."""
    tested = yardstick.drawn(night, 0)
    null, values = yardstick.null(len(tested), splits_for(alpha)), yardstick.values(tested)
    value = float(null.standardised(np.array([[values[name] for name in null.names]])).max())
    return (1 + int((null.combined >= value).sum())) / (1 + len(null.combined))


def evidently_alarms(reference: Scores, night: Scores) -> dict[str, bool]:
    """What Evidently's defaults say."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import model
    from evidently.metrics import ValueDrift

    frames = [pd.DataFrame({"confidence": each.confidence}) for each in (reference, night)]
    definition = DataDefinition(numerical_columns=["confidence"])
    sets = [Dataset.from_pandas(each, data_definition=definition) for each in frames]
    found = Report([ValueDrift(column="confidence")], include_tests=True).run(sets[1], sets[0]).dict()
    failed = found["tests"][0]["status"] != "SUCCESS"
    columns = [f"e{i}" for i in range(reference.embeddings.shape[1])]
    tables = [pd.DataFrame(each.embeddings, columns=columns) for each in (night, reference)]
    _, drifted, _ = model()(*tables)
    return {"EmbeddingsDrift": bool(drifted), "ValueDrift(confidence)": failed}


def wilson(hits: int, of: int) -> str:
    """A share with its 95 % interval."""
    if not of:
        return "-"
    p, z = hits / of, 1.96
    middle, half = (
        (p + z**2 / (2 * of)) / (1 + z**2 / of),
        z * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2)) / (1 + z**2 / of),
    )
    return f"{100 * p:.1f} % ({100 * max(0, middle - half):.1f} to {100 * min(1, middle + half):.1f}; {hits}/{of})"


def by_reference(alarms: np.ndarray) -> str:
    """The share of alarms of shape (references, nights), its interval over references, and the worst reference."""
    rng, means = np.random.default_rng(0), alarms.mean(axis=1)
    boot = [rng.choice(means, len(means)).mean() for _ in range(2000)]
    low, high = np.quantile(boot, [0.025, 0.975])
    return (
        f"{100 * means.mean():.2f} % ({100 * low:.2f} to {100 * high:.2f}; {int(alarms.sum())}/{alarms.size}); "
        f"worst reference {100 * means.max():.0f} %"
    )


def false_alarms(world: World, given: argparse.Namespace) -> Iterator[list[str]]:
    """Rows: nights without a shift."""
    found: dict[int, list[list[bool]]] = {200: [], 1000: []}
    peers: dict[str, list[bool]] = {}
    for seed in range(given.references):
        stand = Stand(world, seed, given.m)
        for n, rows in found.items():
            rows.append([stand.alarms(stand.quiet(min(n, len(stand.rest)))) for _ in range(given.nights)])
        if seed < given.peers:
            for _ in range(2):
                for name, drifted in evidently_alarms(stand.reference, stand.quiet(given.n)).items():
                    peers.setdefault(name, []).append(drifted)
        say(f"false alarms, reference {seed + 1}")
    beside = "; ".join(f"{name} {wilson(sum(hits), len(hits))}" for name, hits in peers.items())
    for n, rows in found.items():
        yield [f"no shift, n = {n}", by_reference(np.array(rows)), beside if n == 1000 else ""]


def grouped_false_alarms(world: World, given: argparse.Namespace) -> Iterator[list[str]]:
    """Rows: nights without a shift whose images come five of a source, or one to five, found by the product itself."""
    if world.frames is None:
        return
    for name, unequal in (("5 near-duplicates a source", False), ("1 to 5 near-duplicates a source", True)):
        ours: list[list[bool]] = []
        blind: list[list[bool]] = []
        for seed in range(given.references):
            rng = np.random.default_rng([seed, 78])
            frames = world.frames
            if unequal:
                most = rng.integers(1, 6, int(frames.groups.max()) + 1)
                rank = np.arange(len(frames)) % 5
                frames = frames.take(np.flatnonzero(rank < most[frames.groups]))
            sources = rng.permutation(np.unique(frames.groups))
            half = len(sources) // 2
            reference = frames.take(np.flatnonzero(np.isin(frames.groups, sources[:half])))
            lens = learn(reference, seed)
            seen = reference.grouped(near_duplicates(lens.whiten_wide(reference)))
            lens = learn(seen, seed)
            yardstick = Yardstick(seen, lens, seed)
            plain = Yardstick(reference.grouped(np.arange(len(reference))), lens, seed)
            ours.append([])
            blind.append([])
            for _ in range(given.nights):
                some = rng.choice(sources[half:], 200, replace=False)
                night = frames.take(np.flatnonzero(np.isin(frames.groups, some)))
                found = night.grouped(near_duplicates(lens.whiten_wide(night)))
                ours[-1].append(p_value(yardstick, found) <= ALPHA)
                blind[-1].append(p_value(plain, night.grouped(np.arange(len(night)))) <= ALPHA)
            say(f"{name}, reference {seed + 1}")
        yield [f"no shift, {name}", by_reference(np.array(ours)), f"without groups: {by_reference(np.array(blind))}"]


def power(world: World, given: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """Rows: shifts that are to be seen at n; and the curve over shares."""
    bars, curve = [], []
    stands = [Stand(world, 100 + seed, given.m) for seed in range(given.power_references)]
    for kind in (*world.kinds, "class"):
        shares = sorted({*CURVE, BARS.get(kind, 0.1)})
        hits = {}
        for share in shares:
            seen = [stand.alarms(stand.shifted(kind, given.n, share)) for stand in stands for _ in range(given.draws)]
            hits[share] = (sum(seen), len(seen))
        curve.append([kind, *(f"{100 * hits[share][0] / hits[share][1]:.0f} %" for share in CURVE)])
        share = BARS.get(kind, 0.1)
        if kind in BARS or kind == "class":
            peers: dict[str, list[bool]] = {}
            for stand in stands[: given.peers]:
                for _ in range(2):
                    for name, drifted in evidently_alarms(stand.reference, stand.shifted(kind, given.n, share)).items():
                        peers.setdefault(name, []).append(drifted)
            beside = "; ".join(f"{name} {sum(each)}/{len(each)}" for name, each in peers.items())
            bars.append([f"{kind}, {share:.0%} of n = {given.n}", wilson(*hits[share]), beside])
        say(f"power, {kind}")
    return bars, curve


def reasons(world: World, given: argparse.Namespace) -> Iterator[list[str]]:
    """Rows: the images, the class and the region that moved; the accuracy."""
    stands = [Stand(world, 200 + seed, given.m) for seed in range(given.power_references)]
    for kind in world.kinds:
        found = []
        for stand in stands:
            for _ in range(3):
                night = stand.shifted(kind, given.n, 0.2)
                far, _ = moved(stand.lens, stand.reference, night, 0)
                found.append((np.argsort(-far)[:50] >= given.n - round(0.2 * given.n)).mean())
        yield [
            f"images that moved, {kind} 20 %: right among the first 50",
            f"{np.mean(found):.2f} (base rate 0.20)",
            "",
        ]
    hits = {"class": [0, 0], "region": [0, 0]}
    for stand in stands:
        for kind in ("rotation", "noise", "dark"):
            for _ in range(3):
                night, label = stand.one_class(kind, given.n, given.n // 10)
                in_top(stand, night, label, hits)
    for name, (right, of) in hits.items():
        yield [f"the {name} that moved, when only one class did: in the first 3", wilson(right, of), ""]
    say("reasons")


def in_top(stand: Stand, night: Scores, label: int, hits: dict[str, list[int]]) -> None:
    """Count whether the class that moved is named among the first three, as its true or its new label, and a region."""
    totals = totals_of(stand.lens, stand.reference), totals_of(stand.lens, night)
    vocab = stand.world.vocab
    found = why.classes(stand.lens, stand.reference, night, totals, vocab, ALPHA, 0)
    strange = slice(len(night) - len(night) // 10, None)
    taken_for = np.bincount(night.labels[strange], minlength=len(vocab)).argmax()
    names = {each.label for each in found[:3]}
    hits["class"][0] += bool(names & {vocab[label], vocab[int(taken_for)]})
    hits["class"][1] += 1
    where = stand.lens.regions(stand.lens.whiten(night))
    moved_to = np.bincount(where[strange], minlength=len(stand.lens.centres)).argmax()
    uris = [str(i) for i in range(len(stand.reference))], [str(i) for i in range(len(night))]
    regions = why.regions(stand.lens, stand.reference, night, totals, uris, vocab)
    hits["region"][0] += int(moved_to) in [each.number for each in regions[:3]]
    hits["region"][1] += 1


def accuracy(world: World, given: argparse.Namespace) -> Iterator[list[str]]:
    """Rows: the estimate of the accuracy."""
    errors, silent, inside, nights = [], 0, 0, 0
    for seed in range(given.power_references):
        stand = Stand(world, 300 + seed, given.m)
        for kind in world.kinds:
            for share in (0.2, 0.5, 1.0):
                night = stand.shifted(kind, given.n, share)
                effect = decide(stand.yardstick, night, alpha=ALPHA, seed=0).effect
                found = severity.estimate(stand.lens, stand.reference, night, effect, 0)
                nights += 1
                if found is None or found.estimate is None or found.low is None or found.high is None:
                    silent += 1
                    continue
                true = float((night.labels == night.truth).mean())
                errors.append(abs(found.estimate - true))
                inside += found.low <= true <= found.high
    yield [
        "accuracy on planted shifts (20, 50, 100 % of each): mean absolute error",
        f"{100 * np.mean(errors):.1f} points; largest {100 * np.max(errors):.1f}; in its range {inside}/{len(errors)}",
        f"can't say: {silent}/{nights}",
    ]


def senders(world: World, given: argparse.Namespace) -> Iterator[list[str]]:
    """Rows: one sender's photos of a label against the others' photos of that label."""
    assert world.by is not None
    for sender in given.senders:
        theirs = world.by == sender
        label = within(world, theirs, given.natural_n)
        pool = np.arange(len(world.clean)) if label is None else np.flatnonzero(world.clean.truth == label)
        others, ours = pool[~theirs[pool]], pool[theirs[pool]]
        n = min(given.natural_n, len(ours))
        auc, seen, quiet = domain_auc(world, ours, others), 0, 0
        peers: dict[str, list[bool]] = {}
        for seed in range(given.draws):
            rng = np.random.default_rng([seed, 79])
            order = rng.permutation(others)
            held, rest = order[: int(len(order) * 0.8)], order[int(len(order) * 0.8) :]
            reference = world.clean.take(held)
            lens = learn(reference, seed)
            yardstick = Yardstick(reference, lens, seed)
            theirs_, usual = (
                world.clean.take(rng.choice(each, min(n, len(each)), replace=False)) for each in (ours, rest)
            )
            seen += p_value(yardstick, theirs_) <= ALPHA
            quiet += p_value(yardstick, usual) <= ALPHA
            if seed < given.peers:
                for kind, night in (("seen", theirs_), ("false alarms", usual)):
                    for peer, drifted in evidently_alarms(reference, night).items():
                        peers.setdefault(f"{peer} {kind}", []).append(drifted)
        name = "all labels" if label is None else world.vocab[label]
        yield [
            f"sender {sender}, {name}, n = {n} of {len(ours)}",
            f"{auc:.2f}",
            wilson(seen, given.draws),
            wilson(quiet, given.draws),
            "; ".join(f"{peer} {sum(hits)}/{len(hits)}" for peer, hits in peers.items()),
        ]
        say(f"sender {sender}")


def within(world: World, theirs: np.ndarray, n: int) -> int | None:
    """The label of which a sender has the most photos, if these are enough, or None."""
    counts = np.bincount(world.clean.truth[theirs], minlength=len(world.vocab))
    return int(counts.argmax()) if counts.max() >= n else None


def domain_auc(world: World, ours: np.ndarray, others: np.ndarray) -> float:
    """How well a linear classifier tells the two apart on images that it was not fitted to."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    lens = learn(world.clean.take(others), 0)
    rows = lens.whiten(world.clean.take(np.concatenate([ours, others])))
    marks = np.repeat([1, 0], [len(ours), len(others)])
    order = np.random.default_rng(0).permutation(len(marks))
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=300)
    found = cross_val_predict(model, rows[order], marks[order], cv=5, method="decision_function")
    return area_under_roc(found[marks[order] == 1], found[marks[order] == 0])


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)


def main() -> None:
    """Print the tables, and write them to a page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("world", nargs="?")
    parser.add_argument("--by")
    parser.add_argument("--senders", nargs="*", default=[])
    parser.add_argument("--page")
    parser.add_argument("--layer", choices=["head", "none"], default="head")
    for name, default in (("references", 20), ("nights", 50), ("power_references", 5), ("draws", 20), ("n", 1000),
                          ("m", M), ("peers", 5), ("natural_n", 90)):  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    typed = "python benchmarks/drift.py " + " ".join(Path(each).name if "/" in each else each for each in sys.argv[1:])
    lines = heading("Drift: false alarms, power, reasons", typed, "evidently", "scikit-learn")
    if given.world:
        world = load(given.world, given.layer)
        bars, curve = power(world, given)
        rows = [*false_alarms(world, given), *grouped_false_alarms(world, given), *bars, *reasons(world, given),
                *accuracy(world, given)]  # fmt: skip
        lines += [
            f"alpha = {ALPHA}; reference of {given.m:,} images, {given.references} of them x {given.nights} nights.",
            "",
        ]
        lines += table(["what", "drivetrain", "beside"], rows)
        lines += ["", f"Seen at n = {given.n}, by the share of the night that is shifted:", ""]
        lines += table(["shift", *(f"{share:.0%}" for share in CURVE)], curve)
    if given.by:
        world = load(given.by, given.layer)
        heads = ["sender", "domain AUC (held out)", "seen", "others' own photos (false alarms)", "Evidently's defaults"]
        lines += ["", f"alpha = {ALPHA}; a sender's photos against the others' of the same label.", ""]
        lines += table(heads, list(senders(world, given)))
    text = "\n".join([*lines, ""])
    print(text, end="", flush=True)
    if given.page:
        Path(__file__).with_name(given.page).write_text(text)


if __name__ == "__main__":
    main()
