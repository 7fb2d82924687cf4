"""What a lens learns from a reference: axes, features, edges, regions; and that it comes back as it was kept."""

import io

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel
from worlds import CLASSES, DEPTH, changed, frames, some

from drivetrain.lens import (
    BINS,
    COMPONENTS,
    FEATURES,
    IMAGES_PER_REGION,
    REGIONS,
    concatenated,
    from_arrays,
    learn,
    plain_scores,
)


def crooked(number: int, seed: int) -> np.ndarray:
    """Embeddings along no axis, of other scales, far from 0."""
    return some(number, seed).embeddings @ np.random.default_rng(0).standard_normal((DEPTH, DEPTH)) * 40 + 9


def test_the_whitened_reference_has_unit_variance_along_each_axis_and_no_mean() -> None:
    reference = changed(some(700, 1), embeddings=crooked(700, 1))
    white = learn(reference, 0).whiten(reference)
    np.testing.assert_allclose(np.cov(white.T), np.eye(DEPTH), atol=1e-8)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-8)


def test_the_first_axis_is_the_one_that_varies_most() -> None:
    embeddings = some(700, 1).embeddings * np.linspace(1, 9, DEPTH)
    lens = learn(changed(some(700, 1), embeddings=embeddings), 0)
    assert np.abs(lens.axes[:, 0]).argmax() == DEPTH - 1
    assert (np.diff(lens.variances) <= 0).all()
    assert lens.variances.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("images", "depth", "axes"), [(640, 16, 16), (160, 16, 4), (5, 16, 1), (5120, 200, COMPONENTS)]
)
def test_there_are_forty_images_for_each_axis_and_no_more_axes_than_128(images: int, depth: int, axes: int) -> None:
    lens = learn(some(images, 1, depth=depth), 0)
    assert lens.axes.shape == (depth, axes)


def test_copies_are_no_images_to_learn_an_axis_from() -> None:
    """128 axes from 1,000 groups alarmed on 6 of 10 nights without a shift."""
    copies = frames(160, 4, 1)
    assert learn(copies, 0).axes.shape == (DEPTH, 16)
    assert learn(copies.grouped(np.arange(640) // 4), 0).axes.shape == (DEPTH, 4)


def test_directions_without_variance_are_not_blown_up() -> None:
    """Rounding is no signal: an axis that the reference never moves along must not outweigh all others."""
    embeddings = np.column_stack([some(500, 1).embeddings, np.full(500, 3.0)])
    lens = learn(changed(some(500, 1), embeddings=embeddings), 0)
    night = np.column_stack([some(100, 2).embeddings, np.full(100, 3.0) + 1e-9])
    assert np.abs(lens.whiten(changed(some(100, 2), embeddings=night))).max() < 10


def test_its_arrays_make_the_same_lens_again() -> None:
    reference, night = some(300, 1), some(50, 2, shift=1.0)
    lens = learn(reference, 7)
    sink = io.BytesIO()
    np.savez(sink, **lens.arrays())
    sink.seek(0)
    with np.load(sink) as arrays:
        again = from_arrays(arrays)
    for name, block in lens.blocks(night).items():
        np.testing.assert_array_equal(block, again.blocks(night)[name])
    np.testing.assert_array_equal(lens.regions(lens.whiten(night)), again.regions(again.whiten(night)))
    np.testing.assert_array_equal(lens.energy_edges, again.energy_edges)


def test_a_lens_without_one_of_its_arrays_is_refused() -> None:
    arrays = learn(some(100, 1), 0).arrays()
    del arrays["centres"]
    with pytest.raises(KeyError, match="centres"):
        from_arrays(arrays)


def test_the_same_seed_learns_the_same_and_another_one_other_features() -> None:
    one, same, other = (learn(some(300, 1), seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.weights, same.weights)
    np.testing.assert_array_equal(one.centres, same.centres)
    assert not np.allclose(one.weights, other.weights)


def test_mmd_is_near_the_exact_one_of_the_gaussian_kernel() -> None:
    """The biased one (a V-statistic), of the whitened embeddings, as wide as their median distance."""
    reference, night = some(300, 1), some(150, 2, shift=1.5)
    found = []
    for seed in range(6):
        lens = learn(reference, seed)
        gap = lens.blocks(night)["mmd"].mean(axis=0) - lens.blocks(reference)["mmd"].mean(axis=0)
        found.append(float((gap**2).sum()))
    x, y = lens.whiten(reference), lens.whiten(night)
    gamma = 1 / (2 * np.median(pdist(x)) ** 2)
    exact = rbf_kernel(x, x, gamma).mean() + rbf_kernel(y, y, gamma).mean() - 2 * rbf_kernel(x, y, gamma).mean()
    assert found == pytest.approx([exact] * 6, rel=0.15)
    assert np.mean(found) == pytest.approx(exact, rel=0.06)


def test_the_features_of_the_softmax_have_nearly_unit_variance() -> None:
    reference = some(400, 1)
    block = learn(reference, 0).blocks(reference)["bbsd"]
    # As though two images more were sure of another class.
    more = 2 / 400 / reference.outputs.var(axis=0)
    np.testing.assert_allclose(block.std(axis=0), 1 / np.sqrt(1 + more), rtol=1e-4)


def test_a_value_of_large_scale_drowns_none_of_small_scale() -> None:
    values = np.random.default_rng(0).standard_normal((400, 2)) * [1000, 1]
    regression = changed(some(400, 1), outputs=values, labels=np.zeros(0, np.int64))
    block = learn(regression, 0).blocks(regression)["bbsd"]
    assert (block.std(axis=0) > 0.8).all()


def test_every_statistic_has_its_features() -> None:
    reference = some(200, 1)
    blocks = learn(reference, 0).blocks(reference)
    shapes = {name: block.shape for name, block in blocks.items()}
    assert shapes == {
        "mmd": (200, FEATURES),
        "bbsd": (200, CLASSES),
        "confidence": (200, 1),
        "energy": (200, 1),
        "labels": (200, CLASSES),
    }
    np.testing.assert_array_equal(blocks["labels"].argmax(axis=1), reference.labels)


def test_without_embeddings_it_sees_the_outputs() -> None:
    reference = changed(some(400, 1), embeddings=np.zeros((400, 0)))
    lens = learn(reference, 0)
    assert "mmd" not in lens.blocks(reference)
    assert lens.whiten(reference).shape == (400, CLASSES)
    # A softmax sums to 1: the last axis has no variance and is not made to have some.
    np.testing.assert_allclose(lens.whiten(reference)[:, : CLASSES - 1].std(axis=0), 1, rtol=0.01)
    assert np.isfinite(lens.whiten(reference)).all()


def test_without_energy_there_is_no_block_and_no_edge() -> None:
    reference = changed(some(200, 1), energy=np.full(200, np.nan))
    lens = learn(reference, 0)
    assert set(lens.blocks(reference)) == {"mmd", "bbsd", "confidence", "labels"}
    assert len(lens.energy_edges) == 0


def test_a_regression_has_neither_labels_nor_confidence() -> None:
    nothing = np.full(200, np.nan)
    reference = changed(
        some(200, 1), outputs=some(200, 1).embeddings[:, :1], confidence=nothing, energy=nothing,
        labels=np.zeros(0, np.int64),
    )  # fmt: skip
    assert set(learn(reference, 0).blocks(reference)) == {"mmd", "bbsd"}
    assert len(reference.take(np.arange(5)).labels) == 0
    assert len(concatenated([reference, reference])) == 400


def test_energy_has_equal_bins_with_open_ends() -> None:
    edges = learn(some(500, 1), 0).energy_edges
    assert len(edges) == BINS + 1
    assert (edges[0], edges[-1]) == (-np.inf, np.inf)
    np.testing.assert_allclose(np.diff(edges[1:-1]), np.diff(edges[1:3])[0])


@pytest.mark.parametrize(
    ("images", "regions"), [(IMAGES_PER_REGION * REGIONS, REGIONS), (1500, REGIONS), (100, 4), (10, 1)]
)
def test_there_are_enough_images_for_each_region(images: int, regions: int) -> None:
    reference = some(images, 1)
    lens = learn(reference, 0)
    where = lens.regions(lens.whiten(reference))
    assert len(lens.centres) == regions
    assert (where.shape, int(where.min()) >= 0, int(where.max()) < regions) == ((images,), True, True)


def test_a_region_holds_what_is_nearest_to_its_centre() -> None:
    reference = some(500, 1)
    lens = learn(reference, 0)
    np.testing.assert_array_equal(lens.regions(lens.centres), np.arange(len(lens.centres)))
    assert len(lens.regions(np.zeros((0, DEPTH)))) == 0


def test_images_are_taken_in_the_order_asked_for_with_all_that_is_known_of_them() -> None:
    scores = changed(some(10, 1), groups=np.arange(10) * 3, truth=np.arange(10) - 1)
    taken = scores.take(np.array([7, 2]))
    assert (taken.groups.tolist(), taken.truth.tolist(), len(taken)) == ([21, 6], [6, 1], 2)
    np.testing.assert_array_equal(taken.embeddings, scores.embeddings[[7, 2]])
    assert scores.grouped(np.zeros(10, np.int64)).groups.sum() == 0


def test_scores_of_a_softmax_alone() -> None:
    outputs = np.array([[0.2, 0.8], [0.7, 0.3]])
    scores = plain_scores(np.zeros((2, 0)), outputs)
    assert (scores.labels.tolist(), scores.confidence.tolist(), scores.truth.tolist()) == ([1, 0], [0.8, 0.7], [-1, -1])
    assert len(plain_scores(np.zeros((0, 3)), np.zeros((0, 2)))) == 0
