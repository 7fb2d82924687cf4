"""int8 is made once from the learner's images, nearly gives float32's labels, and says what it can't do."""

import json
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import torch
from fastai.vision.all import ImageDataLoaders, Learner, Resize

from drivetrain import opened as opening
from drivetrain.admit import admit_known
from drivetrain.config import Config
from drivetrain.engine import choose_engine, read_int8, read_network
from drivetrain.errors import LearnerError, SettingError, StoreError
from drivetrain.learner import StoredLearner, int8, open_learner, outputs
from drivetrain.learner.engines import unpacked
from drivetrain.learner.outputs import Loss
from drivetrain.reference import build_reference, find_reference
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.score import score_images
from drivetrain.shard import ShardScorer
from drivetrain.store import Store

pytestmark = pytest.mark.slow
COLUMNS = ["uri", "label", "probs", "embedding"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    learners.write_digits(folder / "world", 0, 900, by_label=True)
    return folder / "world"


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other digits that there are: none of them trained the learner, calibrated int8, or set what is close."""
    folder = tmp_path_factory.mktemp("unseen") / "digits"
    learners.write_digits(folder, 900, 1797)
    return folder


@pytest.fixture(scope="module")
def exported(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    torch.manual_seed(0)
    dls = ImageDataLoaders.from_folder(digits, valid_pct=0.5, seed=0, bs=32, num_workers=0, item_tfms=Resize(28))
    # Trained for long enough that close calls are few: after 4 epochs one draw in many made int8 refuse it.
    learn = learners.train(Learner(dls, learners.small_model(len(dls.vocab))), 8, 1e-2)
    return learners.exported(learn, tmp_path_factory.mktemp("learner") / "export.pkl")


@pytest.fixture(scope="module")
def config(exported: learners.Exported, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A root in which the digits are scored in int8; the tests below read it and add to it."""
    return Config(
        root=str(tmp_path_factory.mktemp("root")), learner=exported.path, images=str(digits), source="digits",
        name="first", actors=0, engine="int8",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config: Config) -> Run:
    return run_of(config)


def run_of(config: Config) -> Run:
    store, layout = open_root(config)
    return Run.find(store, layout, score_images(config)["run_id"])


def table(run: Run) -> Any:
    return run.rows(COLUMNS).to_pandas().set_index("uri").sort_index()


def quality_of(run: Run) -> dict[str, Any]:
    quality: dict[str, Any] = json.loads(run.store.read(run.layout.int8(run.record.model_id)))
    return quality


def test_images_that_it_has_not_seen_keep_float32s_label(config: Config, run: Run, unseen: Path) -> None:
    """Of those that set what is close, at least 99 % keep it by construction."""
    night = config.model_copy(update={"images": str(unseen), "name": "unseen"})
    fast, slow = table(run_of(night)), table(run_of(night.model_copy(update={"engine": "openvino"})))
    assert len(fast) == len(slow) == 897 and (fast["label"] == slow["label"]).mean() >= 0.99


def test_what_int8_computed_is_told_from_float32_and_its_key_is_its_own(config: Config, run: Run) -> None:
    exact = run_of(config.model_copy(update={"engine": "openvino"}))
    assert run.record.settings["engine"] == "int8" and run.record.run_id != exact.record.run_id
    fast, slow = table(run), table(exact)
    assert len(fast) == 900
    one, other = np.stack(fast["embedding"]), np.stack(slow["embedding"])
    assert (one != other).any(1).mean() > 0.9, "int8 is what computed them"
    assert outputs.cosines(one, other).min() > 0.95
    quality = quality_of(run)
    assert quality["images"] == 600 and quality["agreement"] >= 0.99 and "float32's label" in run.record.engine_note
    assert run.record.engine_note == quality["worth"]


def test_close_calls_are_float32s_and_clear_ones_are_not(config: Config, run: Run, digits: Path) -> None:
    """A wide band of close calls, so that there are some: these images' outputs are the exact engine's."""
    stored = read_int8(run.store, run.layout, run.record.model_id, "head")
    exact, alone, careful = opened(run), opened(run, changed(stored, -1.0)), opened(run, changed(stored, 6.0))
    items = [exact.prepare(path.read_bytes(), 10**6)[0] for path in sorted(digits.rglob("*.png"))[:200]]
    of_exact, of_alone, of_careful = (
        np.concatenate([each.outputs for each in learner.predict(items)]) for learner in (exact, alone, careful)
    )
    again = np.abs(of_careful - of_alone).max(1) > 0
    assert 10 < again.sum() < 190
    np.testing.assert_allclose(of_careful[again], of_exact[again], atol=1e-6)
    ranked = np.sort(np.log(of_alone), 1)
    margins = ranked[:, -1] - ranked[:, -2]
    assert margins[again].max() < 6.01 and margins[~again].min() > 5.99


def opened(run: Run, int8: bytes | None = None) -> StoredLearner:
    """The learner as actors open it, with a network in int8 or without."""
    info = admit_known(run.store, run.layout, Config(root=run.layout.root), run.record.sha256)
    return StoredLearner(read_network(run.store, run.layout, run.record.model_id, "head"), info, int8=int8)


def changed(stored: bytes, close: float, file: str = "quality.json") -> bytes:
    """What was stored with other close calls, or with other outputs of the images that are kept with it."""
    sink = BytesIO()
    with zipfile.ZipFile(BytesIO(stored)) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == file == "quality.json":
                data = json.dumps(json.loads(data) | {"close": close}).encode()
            elif name == file:
                arrays, kept = np.load(BytesIO(data)), BytesIO()
                np.savez(kept, kept=arrays["kept"], expected=arrays["expected"] + close)
                data = kept.getvalue()
            new.writestr(name, data)
    return sink.getvalue()


def test_it_is_made_once_whoever_asks(config: Config, run: Run) -> None:
    folder = run.layout.model(run.record.model_id)
    before = run.store.names(folder)
    again = run_of(config.model_copy(update={"name": "second"}))
    assert run.store.names(folder) == before and [name for name in before if name.endswith(".zip")]
    info = ShardScorer(Store(), run.layout.root, again.record.run_id, 16)._learner.info
    chosen = choose_engine(run.store, run.layout, config, info, lambda: pytest.fail("reads images again"))
    assert chosen == ("int8", run.record.engine_note)


def test_a_dry_run_makes_it_and_keeps_none_of_it(config: Config, run: Run, tmp_path: Path) -> None:
    """The network in int8 is made in memory and goes to the worker from there."""
    root = tmp_path / "root"
    found = score_images(config.model_copy(update={"root": str(root), "dry_run": True}))
    assert not root.exists()
    assert found["runs"] == [run.record.run_id], "the run in int8, and not one in float32"
    assert (found["images_to_score"], found["probed"]) == (900, 64)


def test_held_out_images_of_the_reference_come_first(config: Config, digits: Path, tmp_path: Path) -> None:
    """Images of tonight must not decide what is close when there are images that the learner's owner chose."""
    labels = tmp_path / "labels.csv"
    paths = sorted(digits.rglob("*.png"))
    held_out = {str(path) for path in paths[::2]}
    rows = [f"{path.relative_to(digits)},{path.parent.name},{path in set(paths[::2])}" for path in paths]
    labels.write_text("\n".join(["fname,label,is_valid", *rows]))
    own = config.model_copy(update={"root": str(tmp_path / "root"), "labels": str(labels)})
    build_reference(own.model_copy(update={"engine": "torch"}))
    dark = tmp_path / "dark"
    learners.write_digits(dark, 900, 960, invert=True)
    reads: list[str] = []
    read = Store.read

    def noted(self: Store, uri: str) -> bytes:
        reads.append(uri)
        return read(self, uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "read", noted)
        night = run_of(own.model_copy(update={"images": str(dark), "name": "dark"}))
    images = list(dict.fromkeys(uri for uri in reads if "/world/" in uri))
    # Images are fetched 16 at a time, so the order among those is open.
    assert set(images[:448]) <= held_out and set(images) > held_out
    assert find_reference(night.store, night.layout, night) is None, "a reference by float32 has other embeddings"
    build_reference(own)
    assert find_reference(night.store, night.layout, night) is not None


def test_another_processor_fails_loudly(run: Run) -> None:
    assert ShardScorer(Store(), run.layout.root, run.record.run_id, 16).run(0).failed == 0
    stored = read_int8(run.store, run.layout, run.record.model_id, "head")
    other = changed(stored, 5.0, "kept.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "read_int8", lambda *_: other)
        with pytest.raises(LearnerError, match=r"engine int8 does not give what it gave.*outputs differ by 5"):
            ShardScorer(Store(), run.layout.root, run.record.run_id, 16)


def test_the_engine_of_the_close_calls_is_held_against_torch_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "TOLERANCE", -1.0)
    with pytest.raises(LearnerError, match=r"engine int8 does not give what it gave.*OpenVINO differs"):
        ShardScorer(Store(), run.layout.root, run.record.run_id, 16)


def test_a_damaged_network_is_not_opened(run: Run, tmp_path: Path) -> None:
    where = run.layout.int8_network(run.record.model_id, quality_of(run)["sha256"])
    whole = run.store.read(where)
    try:
        Path(where).write_bytes(whole[:-100])
        with pytest.raises(StoreError, match=r"int8.json names, which is damaged"):
            ShardScorer(Store(), run.layout.root, run.record.run_id, 16)
        Path(where).unlink()
        with pytest.raises(StoreError, match=r"int8.json names, which is gone"):
            ShardScorer(Store(), run.layout.root, run.record.run_id, 16)
    finally:
        Path(where).write_bytes(whole)


def test_what_it_cannot_do_is_said(config: Config, digits: Path, tmp_path: Path) -> None:
    fresh = config.model_copy(update={"root": str(tmp_path / "root")})
    with pytest.raises(SettingError, match="leave out   --gpus-per-actor"):
        score_images(fresh.model_copy(update={"gpus_per_actor": 1.0}))
    with pytest.raises(SettingError, match=r"500 images or more, and \d+ can be read"):
        score_images(fresh.model_copy(update={"images": str(digits / "3"), "name": "3"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nncf", None)
        with pytest.raises(SettingError, match=r'pip install "drivetrain\[int8\]"'):
            score_images(fresh)
    folder = learners.write_photos(tmp_path / "photos", 40)[0].parent.parent
    values = learners.exported(learners.regression_learner(sorted(folder.rglob("*.jpg"))), tmp_path / "values.pkl")
    learner = open_learner(Path(values.path).read_bytes(), values.sha256)
    photo = learner.prepare(next(folder.rglob("*.jpg")).read_bytes(), 10**7)[0]
    stored = learner.stored([photo])
    with pytest.raises(LearnerError, match="regression has no labels"):
        StoredLearner(stored, learner.info).make_int8(stored, [], [])


def test_close_calls_of_several_labels_are_those_near_the_threshold() -> None:
    decision = int8.Decision(True, Loss("bce", "sigmoid", 0.8))
    cut = np.log(0.8 / 0.2)
    raw = np.array([[cut + 0.1, -5.0], [cut - 3.0, cut + 2.0]], np.float32)
    np.testing.assert_array_equal(decision.labels(raw), [[True, False], [False, True]])
    np.testing.assert_allclose(decision.margins(raw), [0.1, 2.0], atol=1e-6)
    one = int8.Decision(False, Loss("ce", "softmax", 0.5))
    np.testing.assert_allclose(one.margins(np.array([[3.0, 1.0, 2.5]], np.float32)), [0.5])
    assert np.isinf(one.margins(np.array([[3.0]], np.float32))).all()


def test_a_last_layer_that_gives_probabilities_itself_is_cut_at_the_threshold() -> None:
    """BCELossFlat: taken for logits, all labels were on and no image was a close call."""
    decision = int8.Decision(True, Loss("BCELossFlat", "none", 0.5))
    raw = np.array([[0.9, 0.1], [0.45, 0.7]], np.float32)
    np.testing.assert_array_equal(decision.labels(raw), [[True, False], [False, True]])
    np.testing.assert_allclose(decision.margins(raw), [0.4, 0.05], atol=1e-6)


def test_a_few_outliers_do_not_send_half_of_a_bucket_twice() -> None:
    margins = np.arange(1000, dtype=np.float32)
    wrong = np.isin(margins, [3.0, 5.0, 700.0, 800.0])
    assert int8._closest(margins, wrong) == 5.0
    assert int8._closest(margins, margins < 30) == 29.0
    assert int8._closest(margins, margins < -1) == 0.0
    many = margins % 2 == 0
    assert int8._closest(margins, many) == 994.0, "many wrong labels are not outliers"


def test_it_is_no_use_when_most_are_close(config: Config, run: Run, digits: Path) -> None:
    """Labels that have nothing to do with float32's: as if quantising had broken the network."""
    learner = opened(run)
    items = [learner.prepare(path.read_bytes(), 10**6)[0] for path in sorted(digits.rglob("*.png"))[:300]]

    class Other:
        name = "other"

        def run(self, batch: Any) -> tuple[Any, Any]:
            raw, embeddings = learner._exact.run(batch)
            return -raw, embeddings

    with pytest.raises(LearnerError, match="would have to be computed again"):
        model = unpacked(read_network(run.store, run.layout, run.record.model_id, "head"))[0]
        int8.make_int8(model, items[:100], items, Other(), learner._decision)
