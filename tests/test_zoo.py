"""Every learner of the zoo is read as data, and scores as fastai does. (test_pickled.py reads one whose code is gone.)

The images are crops of real photographs in many sizes and shapes, which no learner was trained on.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import torch
import zoo
from fastai.vision.all import ConvLayer, Flatten, Learner, PILImage, PILImageBW, load_learner
from fastai.vision.all import Resize as FastaiResize
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from drivetrain import Config, inspect_learner
from drivetrain.errors import ImageError, LearnerError, TrustError
from drivetrain.learner import ExportedLearner, StoredLearner, open_learner, pixels
from drivetrain.learner.pixels import Decoder
from drivetrain.told import lines_of

pytestmark = pytest.mark.slow

SIZES = (
    (400, 500),
    (500, 400),
    (427, 427),
    (96, 640),
    (300, 64),
    (64, 64),
    (50, 40),
    (401, 333),
    (224, 224),
    (33, 400),
)
FRAMES = {"from_df", "multi-label", "regression", "grey"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return learners.write_photos(tmp_path_factory.mktemp("zoo") / "photos", 24)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Crops of many sizes, in folders by label."""
    rng = np.random.default_rng(7)
    folder, paths = tmp_path_factory.mktemp("unseen"), []
    for i, (width, height) in enumerate(SIZES * 2):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        left, top = int(rng.integers(0, 640 - min(width, 639))), int(rng.integers(0, 427 - min(height, 426)))
        path = folder / ("china", "flower")[i % 2] / f"china_{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.crop((left, top, left + width, top + height)).save(path, quality=92)
        paths.append(path)
    return paths


# What `make test` takes: one of each kind. Training all of them takes minutes.
SHARE = {
    "resnet18", "mobilenet_v3_small", "from_df", "multi-label", "regression", "grey", "CropPad",
    "presized, after a training batch", "presized as the book does",
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in SHARE else pytest.mark.thorough) for name in zoo.ZOO],
)
def animal(request: pytest.FixtureRequest, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("learner") / "export.pkl"
    return request.param, learners.exported(zoo.ZOO[request.param](photos), path)


def opened(exported: learners.Exported, **more: Any) -> ExportedLearner:
    return open_learner(Path(exported.path).read_bytes(), exported.sha256, **more)


def stored(learner: ExportedLearner, paths: list[Path]) -> StoredLearner:
    """The learner as actors open it."""
    return StoredLearner(learner.stored(items_of(learner, paths)), learner.info)


def items_of(learner: ExportedLearner | StoredLearner, paths: list[Path]) -> list[Any]:
    return [learner.prepare(path.read_bytes(), 10_000_000)[0] for path in paths]


def outputs_of(learner: ExportedLearner | StoredLearner, paths: list[Path]) -> np.ndarray[Any, Any]:
    found = learner.predict(items_of(learner, paths))
    return np.concatenate([each.outputs for each in found])  # type: ignore[union-attr]


def fastai_of(name: str, path: str, images: list[Path]) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = load_learner(path)
        return learn, learn.dls.test_dl(learners.frame_of(images) if name in FRAMES else images, num_workers=0, bs=1)


def test_same_as_get_preds_on_both_engines(animal: Any, unseen: list[Path]) -> None:
    name, exported = animal
    learner = opened(exported)
    assert learner.info.read == "data" and learner.info.unread == ()
    learn, loader = fastai_of(name, exported.path, unseen)
    with learn.no_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = learn.get_preds(dl=loader)[0].numpy().reshape(len(unseen), -1)
    found, fast = outputs_of(learner, unseen), outputs_of(stored(learner, unseen), unseen)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(fast, expected, atol=1e-4)
    for outputs in (found, fast):
        np.testing.assert_array_equal(chosen_of(learner, outputs), chosen_of(learner, expected))


def chosen_of(learner: ExportedLearner, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The label of each image, or its labels; nothing of a regression."""
    if learner.info.task == "single_label":
        found: np.ndarray[Any, Any] = outputs.argmax(1)
        return found
    return outputs > learner._recipe.loss.threshold if learner.info.task == "multi_label" else outputs[:, :0]


def test_pixels_equal_fastais_to_the_bit(animal: Any, unseen: list[Path]) -> None:
    name, exported = animal
    learner = opened(exported)
    fast = stored(learner, unseen)
    _, loader = fastai_of(name, exported.path, unseen)
    loader.before_iter()
    for path, item in zip(unseen, loader.dataset, strict=True):
        (expected,) = loader.after_item(item)[:1]
        for each in (learner, fast):
            found = each.prepare(path.read_bytes(), 10_000_000)[0]
            np.testing.assert_array_equal(found, expected.numpy().transpose(1, 2, 0), str(path.name))


def test_the_fast_engine_gives_the_same_embeddings(animal: Any, unseen: list[Path]) -> None:
    _, exported = animal
    learner = opened(exported)
    proof = learner.prove(stored(learner, unseen), items_of(learner, unseen))
    assert proof.reason == "" and proof.images == len(unseen) and proof.cosine >= 0.9999


def test_a_fast_engine_that_computes_something_else_is_not_proved(photos: list[Path], tmp_path: Path) -> None:
    learner = opened(learners.exported(zoo.ZOO["squish"](photos), tmp_path / "export.pkl"))
    items, fast = items_of(learner, photos), stored(learner, photos)
    assert learner.prove(fast, items).reason == "" and fast.differs_here() == ""
    learner._recipe.model[0][0][0].weight.data.mul_(1.01)
    assert "differs by" in learner.prove(fast, items).reason


def test_a_learner_whose_images_keep_their_size_is_left_to_torch(tmp_path: Path) -> None:
    learners.write_digits(tmp_path / "digits", 0, 64, by_label=True)
    learn = learners.digits_learner(tmp_path / "digits", epochs=1)
    learner = opened(learners.exported(learn, tmp_path / "export.pkl"))
    with pytest.raises(LearnerError, match="one size"):
        learner.stored(items_of(learner, list((tmp_path / "digits").rglob("*.png"))[:1]))


@pytest.mark.parametrize("last", ["linear", "flattened"])
def test_a_network_that_takes_one_size_needs_no_resize(last: str, tmp_path: Path) -> None:
    """fast.ai's first networks for MNIST. An image of another size is a failed row, not one of other numbers."""
    paths = learners.write_digits(tmp_path / "digits", 0, 64, by_label=True)
    dls = learners.digits_dataloaders(tmp_path / "digits")
    ends = {"linear": [Flatten(), nn.Linear(392, dls.c)], "flattened": [nn.Conv2d(8, dls.c, 7), Flatten()]}
    body = [ConvLayer(3, 8, stride=2), ConvLayer(8, 8, stride=2)]
    learn = learners.train(Learner(dls, nn.Sequential(*body, *ends[last])))
    exported = learners.exported(learn, tmp_path / "export.pkl")
    learner = opened(exported, embedding="none" if last == "flattened" else "head")
    learn, loader = fastai_of("", exported.path, paths[:9])
    with learn.no_bar():
        expected = learn.get_preds(dl=loader)[0].numpy()
    np.testing.assert_allclose(outputs_of(learner, paths[:9]), expected, atol=1e-5)
    sink = io.BytesIO()
    Image.open(paths[0]).resize((40, 28)).save(sink, "PNG")
    (found,) = learner.predict([learner.prepare(sink.getvalue(), 10_000)[0]])
    assert isinstance(found, ImageError) and found.reason == "learner"


def test_a_network_of_an_unusual_size_is_told_the_way_out(tmp_path: Path) -> None:
    learners.write_digits(tmp_path / "digits", 0, 64, by_label=True)
    dls = learners.digits_dataloaders(tmp_path / "digits")
    learn = Learner(dls, nn.Sequential(Flatten(), nn.Linear(3 * 29 * 29, dls.c)))
    exported = learners.exported(learn, tmp_path / "export.pkl")
    with pytest.raises(LearnerError, match=r"(?s)size that it was trained at.*item_tfms=Resize\(SIZE\)"):
        opened(exported)


def test_another_layer_may_be_the_embedding(photos: list[Path], tmp_path: Path) -> None:
    exported = learners.exported(zoo.ZOO["squish"](photos), tmp_path / "export.pkl")
    learner = opened(exported, embedding="1.0")
    assert (learner.info.layer, learner.info.embedding_size) == ("1.0", 64)
    items = [learner.prepare(path.read_bytes(), 10_000_000)[0] for path in photos[:4]]
    body = learner._recipe.model[0]
    batch = torch.from_numpy(np.stack(items)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = body(batch).mean((2, 3)).numpy()
    found = np.concatenate([each.embeddings for each in learner.predict(items)])  # type: ignore[union-attr]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(LearnerError, match=r"no layer '9.9'.*1\.8"):
        opened(exported, embedding="9.9")


def test_a_transform_of_the_users_own_needs_vouching_and_then_scores_as_fastai_does(
    photos: list[Path], unseen: list[Path], tmp_path: Path
) -> None:
    """What isn't on the list is refused by name; vouched for, fastai's own pipelines run it."""
    exported = learners.exported(zoo.with_own_transform(photos), tmp_path / "export.pkl")
    with pytest.raises(TrustError, match=r"zoo\.Darken") as refused:
        opened(exported)
    assert f"--trust {exported.sha256}" in str(refused.value)
    learner = opened(exported, vouched=True)
    assert learner.info.read == "fastai" and "zoo.Darken" in learner.info.unread[0]
    with pytest.raises(LearnerError, match=r"^only fastai can prepare its images, because of zoo\.Darken$"):
        learner.stored([])  # which becomes the run's engine_note
    learn, loader = fastai_of("", exported.path, unseen)
    with learn.no_bar():
        expected = learn.get_preds(dl=loader)[0].numpy()
    np.testing.assert_allclose(outputs_of(learner, unseen), expected, atol=1e-5)


def test_a_split_idx_is_believed_only_where_no_batch_of_training_can_have_written_it(
    photos: list[Path], unseen: list[Path], tmp_path: Path
) -> None:
    """fastai's AffineCoordTfm keeps the last batch's; what the owner's own class declares is told as an assumption."""
    exported = learners.exported(zoo.with_own_augmentation(photos), tmp_path / "aside.pkl")
    learner = opened(exported)
    assert learner.info.read == "data" and learner.info.unread[0].startswith("zoo.Aside: it is left out")
    learn, loader = fastai_of("", exported.path, unseen)
    with learn.no_bar():
        expected = learn.get_preds(dl=loader)[0].numpy()
    np.testing.assert_allclose(outputs_of(learner, unseen), expected, atol=1e-5)
    exported = learners.exported(zoo.with_own_resizing(photos), tmp_path / "turn.pkl")
    with pytest.raises(TrustError, match=r"zoo\.Turn"):
        opened(exported)
    learn, loader = fastai_of("", exported.path, unseen)
    with learn.no_bar():
        expected = learn.get_preds(dl=loader)[0].numpy()
    np.testing.assert_allclose(outputs_of(opened(exported, vouched=True), unseen), expected, atol=1e-5)


@pytest.mark.parametrize("kind", zoo.UNSERVED)
def test_what_cannot_be_served_is_refused_before_any_work(kind: str, photos: list[Path], tmp_path: Path) -> None:
    exported = learners.exported(zoo.UNSERVED[kind](photos), tmp_path / "export.pkl")
    for vouched in (False, True):
        with pytest.raises(LearnerError, match="be served") as refused:
            opened(exported, vouched=vouched)
        assert "--trust" not in str(refused.value)


def test_whatever_could_not_be_read_is_named_before_vouching_and_after(photos: list[Path], tmp_path: Path) -> None:
    exported = learners.exported(zoo.with_two_own_transforms(photos), tmp_path / "two.pkl")
    with pytest.raises(TrustError, match=r"single-label, 2 classes: china, flower.*zoo\.Darken; zoo\.Turn\n"):
        opened(exported)
    exported = learners.exported(zoo.with_own_layer(photos), tmp_path / "layer.pkl")
    with pytest.raises(TrustError, match=r"zoo\.Half\n"):
        opened(exported)
    assert opened(exported, vouched=True).info.unread == ("zoo.Half can't be read as data; its code was run",)


def _odd_images() -> list[bytes]:
    """Random pixels in every mode and format in which a camera, a scanner or a web site may leave them."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 4), dtype=np.uint8)
    colours, grey = Image.fromarray(noise, "RGBA"), Image.fromarray(noise[:, :, 0], "L")
    kinds = [
        (colours, "PNG"), (colours, "WEBP"), (colours, "TIFF"), (colours.convert("P"), "PNG"),
        (colours.convert("P"), "GIF"),
        (colours.convert("LA"), "PNG"), (colours.convert("CMYK"), "JPEG"), (colours.convert("YCbCr"), "JPEG"),
        (grey, "JPEG"), (grey.convert("1"), "PNG"), (grey.convert("I;16"), "PNG"), (grey.convert("F"), "TIFF"),
    ]  # fmt: skip
    found = []
    for image, form in kinds:
        sink = io.BytesIO()
        image.save(sink, form)
        found.append(sink.getvalue())
    return found


@pytest.mark.parametrize("opener", [PILImage, PILImageBW])
def test_odd_images_give_the_pixels_that_fastai_sees(opener: Any) -> None:
    """Alpha, palettes, CMYK, 16 bits, floats: what training saw, however strange."""
    decoder = Decoder("RGB" if opener is PILImage else "L", (pixels.Resize((64, 48), "crop", "reflection", 2),))
    for data in _odd_images():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(FastaiResize((48, 64))(opener.create(data), split_idx=1))
        found = decoder.prepare(data, 10_000)[0]
        np.testing.assert_array_equal(found, expected if expected.ndim == 3 else expected[:, :, None])


def test_inspect_shows_what_was_found(photos: list[Path], tmp_path: Path) -> None:
    exported = learners.exported(zoo.ZOO["presized as the book does"](photos), tmp_path / "export.pkl")
    lines = "\n".join(lines_of(inspect_learner(Config(learner=exported.path))))
    assert f"sha256        {exported.sha256}" in lines
    assert "network       Sequential" in lines and "predicts      single-label, 2 classes: china, flower" in lines
    assert "pixels        drivetrain's own" in lines and "Resize(size=(120, 100)" in lines
    assert "Resample(size=(32, 32)" in lines and "Normalize(mean=" in lines
