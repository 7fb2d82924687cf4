"""How an image looks, in three numbers that order images as the words for them do."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from drivetrain.properties import properties_of

PHOTO = Image.fromarray(load_sample_images().images[1])
BLACK = np.zeros((64, 64, 3), np.uint8)
WHITE = np.full((64, 64, 3), 255, np.uint8)
BOARD = np.repeat(((np.indices((64, 64)).sum(axis=0) % 2) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
HALVES = np.concatenate([BLACK[:32], WHITE[:32]])


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_black_is_dark_white_is_bright_and_neither_has_contrast() -> None:
    black, white = properties_of(BLACK), properties_of(WHITE)
    assert (black["brightness"], white["brightness"]) == pytest.approx((0, 1))
    assert black["contrast"] == white["contrast"] == pytest.approx(0)
    assert black["sharpness"] == white["sharpness"] == pytest.approx(0)


def test_a_checkerboard_has_all_the_contrast_and_jumps_at_every_pixel() -> None:
    board, halves = properties_of(BOARD), properties_of(HALVES)
    assert board["brightness"] == halves["brightness"] == pytest.approx(0.5)
    assert board["contrast"] == halves["contrast"] == pytest.approx(0.5)
    assert board["sharpness"] > 5 * halves["sharpness"] > 0


def test_the_more_a_photo_is_blurred_the_less_sharp_it_is() -> None:
    found = [properties_of(array(PHOTO.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 5)]
    sharpness = [each["sharpness"] for each in found]
    assert sharpness == sorted(sharpness, reverse=True) and sharpness[0] > 3 * sharpness[-1]
    assert found[0]["brightness"] == pytest.approx(found[-1]["brightness"], abs=0.01)


def test_noise_is_sharper_and_less_light_is_darker_with_less_contrast() -> None:
    usual = properties_of(array(PHOTO))
    noise = np.random.default_rng(0).normal(0, 25, array(PHOTO).shape)
    noisy = properties_of((array(PHOTO) + noise).clip(0, 255).astype(np.uint8))
    dark = properties_of((array(PHOTO) * 0.5).astype(np.uint8))
    assert noisy["sharpness"] > 1.3 * usual["sharpness"]
    assert dark["brightness"] == pytest.approx(usual["brightness"] / 2, rel=0.02)
    assert dark["contrast"] == pytest.approx(usual["contrast"] / 2, rel=0.02)


def test_mean_and_spread_are_those_of_the_pixels() -> None:
    light = array(PHOTO.convert("L")).astype(float) / 255
    found = properties_of(array(PHOTO))
    assert found["brightness"] == pytest.approx(light.mean())
    assert found["contrast"] == pytest.approx(light.std())


def test_a_wide_bright_even_image_has_its_small_contrast() -> None:
    """Where the spread is small beside the light, sums that round lose it."""
    light = np.random.default_rng(0).integers(250, 253, (400, 900)).astype(np.uint8)
    found = properties_of(light[:, :, None])
    assert found["contrast"] == pytest.approx(light.std() / 255, rel=1e-9)


@pytest.mark.parametrize("shape", [(3, 3), (4, 5), (64, 33)])
def test_sharpness_is_to_the_bit_that_of_a_filter(shape: tuple[int, int]) -> None:
    jumps = ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 4, -1, 0, -1, 0), scale=8, offset=128)
    random = np.random.default_rng(0)
    # All values, and jumps from end to end, beyond what 8 bits hold.
    for most, step in ((256, 1), (2, 255)) * 20:
        light = (random.integers(0, most, shape) * step).astype(np.uint8)
        filtered = np.asarray(Image.fromarray(light).filter(jumps))[1:-1, 1:-1] / 255
        assert properties_of(light[:, :, None])["sharpness"] == pytest.approx(filtered.std(), abs=1e-12)


def test_a_grey_image_is_measured_as_the_same_one_in_colour() -> None:
    grey = array(PHOTO.convert("L"))[:, :, None]
    assert properties_of(grey) == pytest.approx(properties_of(np.repeat(grey, 3, axis=2)), abs=1e-6)


@pytest.mark.parametrize(
    "item",
    [
        np.zeros((3, 64, 64), np.float32),
        np.zeros((64, 64), np.uint8),
        np.zeros((2, 64, 3), np.uint8),
        np.zeros((64, 2, 3), np.uint8),
        "image",
        None,
    ],
    ids=["float", "no channel", "too low", "too narrow", "text", "none"],
)
def test_what_is_no_plain_image_has_no_properties(item: object) -> None:
    assert properties_of(item) == {}


def test_a_tensor_has_no_properties() -> None:
    """fastai's own pipelines hand out tensors, whose pixels may be normalised."""
    torch = pytest.importorskip("torch")
    assert properties_of(torch.zeros((3, 64, 64), dtype=torch.uint8)) == {}
