"""Every path that drivetrain writes or reads below a root, and the files that ship with the package.

Knows names, not contents. Each path has one writer rule:

created once   a conditional put; the first writer wins, a later one changes nothing
replaceable    derived from what was created once; may be written again at any time

    <root>/drivetrain.json                                    created once   schema version of this root
    <root>/probe.json                                         replaceable    shows that the root can be written
    <root>/models/<model_id>/export.pkl                       created once   copied in at first use
    <root>/models/<model_id>/{learner.json, engine.json}      created once   what it is; which engine, and its proof
    <root>/models/<model_id>/network.json                     created once   which network actors on CPUs open
    <root>/models/<model_id>/network-<hash>.zip               created once   it, its pixels and what outputs mean
    <root>/models/<model_id>/int8.json                        created once   its network in int8, and how near it is
    <root>/models/<model_id>/int8-<hash>.zip                  created once   that network, for --engine int8
    <root>/models/<model_id>/{learner,engine,network,int8}-<layer>.json     created once   for another --embedding
    <root>/models/<model_id>/references/<run_id>.json         created once   a run that serves as reference
    <root>/models/<model_id>/trained/<run_id>/<digest>.parquet              created once   what it was trained on
    <root>/runs/<run_id>/manifest/00000.parquet               created once   frozen images, 64 shards a file
    <root>/runs/<run_id>/run.json                             created once   what the run is made of
    <root>/runs/<run_id>/parts/part-00042.parquet             created once   one shard's rows
    <root>/runs/<run_id>/commit.json                          created once   closes the run
    <root>/runs/<run_id>/status.json                          replaceable    heartbeat
    <root>/runs/<run_id>/bundle/lens-{0,<view>}.npz           created once   of a reference: how it sees images
    <root>/runs/<run_id>/bundle/selftest{,-<view>}.json       replaceable    of a reference: what its test can see
    <root>/runs/<run_id>/sketches/<reference>{,-<view>}/part-00042.parquet  replaceable    a part seen by a reference
    <root>/sources/<source>/{nights,plans}/<name>/plan.json   created once   what is scored; manifest beside it
      …/<name>/manifest-<digest>/00000.parquet                created once
      …/<name>/<model_id>/NNNN/verdict.json                   created once   closes record NNNN; the highest counts
      …/<name>/<model_id>/NNNN/{drift.json, review.parquet, review.csv}     replaceable    till the record closes
      …/<name>/<model_id>/NNNN/{report.html, evidently.json}  replaceable    till the record closes
      …/<name>/<model_id>/NNNN/pictures/1.jpg                 replaceable    thumbnails for a chat, with site_url
    <root>/sources/<source>/accepted/<reference>{,-<view>}/<run_id>.json    created once   a night accepted as usual
    <root>/sources/<source>/aliases/{champion,challenger}/NNNN.json         created once   who is it; the highest counts
    <root>/sources/<source>/aliases/champion/NNNN.shown       created once   a rollback that readers were shown
    <root>/sources/<source>/labels/<sha256>.parquet           created once   labels of people, one import a file
    <root>/sources/<source>/drawn/{night,plan}-<name>/<sha256>.parquet      created once   images drawn to be labelled
    <root>/sources/<source>/alerts/NNNN.json                  created once   what a chat is told, before it is posted
    <root>/sources/<source>/alerts/answers/NNNN.json          created once   whether the chat took it
    <root>/sources/<source>/table/                            replaceable    current scores; Delta switches versions
    <root>/behaviour/<model_id>/<digest>/{behaviour.json, index.html}       replaceable    behaviour tests of a learner
    <root>/comparisons/<run>--<run>/{comparison.json, index.html}                           replaceable
    <root>/workspace/                                         replaceable    Evidently's
    <root>/site/{index.html, metrics.prom}                    replaceable    all nights; the newest, for Prometheus

A view is what a reference is looked at with (`view_of`); the usual one is not named, but for the lens.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST_FILE_SHARDS = 64
USUAL_VIEW = "0"


def view_of(seed: int, group_by: str | None) -> str:
    """The name of what is learnt from a reference: it differs with the seed, and with what images belong together."""
    return f"{seed}" if group_by is None else f"{seed}-{hashlib.sha256(group_by.encode()).hexdigest()[:8]}"


def _seen(name: str, view: str) -> str:
    return name if view == USUAL_VIEW else f"{name}-{view}"


@dataclass(frozen=True)
class RunPaths:
    """The paths of one run's folder."""

    folder: str

    @property
    def manifest(self) -> str:
        """The folder of the frozen manifest."""
        return f"{self.folder}/manifest"

    @property
    def record(self) -> str:
        """run.json."""
        return f"{self.folder}/run.json"

    @property
    def parts(self) -> str:
        """The folder of the parts: what pandas reads."""
        return f"{self.folder}/parts"

    def part(self, shard: int) -> str:
        """The Parquet file of one shard."""
        return f"{self.parts}/{self.part_name(shard)}"

    @staticmethod
    def part_name(shard: int) -> str:
        """The file name of one shard's part, and of its sketches."""
        return f"part-{shard:05d}.parquet"

    def lens(self, view: str = USUAL_VIEW) -> str:
        """Of a reference: how it sees images."""
        return f"{self.folder}/bundle/lens-{view}.npz"

    def self_test(self, view: str = USUAL_VIEW) -> str:
        """Of a reference: what its self-test found."""
        return f"{self.folder}/bundle/{_seen('selftest', view)}.json"

    def sketches(self, reference: str, view: str = USUAL_VIEW) -> str:
        """The folder of the parts' sketches as a reference sees them."""
        return f"{self.folder}/sketches/{_seen(reference, view)}"

    def sketch(self, reference: str, shard: int, view: str = USUAL_VIEW) -> str:
        """The sketch of one part as a reference sees it."""
        return f"{self.sketches(reference, view)}/{self.part_name(shard)}"

    @property
    def commit(self) -> str:
        """commit.json: the only thing that readers trust."""
        return f"{self.folder}/commit.json"

    @property
    def status(self) -> str:
        """status.json, the heartbeat."""
        return f"{self.folder}/status.json"


def is_model_id(text: str) -> bool:
    """Whether a text may name a model under `models/`; no path of an export looks like that."""
    return re.fullmatch(r"[0-9a-f]{12}", text) is not None


def shard_of(part_name: str) -> int | None:
    """The shard of a part's file name, or None for any other name."""
    match = re.fullmatch(r"part-(\d{5,})\.parquet", part_name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class RecordPaths:
    """The files of one numbered record of a night (or of a named plan) under one model."""

    folder: str

    @property
    def drift(self) -> str:
        """drift.json: the statistics."""
        return f"{self.folder}/drift.json"

    @property
    def verdict(self) -> str:
        """verdict.json: closes the record."""
        return f"{self.folder}/verdict.json"

    @property
    def review(self) -> str:
        """review.parquet: the review queue."""
        return f"{self.folder}/review.parquet"

    @property
    def labelling(self) -> str:
        """review.csv: the review queue, to be labelled."""
        return f"{self.folder}/review.csv"

    @property
    def report(self) -> str:
        """report.html: the page to open."""
        return f"{self.folder}/report.html"

    @property
    def snapshot(self) -> str:
        """evidently.json: the same report for programs."""
        return f"{self.folder}/evidently.json"

    def picture(self, place: int) -> str:
        """A thumbnail for a chat: of the image of that place in the review queue, from 1 on."""
        return f"{self.folder}/pictures/{place}.jpg"


@dataclass(frozen=True)
class PlanPaths:
    """The folder of one plan: a night of a source, or a plan with a name of its own."""

    folder: str

    @property
    def plan(self) -> str:
        """plan.json."""
        return f"{self.folder}/plan.json"

    def manifest(self, digest: str) -> str:
        """The folder of the plan's frozen manifest, named by what it holds."""
        return f"{self.folder}/manifest-{digest[:12]}"

    def model(self, model_id: str) -> str:
        """The folder of the numbered records under one model."""
        return f"{self.folder}/{model_id}"

    def record(self, model_id: str, number: int) -> RecordPaths:
        """One numbered record."""
        return RecordPaths(f"{self.model(model_id)}/{number:04d}")


def _suffix(embedding: str) -> str:
    return "" if embedding == "head" else f"-{embedding}"


@dataclass(frozen=True)
class Layout:
    """The tree below one root. ``root`` is an absolute path or a uri, without a slash at its end."""

    root: str

    @property
    def marker(self) -> str:
        """drivetrain.json, which says that this is a root and of which schema."""
        return f"{self.root}/drivetrain.json"

    @property
    def probe(self) -> str:
        """probe.json, which is written to see whether anything can be."""
        return f"{self.root}/probe.json"

    def model(self, model_id: str) -> str:
        """The folder of one model."""
        return f"{self.root}/models/{model_id}"

    def export(self, model_id: str) -> str:
        """The model's export.pkl, copied in at first use."""
        return f"{self.model(model_id)}/export.pkl"

    def learner(self, model_id: str, embedding: str = "head") -> str:
        """The model's learner.json, or the one for another layer as embedding."""
        return f"{self.model(model_id)}/learner{_suffix(embedding)}.json"

    def proof(self, model_id: str, embedding: str = "head") -> str:
        """The model's engine.json: which engine computes it, and what that was held against."""
        return f"{self.model(model_id)}/engine{_suffix(embedding)}.json"

    def network(self, model_id: str, embedding: str = "head") -> str:
        """The model's network.json: which stored network actors on CPUs open."""
        return f"{self.model(model_id)}/network{_suffix(embedding)}.json"

    def stored_network(self, model_id: str, sha256: str) -> str:
        """A stored network by its hash; nobody reads one that no network.json names."""
        return f"{self.model(model_id)}/network-{sha256[:12]}.zip"

    def int8(self, model_id: str, embedding: str = "head") -> str:
        """The model's int8.json: which network in int8 computes it, and how near that is to float32."""
        return f"{self.model(model_id)}/int8{_suffix(embedding)}.json"

    def int8_network(self, model_id: str, sha256: str) -> str:
        """A network in int8 by its hash; nobody reads one that no int8.json names."""
        return f"{self.model(model_id)}/int8-{sha256[:12]}.zip"

    def references(self, model_id: str) -> str:
        """The folder of the model's references."""
        return f"{self.model(model_id)}/references"

    def trained(self, model_id: str, run_id: str) -> str:
        """The folder of what the model's owner said beside one of its references: what else it was trained on."""
        return f"{self.model(model_id)}/trained/{run_id}"

    @property
    def runs(self) -> str:
        """The folder of all runs."""
        return f"{self.root}/runs"

    def run(self, run_id: str) -> RunPaths:
        """One run."""
        return RunPaths(f"{self.runs}/{run_id}")

    @property
    def sources(self) -> str:
        """The folder of all sources."""
        return f"{self.root}/sources"

    def nights(self, source: str) -> str:
        """The folder of a source's nights."""
        return f"{self.sources}/{source}/nights"

    def accepted(self, source: str, reference: str, view: str = USUAL_VIEW) -> str:
        """The folder of a source's nights that were accepted as usual under a reference."""
        return f"{self.sources}/{source}/accepted/{_seen(reference, view)}"

    def acceptance(self, source: str, run_id: str, reference: str, view: str = USUAL_VIEW) -> str:
        """The record that a night was accepted as usual."""
        return f"{self.accepted(source, reference, view)}/{run_id}.json"

    def plan(self, source: str, kind: str, name: str) -> PlanPaths:
        """A plan's folder. ``kind`` is ``night`` or ``plan``."""
        return PlanPaths(f"{self.sources}/{source}/{kind}s/{name}")

    def plans(self, source: str, kind: str) -> str:
        """The folder of a source's plans of a kind."""
        return f"{self.sources}/{source}/{kind}s"

    def aliases(self, source: str, alias: str) -> str:
        """The folder of a source's numbered records of an alias, champion or challenger."""
        return f"{self.sources}/{source}/aliases/{alias}"

    def alias(self, source: str, alias: str, number: int) -> str:
        """One numbered record of an alias."""
        return f"{self.aliases(source, alias)}/{number:04d}.json"

    def shown(self, source: str, number: int) -> str:
        """What says that readers were shown what follows from a record of a champion, a rollback."""
        return f"{self.aliases(source, 'champion')}/{number:04d}.shown"

    def labels(self, source: str) -> str:
        """The folder of the labels that people gave a source's images."""
        return f"{self.sources}/{source}/labels"

    def drawn(self, source: str, kind: str, name: str) -> str:
        """The folder of what was drawn at random of a plan's images, to be labelled."""
        return f"{self.sources}/{source}/drawn/{kind}-{name}"

    def alerts(self, source: str) -> str:
        """The folder of the numbered records of what a chat was told."""
        return f"{self.sources}/{source}/alerts"

    def alert(self, source: str, number: int) -> str:
        """One numbered record of what a chat is told: whoever creates it posts."""
        return f"{self.alerts(source)}/{number:04d}.json"

    def answer(self, source: str, number: int) -> str:
        """Whether the chat took it."""
        return f"{self.alerts(source)}/answers/{number:04d}.json"

    def table(self, source: str) -> str:
        """The source's Delta table of current scores."""
        return f"{self.sources}/{source}/table"

    def behaviours(self, model_id: str) -> str:
        """The folder of all behaviour tests of a learner."""
        return f"{self.root}/behaviour/{model_id}"

    def behaviour(self, model_id: str, digest: str) -> str:
        """The folder of a learner's behaviour tests on some images."""
        return f"{self.behaviours(model_id)}/{digest}"

    def behaviour_record(self, model_id: str, digest: str) -> str:
        """behaviour.json: what they found. Written last."""
        return f"{self.behaviour(model_id, digest)}/behaviour.json"

    def behaviour_page(self, model_id: str, digest: str) -> str:
        """index.html: the same for people."""
        return f"{self.behaviour(model_id, digest)}/index.html"

    def comparison(self, old: str, new: str) -> str:
        """The folder of the comparison of two runs."""
        return f"{self.root}/comparisons/{old}--{new}"

    @property
    def workspace(self) -> str:
        """Evidently's workspace."""
        return f"{self.root}/workspace"

    @property
    def site(self) -> str:
        """The static site's folder."""
        return f"{self.root}/site"

    @property
    def metrics(self) -> str:
        """metrics.prom: the newest night of each source, for Prometheus."""
        return f"{self.site}/metrics.prom"


def shipped(name: str) -> Path:
    """A file of ``dashboards/`` or ``jobs/``: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    inside = here / name
    return inside if inside.exists() else here.parent / name
