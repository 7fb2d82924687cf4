"""An exported learner scores as fastai does, opens nothing that nobody vouched for, and survives bad images."""

import hashlib
import io
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import torch
from fastai.vision.all import Learner, load_learner
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pad

from drivetrain.errors import ImageError, LearnerError, TrustError
from drivetrain.export import read_export
from drivetrain.learner import Predictions, embedding_layer, open_learner, pixels
from drivetrain.learner.outputs import Loss, predictions
from drivetrain.store import Store

pytestmark = pytest.mark.slow

KINDS: dict[str, Callable[[list[Path]], Learner]] = {
    "from_folder": lambda paths: learners.photos_learner(paths[0].parent.parent),
    "from_df": learners.from_df_learner,
    "multi_label": learners.multi_label_learner,
    "regression": learners.regression_learner,
    "grey": learners.grey_learner,
}
MAX_PIXELS = 10_000_000


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return learners.write_photos(tmp_path_factory.mktemp("photos"), 24)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("learner") / "export.pkl"
    return request.param, learners.exported(KINDS[request.param](photos), path)


def scored(exported: learners.Exported, paths: list[Path]) -> list[Predictions]:
    learner = open_learner(Path(exported.path).read_bytes(), exported.sha256)
    results = learner.predict([learner.prepare(path.read_bytes(), MAX_PIXELS)[0] for path in paths])
    assert all(isinstance(result, Predictions) for result in results)
    return [result for result in results if isinstance(result, Predictions)]


def test_predictions_equal_get_preds(kind: Any, photos: list[Path]) -> None:
    name, exported = kind
    found = scored(exported, photos)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = load_learner(exported.path)
    items = learners.frame_of(photos) if name in ("from_df", "multi_label", "regression", "grey") else photos
    with learn.no_bar():
        expected, _, decoded = learn.get_preds(dl=learn.dls.test_dl(items, num_workers=0), with_decoded=True)
    outputs = np.concatenate([each.outputs for each in found])
    np.testing.assert_allclose(outputs, expected.numpy().reshape(len(photos), -1), atol=1e-5)
    if name == "multi_label":
        np.testing.assert_array_equal(np.concatenate([each.chosen for each in found]), decoded.numpy())
        assert learn.loss_func.thresh == 0.4
    elif name != "regression":
        np.testing.assert_array_equal(outputs.argmax(axis=1), decoded.numpy())


def test_embedding_is_what_the_head_needs(kind: Any, photos: list[Path]) -> None:
    """The rest of the head, applied to the stored embeddings, gives the learner's own outputs."""
    _, exported = kind
    found = scored(exported, photos[:6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = load_learner(exported.path)
    head = learn.model[1].eval()
    first = next(i for i, layer in enumerate(head) if any(True for _ in layer.parameters()))
    assert first > 0, "pooling and flattening come before the first layer with parameters"
    with torch.inference_mode():
        embeddings = torch.from_numpy(np.concatenate([each.embeddings for each in found]))
        raw = head[first:](embeddings)
        outputs = learn.loss_func.activation(raw) if hasattr(learn.loss_func, "activation") else raw
    np.testing.assert_allclose(outputs.numpy(), np.concatenate([each.outputs for each in found]), atol=1e-5)


def test_nothing_is_opened_without_its_hash(tmp_path: Path) -> None:
    """A pickle that would leave a mark when opened leaves none."""
    mark = tmp_path / "it ran"
    path = tmp_path / "export.pkl"
    path.write_bytes(f"cos\nmkdir\n(V{mark}\ntR.".encode())
    with pytest.raises(TrustError) as refused:
        read_export(Store(), str(path), ["0" * 64])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"--trust {sha256}" in str(refused.value)
    assert f', "{sha256}"]' in str(refused.value)
    assert not mark.exists()


def test_a_damaged_copy_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "export.pkl"
    path.write_bytes(b"vouched for")
    data, sha256 = read_export(Store(), str(path), [hashlib.sha256(b"vouched for").hexdigest()])
    with pytest.raises(TrustError, match="damaged"):
        open_learner(data[:-1] + b"R", sha256)


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    """load_learner itself says UnboundLocalError: res."""
    module = types.ModuleType("module_of_the_trainer")
    module.Thing = type("Thing", (), {"__module__": "module_of_the_trainer"})  # type: ignore[attr-defined]
    sys.modules["module_of_the_trainer"] = module
    sink = io.BytesIO()
    torch.save(module.Thing(), sink)
    del sys.modules["module_of_the_trainer"]
    data = sink.getvalue()
    with pytest.raises(LearnerError, match="module_of_the_trainer"):
        open_learner(data, hashlib.sha256(data).hexdigest())


def test_a_bare_model_is_told_from_a_learner() -> None:
    sink = io.BytesIO()
    torch.save(nn.Linear(2, 2), sink)
    with pytest.raises(LearnerError, match=r"(?s)Expected a fastai Learner.*learn\.export\(\)"):
        open_learner(sink.getvalue(), hashlib.sha256(sink.getvalue()).hexdigest())


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, "PNG")
    return sink.getvalue()


def test_bad_images_are_told_apart(kind: Any) -> None:
    _, exported = kind
    learner = open_learner(Path(exported.path).read_bytes(), exported.sha256)
    cases = {
        "empty": b"",
        "undecodable": b"<html>404</html>",
        "too_large": png((4000, 3000), "1"),
    }
    for reason, data in cases.items():
        with pytest.raises(ImageError) as error:
            learner.prepare(data, MAX_PIXELS)
        assert error.value.reason == reason
    truncated = png((300, 300))[:-40]
    with pytest.raises(ImageError) as error:
        learner.prepare(truncated, MAX_PIXELS)
    assert error.value.reason == "undecodable"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "AVIF", "JPEG2000"])
def test_every_usual_format_is_read(kind: Any, form: str) -> None:
    """A format missing from Pillow's list once made every later one unreadable."""
    _, exported = kind
    learner = open_learner(Path(exported.path).read_bytes(), exported.sha256)
    sink = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(sink, form)
    _, header = learner.prepare(sink.getvalue(), MAX_PIXELS)
    assert (header.width, header.height, header.form, header.flags) == (64, 48, form, ())


def test_a_document_is_no_image(kind: Any) -> None:
    """EPS would call Ghostscript."""
    _, exported = kind
    learner = open_learner(Path(exported.path).read_bytes(), exported.sha256)
    sink = io.BytesIO()
    Image.new("RGB", (64, 48)).save(sink, "EPS")
    with pytest.raises(ImageError, match="UnidentifiedImageError: cannot identify image file the file"):
        learner.prepare(sink.getvalue(), MAX_PIXELS)


def test_images_of_different_shapes_do_not_disturb_each_other(tmp_path: Path, photos: list[Path]) -> None:
    """A learner without Resize gives tensors of many shapes; get_preds would fail on such a batch."""
    folder = tmp_path / "digits"
    learners.write_digits(folder, 0, 64, by_label=True)
    learn = learners.digits_learner(folder, epochs=1)
    exported = learners.exported(learn, tmp_path / "export.pkl")
    learner = open_learner(Path(exported.path).read_bytes(), exported.sha256)
    images = [png((28, 28)), png((40, 30)), png((28, 28)), png((64, 64))]
    together = learner.predict([learner.prepare(image, MAX_PIXELS)[0] for image in images])
    for image, found in zip(images, together, strict=True):
        (alone,) = learner.predict([learner.prepare(image, MAX_PIXELS)[0]])
        assert isinstance(found, Predictions) and isinstance(alone, Predictions)
        np.testing.assert_allclose(found.outputs, alone.outputs, atol=1e-6)


def test_embedding_layer_of_a_plain_model_is_its_last_linear() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    name, layer = embedding_layer(model)
    assert (name, layer) == ("3", model[3])
    with pytest.raises(LearnerError, match='embedding = "none"'):
        embedding_layer(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("pad_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_padded_as_torchvision_does(pad_mode: str, mode: str) -> None:
    """Which fastai pads with; pads larger than the image too."""
    rng = np.random.default_rng(0)
    known = {"zeros": "constant", "border": "edge", "reflection": "reflect"}[pad_mode]
    for width, height, box in ((30, 20, (41, 47)), (7, 50, (64, 64)), (9, 5, (5, 31))):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        corner = (width - box[0]) // 2, (height - box[1]) // 2
        before = [max(-corner[0], 0), max(-corner[1], 0)]
        after = [max(box[0] - width + corner[0], 0), max(box[1] - height + corner[1], 0)]
        right, bottom = min(corner[0] + box[0], width), min(corner[1] + box[1], height)
        inside = image.crop((max(corner[0], 0), max(corner[1], 0), right, bottom))
        expected = pad(inside, [*before, *after], padding_mode=known)
        found = pixels._crop_pad(image, box, corner, pad_mode)
        assert found.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_what_the_last_layer_says_is_what_torch_makes_of_it(task: Any) -> None:
    """Extreme and missing values too, and a network with one output."""
    rng = np.random.default_rng(0)
    activation: Any = {"single_label": "softmax", "multi_label": "sigmoid", "regression": "none"}[task]
    for outputs in (1, 4):
        raw = (30 * rng.standard_normal((50, outputs))).astype(np.float32)
        raw[0, 0], raw[1, 0], raw[2, 0] = 1e30, -1e30, np.nan
        found = predictions(raw, None, task, Loss("loss", activation, 0.5))
        given = torch.from_numpy(raw)
        made = {"softmax": given.softmax(1), "sigmoid": given.sigmoid(), "none": given}[activation]
        assert found.outputs.dtype == np.float32 and found.outputs.shape == raw.shape
        np.testing.assert_allclose(found.outputs, made.numpy(), rtol=1e-5, atol=1e-7)
        if task == "single_label":
            assert found.energy is not None and found.energy.dtype == np.float32
            np.testing.assert_allclose(found.energy, given.logsumexp(1).numpy(), rtol=1e-6)
        if found.chosen is not None:
            np.testing.assert_array_equal(found.chosen, (made > 0.5).numpy())
