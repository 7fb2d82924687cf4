"""Each damage changes an image and nothing of its shape, and a learner scores what came of it."""

import io
from pathlib import Path

import learners
import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from drivetrain.config import Config
from drivetrain.layout import Layout
from drivetrain.plant import DAMAGES, Planter, Planting, PlantSettings, damaged
from drivetrain.reference import scores_of
from drivetrain.run import Run
from drivetrain.score import score_images
from drivetrain.shard import properties_of
from drivetrain.store import Store

PHOTO = Image.fromarray(load_sample_images().images[0])


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_changes_pixels_and_keeps_the_size(name: str) -> None:
    before = encoded(PHOTO)
    after = damaged(before, DAMAGES[name])
    assert pixels(after).shape == pixels(before).shape
    assert np.abs(pixels(after) - pixels(before)).mean() > 1
    assert damaged(before, DAMAGES[name]) == after, "the same each time"


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_and_size_can_be_damaged(name: str, mode: str) -> None:
    small = PHOTO.resize((5, 3)).convert(mode)
    after = damaged(encoded(small, "TIFF"), DAMAGES[name])
    assert pixels(after).shape == (3, 5, 3)


@pytest.mark.parametrize(
    ("name", "looks", "more"),
    [
        ("darker (0.6 of the light)", "brightness", False),
        ("blurred (1 % of the width)", "sharpness", False),
        ("noise (20 of 255)", "sharpness", True),
    ],
)
def test_a_damage_is_what_its_name_says(name: str, looks: str, more: bool) -> None:
    before = encoded(PHOTO)
    was, now = (
        properties_of(pixels(each).astype(np.uint8))[looks] for each in (before, damaged(before, DAMAGES[name]))
    )
    assert (now > 1.1 * was) if more else (now < 0.9 * was)
    if looks == "brightness":
        assert now == pytest.approx(0.6 * was, rel=0.02)


def test_what_is_no_image_raises() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        damaged(b"no image", DAMAGES["noise (20 of 255)"])


@pytest.mark.slow
def test_a_planter_scores_damaged_images_with_the_runs_learner(
    tmp_path: Path, digits_export: learners.Exported
) -> None:
    learners.write_digits(tmp_path / "images", 0, 40)
    config = Config(
        root=str(tmp_path / "root"), learner=digits_export.path, trust=(digits_export.sha256,), actors=0,
        images=str(tmp_path / "images"), name="all", source="digits",
    )  # fmt: skip
    result = score_images(config)
    uris = sorted(str(path) for path in (tmp_path / "images").iterdir())
    Path(uris[7]).unlink()
    record = Run.find(Store(), Layout(config.root or ""), result["run_id"]).record
    plantings = tuple(Planting(tuple(uris), change) for change in (None, *DAMAGES.values()))
    planter = Planter(
        PlantSettings(
            {}, config.root or "", record.sha256, record.settings, record.embedding_size, plantings,
            vouched=True, one_thread=True,
        )
    )  # fmt: skip
    usual = Store().read_table(f"{result['parts']}/part-00000.parquet")
    before = scores_of(usual, record.vocab)
    kept = np.delete(before.embeddings, 7, axis=0)
    for task, name in enumerate(["as they are", *DAMAGES]):
        rows = planter.run(task)
        assert rows["uri"].to_pylist() == uris and rows.schema == usual.schema.remove_metadata()
        assert [row["error"] for row in rows.to_pylist() if row["status"] != "ok"] == ["vanished"]
        scores = scores_of(rows.filter(pc.equal(rows["status"], "ok")), record.vocab)
        assert scores.embeddings.shape == (39, before.embeddings.shape[1])
        assert np.isfinite(scores.outputs).all() and np.isfinite(scores.properties).all()
        away = np.abs(scores.embeddings - kept).mean()
        if task == 0:
            assert away < 1e-3 * np.abs(kept).mean(), "as the run scored them"
        else:
            assert away > 1e-3 * np.abs(kept).mean(), name
