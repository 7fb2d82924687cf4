"""Each mild change is what its name says, leaves no mark of its own, and can be done to any image."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from drivetrain.perturbations import PERTURBATIONS, moved, turned
from drivetrain.plant import DAMAGES, MOST_ENLARGED, damaged

PHOTO = Image.fromarray(load_sample_images().images[0])
WHITE = Image.new("RGB", (60, 40), "white")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_changes_pixels_the_same_way_each_time(name: str) -> None:
    before = encoded(PHOTO)
    after = damaged(before, PERTURBATIONS[name])
    assert damaged(before, PERTURBATIONS[name]) == after
    height, width, _ = pixels(before).shape
    if name.startswith("enlarged"):
        assert pixels(after).shape == (round(1.5 * height), round(1.5 * width), 3)
    else:
        assert pixels(after).shape == (height, width, 3)
        assert np.abs(pixels(after) - pixels(before)).mean() > 0.5


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_no_border_tells_of_the_change(name: str) -> None:
    """A black corner would be a sign that no camera makes, and learners would see it."""
    after = pixels(damaged(encoded(WHITE), PERTURBATIONS[name]))
    assert after.min() >= (200 if "darker" in name else 250)
    assert after.max() - after.min() <= 2


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (300, 2)])
def test_images_of_every_mode_and_size_can_be_changed(name: str, mode: str, size: tuple[int, int]) -> None:
    after = pixels(damaged(encoded(PHOTO.resize(size).convert(mode), "TIFF"), PERTURBATIONS[name]))
    assert after.size / 3 <= MOST_ENLARGED * size[0] * size[1]


def test_moving_moves_by_whole_pixels() -> None:
    before = np.asarray(PHOTO)
    right, down = round(0.04 * PHOTO.width), round(0.04 * PHOTO.height)
    assert (np.asarray(moved(PHOTO, right=0.04))[:, right:] == before[:, :-right]).all()
    assert (np.asarray(moved(PHOTO, down=0.04))[down:] == before[:-down]).all()
    assert (np.asarray(moved(PHOTO, right=-0.04))[:, :-right] == before[:, right:]).all()


def test_turning_is_about_the_middle_and_undone_by_turning_back() -> None:
    back = np.asarray(turned(turned(PHOTO, 5), -5)).astype(float)
    middle = (slice(100, -100), slice(100, -100))
    away = np.abs(np.asarray(turned(PHOTO, 5)).astype(float) - np.asarray(PHOTO))[middle].mean()
    assert np.abs(back - np.asarray(PHOTO))[middle].mean() < 0.4 * away


def test_light_is_a_fifth_more_or_less() -> None:
    grey = encoded(Image.new("RGB", (8, 8), (100, 100, 100)))
    assert pixels(damaged(grey, PERTURBATIONS["20 % darker"])).max() == 80
    assert pixels(damaged(grey, PERTURBATIONS["20 % brighter"])).max() == 120


def test_stronger_compression_changes_more() -> None:
    before = pixels(encoded(PHOTO))
    changes = [PERTURBATIONS[f"compressed to JPEG quality {q}"] for q in (90, 70, 50)] + [DAMAGES["JPEG of quality 10"]]
    found = [np.abs(pixels(damaged(encoded(PHOTO), change)) - before).mean() for change in changes]
    assert found == sorted(found) and found[0] < found[1] < found[2] < found[3]
