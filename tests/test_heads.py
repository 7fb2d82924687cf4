"""Whether a run's embeddings may go through a new head, in words; and what the head says of them, column by column."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import SETTINGS, SHA256, begun, committed, frozen, images
from fastai.vision.all import ConvLayer, create_head
from torch import nn

from drivetrain.config import Config
from drivetrain.errors import LearnerError, RunError
from drivetrain.export import LearnerInfo
from drivetrain.heads import columns_of, why_not
from drivetrain.layout import Layout
from drivetrain.learner import difference, open_learner
from drivetrain.learner.body import body_of, head_of
from drivetrain.outcomes import outcome
from drivetrain.planruns import counting_run
from drivetrain.reference import comparable
from drivetrain.root import to_json
from drivetrain.run import Run
from drivetrain.schema import row_schema
from drivetrain.store import Store

NEW = "7c" * 32


@pytest.fixture
def store() -> Store:
    return Store({})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


def info(sha256: str, **changes: Any) -> LearnerInfo:
    known = LearnerInfo(
        sha256[:12], sha256, "single_label", ("cat", "dog"), 2, "1.2", 3, "Sequential", read="data", body="b", road="r"
    )
    return replace(known, **changes)


def asked(
    store: Store, layout: Layout, old: dict[str, Any], new: dict[str, Any], run: dict[str, Any], **config: Any
) -> str:
    """Why the embeddings of a night's run can't be used, two learners being what they are said to be."""
    store.create(layout.learner(SHA256[:12]), to_json(asdict(info(SHA256, **old))))
    made = begun(store, layout, frozen(store, layout, images(3)), **run)
    return why_not(store, layout, made, info(NEW, **new), Config(**config))


# --- may it ---


def test_the_same_body_and_the_same_road_may(store: Store, layout: Layout) -> None:
    assert asked(store, layout, {}, {}, {}) == ""


@pytest.mark.parametrize(
    ("run", "config", "reason"),
    [
        ({"embedding_size": 0}, {}, "has no embeddings"),
        ({}, {"embedding": "none"}, "keeps no embeddings"),
        ({"settings": SETTINGS | {"engine": "int8"}}, {}, "the engine of shop-2026-01-02-5a5a5a5a"),
        ({}, {"engine": "int8"}, "the engine of the new run is int8"),
        ({}, {"embedding": "1.4"}, "embedding was 'head' there and is '1.4' here"),
        ({}, {"precision": "float16"}, "precision was 'float32' there and is 'float16' here"),
        ({}, {"max_pixels": 5}, "max_pixels was 64000000 there and is 5 here"),
        ({"model_id": "gone"}, {}, "nothing is known of the learner gone"),
    ],
)
def test_what_speaks_against_it(
    store: Store, layout: Layout, run: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    assert reason in asked(store, layout, {}, {}, run, **config)


def test_another_exact_engine_is_no_reason(store: Store, layout: Layout) -> None:
    assert asked(store, layout, {}, {}, {"settings": SETTINGS | {"engine": "openvino"}}, engine="torch") == ""


@pytest.mark.parametrize(("old", "new"), [({"read": "fastai"}, {}), ({}, {"read": "fastai"})])
def test_a_learner_that_was_unpickled_is_never_called_alike(
    store: Store, layout: Layout, old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert "running its code" in asked(store, layout, old, new, {})


# --- the body ---


def network(seed: int = 0, **changes: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(ConvLayer(3, 4, stride=2), ConvLayer(4, 8, stride=2))
    return nn.Sequential(body, create_head(8, 2, **changes)).eval()


def copied(change: Callable[[nn.Sequential], Any]) -> str:
    """In what a network and its copy differ after a change of the copy."""
    one, other = network(), network()
    change(other)
    return difference(body_of(one, "1.2"), body_of(other, "1.2"))


def add_one(model: nn.Module, *names: str) -> None:
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in names:
                tensor += 1


def test_another_head_is_the_same_body() -> None:
    def change(model: nn.Sequential) -> None:
        model[1][8] = nn.Linear(512, 5)
        add_one(model, "1.2.running_mean", "1.8.weight")

    assert copied(change) == ""


def test_one_number_of_a_buffer_tells_and_batch_norms_are_named() -> None:
    found = copied(lambda model: add_one(model, "0.1.1.running_var"))
    assert found.startswith("the body differs in 1 of 12 tensors, all of batch norms")
    assert "train_bn=False" in found and "BnFreeze" in found


def test_a_body_that_was_trained_is_not_blamed_on_batch_norms() -> None:
    found = copied(lambda model: add_one(model, "0.1.1.running_var", "0.0.0.weight"))
    assert found.startswith("the body differs in 2 of 12 tensors: it was trained too")


def test_a_setting_of_a_layer_tells_though_no_tensor_differs() -> None:
    def change(model: nn.Sequential) -> None:
        model[0][1][0].dilation = (2, 2)

    assert "built otherwise: 0.1.0 is" in copied(change)


def test_a_layer_without_tensors_tells() -> None:
    def change(model: nn.Sequential) -> None:
        model[0][1][2] = nn.Tanh()

    assert "0.1.2 is torch.nn.modules.activation.ReLU" in copied(change)


def test_another_embedding_layer_tells() -> None:
    assert "another layer: 1.2 there, 1.4 here" in difference(body_of(network(), "1.2"), body_of(network(), "1.4"))


def test_the_digest_is_the_same_for_the_same_body_only() -> None:
    one, same, other = network(), network(), network()
    add_one(same, "1.8.weight")
    add_one(other, "0.0.0.weight")
    assert body_of(one, "1.2").digest == body_of(same, "1.2").digest != body_of(other, "1.2").digest


class Last(nn.Module):
    """A network whose last layer is not in a Sequential; ``behind`` it may do something more."""

    def __init__(self, behind: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.behind = nn.Linear(3, 2), behind

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.behind(self.fc(pixels.mean((2, 3))))


def head_alone(model: nn.Module, name: str, pixels: torch.Tensor) -> nn.Module:
    def run() -> None:
        with torch.inference_mode():
            model(pixels)

    return head_of(model.eval(), name, dict(model.named_modules())[name], run)


def test_a_last_layer_in_code_is_a_head_where_nothing_comes_behind_it() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    model = Last(lambda raw: raw)
    assert head_alone(model, "fc", pixels) is model.fc


@pytest.mark.parametrize("behind", [torch.sigmoid, torch.sigmoid_])
def test_what_a_network_does_behind_its_last_layer_is_not_forgotten(behind: Any) -> None:
    with pytest.raises(LearnerError, match=r"own code alone|something else alone"):
        head_alone(Last(behind), "fc", torch.rand(2, 3, 8, 8))


def test_maps_of_which_only_the_mean_is_stored_are_no_embedding_for_a_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LearnerError, match="no vector"):
        head_alone(model, "1", torch.rand(2, 3, 8, 8))


# --- what the head says ---


def expected(learner: Any, embeddings: np.ndarray) -> pa.Table:
    """The same row by row, as images are scored."""
    rows = [outcome(learner.info, learner.predict_from(each[None])) | {"embedding": None} for each in embeddings]
    return pa.Table.from_pylist(rows, schema=row_schema(0))


def test_what_is_not_finite_is_left_to_the_images(digits_export: learners.Exported) -> None:
    """It would be a scored row with NaN for an answer; the images' road makes a failed one of it."""
    learner = open_learner(Path(digits_export.path).read_bytes(), digits_export.sha256)
    with pytest.raises(RunError, match="--full"):
        columns_of(learner, np.full((2, learner.info.embedding_size), np.nan, np.float32))


def same_columns(export: learners.Exported) -> None:
    learner = open_learner(Path(export.path).read_bytes(), export.sha256)
    embeddings = np.random.default_rng(0).normal(1, 1, (50, learner.info.embedding_size)).astype(np.float32)
    found, rows = columns_of(learner, embeddings), expected(learner, embeddings)
    schema = row_schema(0)
    for name in schema.names:
        if name not in found:
            assert rows[name].null_count == len(rows), name
        elif pa.types.is_floating(schema.field(name).type):
            assert np.allclose(found[name].to_numpy(), rows[name].to_numpy(), atol=1e-5), name
        elif name in ("probs", "values"):
            assert np.allclose(np.stack(found[name].to_pylist()), np.stack(rows[name].to_pylist()), atol=1e-5), name
        else:
            assert found[name].cast(schema.field(name).type).to_pylist() == rows[name].to_pylist(), name


def test_columns_of_a_single_label_learner(digits_export: learners.Exported) -> None:
    same_columns(digits_export)


@pytest.mark.slow
@pytest.mark.parametrize("make", [learners.multi_label_learner, learners.regression_learner])
def test_columns_of_other_tasks(make: Any, tmp_path: Path) -> None:
    photos = learners.write_photos(tmp_path / "photos", 16)
    same_columns(learners.exported(make(photos), tmp_path / "export.pkl"))


# --- runs ---


def test_a_head_only_run_is_comparable_with_a_full_one_and_never_the_same() -> None:
    assert comparable(SETTINGS | {"head_of": "some-run"}) == comparable(SETTINGS | {"engine": "openvino"})
    assert comparable(SETTINGS | {"head_of": "some-run"}) != comparable(SETTINGS | {"engine": "int8"})


def test_a_record_of_before_loads_and_was_made_from_images(store: Store, layout: Layout) -> None:
    run = begun(store, layout, frozen(store, layout, images(3)))
    before = {key: value for key, value in asdict(run.record).items() if key != "made_from"}
    store.replace(run.paths.record, to_json(before))
    assert not Run.find(store, layout, run.record.run_id).record.head_only


def test_the_counting_run_without_a_learners_own(store: Store, layout: Layout) -> None:
    plan = frozen(store, layout, images(3))
    runs = [begun(store, layout, plan, created="2026-01-03T00:00:00+00:00")]
    runs.append(
        begun(store, layout, plan, sha256=NEW, run_id="shop-2026-01-02-new", created="2026-01-04T00:00:00+00:00")
    )
    for run in runs:
        committed(run)
    about = (store, layout, "shop", "night", "2026-01-02")
    newest, other = counting_run(*about), counting_run(*about, but=NEW[:12])
    assert newest and newest.record.model_id == NEW[:12]
    assert other and other.record.model_id == SHA256[:12]
