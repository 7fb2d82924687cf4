"""`drivetrain behave` on learners whose behaviour is known, since their networks are set by hand and never trained.

Images are red or blue. `steady` tells them by their colour; `dim` calls everything red unless it is dark, and so turns
when the light does; `lost` knows no blue.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from browser import visit
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    ColReader,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    Learner,
    MSELossFlat,
    MultiCategoryBlock,
    RegressionBlock,
    Resize,
)
from learners import Exported, exported
from PIL import Image
from servers import RayCluster
from torch import nn

import drivetrain
from drivetrain import Config, DrivetrainError, build_reference, check_behaviour
from drivetrain.aliases import name_next
from drivetrain.behaviour import latest_behaviour
from drivetrain.cli import main
from drivetrain.errors import SettingError, TrustError
from drivetrain.layout import Layout
from drivetrain.store import Store
from drivetrain.submit import submit_command

DARK, IMAGES = 0.42, 40
SIZE = (40, 32)


def write_images(folder: Path, count: int, seed: int) -> None:
    """Red and blue images of a mean light between 0.44 and 0.5, with some texture."""
    rng = np.random.default_rng(seed)
    for place in range(count):
        label = ("red", "blue")[place % 2]
        pixels = rng.normal(0, 0.05, (SIZE[1], SIZE[0], 3)) + rng.uniform(0.45, 0.49)
        pixels[..., 0 if label == "red" else 2] += 0.12
        pixels[..., 2 if label == "red" else 0] -= 0.12
        path = folder / label / f"i{seed}-{place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(path)


def by_hand(weight: list[float], bias: float) -> nn.Module:
    """A network that says red where the weighted mean colour lies above ``-bias``, and blue elsewhere."""
    last = nn.Linear(3, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[0.0] * 3, weight]))
        last.bias.copy_(torch.tensor([0.0, bias]))
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


STEADY = by_hand([9.0, 0.0, -9.0], 0.0)
DIM = by_hand([30.0, 30.0, 30.0], -90 * DARK)
LOST = by_hand([0.0, 0.0, 0.0], 9.0)


def of_other_tasks(folder: Path) -> dict[str, Learner]:
    """`tags` says red, and bright unless it is dark; `light` says ten times the mean light."""
    paths = sorted((folder / "all").rglob("*.png"))
    frame = pd.DataFrame({"fname": paths, "tags": ["bright red", "bright"] * (len(paths) // 2), "light": 4.7})
    two = by_hand([30.0, 30.0, 30.0], -90 * DARK)
    with torch.no_grad():
        two[-1].weight.copy_(torch.tensor([[30.0, 30.0, 30.0], [9.0, 0.0, -9.0]]))
        two[-1].bias.copy_(torch.tensor([-90 * DARK, 0.0]))
    one = nn.Sequential(*by_hand([0.0] * 3, 0.0)[:-1], nn.Linear(3, 1))
    with torch.no_grad():
        one[-1].weight.fill_(10 / 3)
        one[-1].bias.zero_()
    made = {}
    for name, block, column, model, loss in (
        ("tags", MultiCategoryBlock, ColReader("tags", label_delim=" "), two, BCEWithLogitsLossFlat(thresh=0.5)),
        ("light", RegressionBlock, ColReader("light"), one, MSELossFlat()),
    ):
        data = DataBlock((ImageBlock, block), get_x=ColReader("fname"), get_y=column)
        made[name] = Learner(data.dataloaders(frame, bs=4, num_workers=0), model, loss_func=loss, path=folder)
    return made


@dataclass(frozen=True)
class World:
    """A root with a reference of the learner `steady`, and exports."""

    folder: Path
    exports: dict[str, Exported]

    @property
    def root(self) -> str:
        return str(self.folder / "root")

    def config(self, name: str, **more: Any) -> Config:
        about = {"root": self.root, "learner": self.exports[name].path, "actors": 0, "source": "shop"}
        return Config(**about | more)

    def crown(self, name: str) -> None:
        sha256 = self.exports[name].sha256
        name_next(Store(), Layout(self.root), "shop", "champion", model_id=sha256[:12], sha256=sha256, reason="test")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("behave")
    write_images(folder / "all" / "train", 20, 1)
    write_images(folder / "all" / "valid", IMAGES, 2)
    dls = ImageDataLoaders.from_folder(folder / "all", train="train", valid="valid", bs=4, num_workers=0)
    exports = {
        name: exported(Learner(dls, model, path=folder), folder / f"{name}.pkl")
        for name, model in (("steady", STEADY), ("dim", DIM), ("lost", LOST))
    }
    exports |= {name: exported(learn, folder / f"{name}.pkl") for name, learn in of_other_tasks(folder).items()}
    world = World(folder, exports)
    for name in ("steady", "dim"):
        build_reference(world.config(name, images=str(folder / "all")))
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """A copy of the root for one test."""
    shutil.copytree(made.root, tmp_path / "root")
    return World(tmp_path, made.exports)


def failed(result: dict[str, Any]) -> list[str]:
    return [each["perturbation"] for each in result["perturbations"] if not each["passed"]]


def record_of(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(result["behaviour"]).read_text())
    return found


def test_a_learner_that_minds_the_light_is_caught_there_and_the_champion_is_not(world: World) -> None:
    world.crown("steady")
    result = check_behaviour(world.config("dim"))
    assert failed(result) == ["20 % darker"] and result["passed"] is False
    assert result["against"] == world.exports["steady"].sha256[:12]
    (dark,) = (each for each in result["perturbations"] if not each["passed"])
    assert (dark["n"], dark["stable"], dark["champion_stable"], dark["difference"]) == (IMAGES, 0, IMAGES, -1.0)
    assert result["sentence"] == "Failed: 40 of 40 answers turn once the image is 20 % darker, the champion's 0."
    broke = [each for each in record_of(result)["broke"] if each["perturbation"] == "20 % darker"]
    assert len(broke) == IMAGES
    assert broke[0]["learner"] == {"from": ["red"], "to": ["blue"], "stayed": False}
    assert broke[0]["champion"]["stayed"] and broke[0]["champion"]["from"] == broke[0]["champion"]["to"]


def test_the_steady_one_passes_beside_the_brittle_one(world: World) -> None:
    world.crown("dim")
    result = check_behaviour(world.config("steady"))
    assert result["passed"] is True and failed(result) == []
    assert result["sentence"].startswith("Passed: held against the champion")


@pytest.mark.parametrize(("name", "passed"), [("steady", True), ("dim", False)])
def test_without_a_champion_the_floor_decides(world: World, name: str, passed: bool) -> None:
    result = check_behaviour(world.config(name))
    assert (result["passed"], result["against"]) == (passed, None)
    assert failed(result) == ([] if passed else ["20 % darker"])
    assert all(each["champion_stable"] is None for each in result["perturbations"])


def test_the_champion_itself_has_nobody_beside_it(world: World) -> None:
    world.crown("steady")
    assert check_behaviour(world.config("steady"))["against"] is None


def test_the_only_champion_under_the_root_is_found_without_a_source(world: World) -> None:
    world.crown("steady")
    assert check_behaviour(world.config("dim", source=None))["against"] == world.exports["steady"].sha256[:12]
    sha256 = world.exports["dim"].sha256
    name_next(Store(), Layout(world.root), "other", "champion", model_id=sha256[:12], sha256=sha256, reason="test")
    with pytest.raises(SettingError, match=r"different champions .*--source"):
        check_behaviour(world.config("lost", source=None))


def test_held_out_images_alone_are_looked_at(world: World) -> None:
    result = check_behaviour(world.config("steady", behaviour_images=1000))
    assert result["images"]["n"] == IMAGES and result["images"]["held_out"]


def test_a_learner_without_a_reference_takes_the_champions_images(world: World) -> None:
    world.crown("steady")
    result = check_behaviour(world.config("lost"))
    assert world.exports["steady"].sha256[:8] in result["images"]["reference"]
    assert result["passed"], "who says red to everything is stable"


def test_without_any_reference_it_says_what_to_build(world: World) -> None:
    with pytest.raises(SettingError, match="drivetrain reference"):
        check_behaviour(world.config("lost"))


def test_a_model_of_the_root_is_named_by_its_id(world: World) -> None:
    result = check_behaviour(world.config("steady", learner=world.exports["dim"].sha256[:12]))
    assert result["model_id"] == world.exports["dim"].sha256[:12]
    with pytest.raises(SettingError, match="No learner '0123456789ab'"):
        check_behaviour(world.config("steady", learner="0123456789ab"))


def test_a_run_stands_for_the_learner_that_made_it(world: World) -> None:
    reference = check_behaviour(world.config("steady"))["images"]["reference"]
    result = check_behaviour(world.config("dim", learner=reference))
    assert result["model_id"] == world.exports["steady"].sha256[:12]


def test_a_champion_that_nobody_vouched_for_is_not_opened(world: World) -> None:
    world.crown("steady")
    with pytest.raises(TrustError, match=f"--trust {world.exports['steady'].sha256}"):
        check_behaviour(world.config("dim", trust=(world.exports["dim"].sha256,)))


def test_few_images_say_nothing_and_pass_nothing(world: World) -> None:
    result = check_behaviour(world.config("steady", behaviour_images=29))
    assert result["passed"] is False and "only 29 images" in result["sentence"]
    assert check_behaviour(world.config("steady", behaviour_images=30))["passed"]


def test_images_that_are_gone_are_counted(world: World, made: World) -> None:
    gone = sorted((made.folder / "all" / "valid" / "red").iterdir())[0]
    data = gone.read_bytes()
    gone.unlink()
    try:
        result = check_behaviour(world.config("steady"))
    finally:
        gone.write_bytes(data)
    assert (result["images"]["n"], result["images"]["unreadable"]) == (IMAGES - 1, 1)


class Picky(nn.Module):
    """As steady, and fails on what is blue."""

    def __init__(self) -> None:
        super().__init__()
        self.steady = by_hand([9.0, 0.0, -9.0], 0.0)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        colours = batch.mean((2, 3))
        if (colours[:, 2] > colours[:, 0] + 0.1).any():
            raise ValueError("no blue, please")
        said: torch.Tensor = self.steady(batch)
        return said


def test_a_learner_that_fails_on_images_that_the_champion_scores_is_no_stable_one(world: World, made: World) -> None:
    dls = ImageDataLoaders.from_folder(made.folder / "all", train="train", valid="valid", bs=4, num_workers=0)
    picky = exported(Learner(dls, Picky()), world.folder / "picky.pkl")
    world = World(world.folder, world.exports | {"picky": picky})
    world.crown("steady")
    trust = tuple(each.sha256 for each in world.exports.values())
    result = check_behaviour(world.config("picky", trust=trust, engine="torch"))
    assert (result["images"]["n"], result["images"]["unreadable"], result["passed"]) == (IMAGES, 0, False)
    assert all((each["stable"], each["champion_stable"]) == (IMAGES // 2, IMAGES) for each in result["perturbations"])
    assert f"fails on {IMAGES // 2} of {IMAGES} images as they are" in result["notes"][-1]
    assert "no blue, please" in result["notes"][-1]
    assert "(not scored) → <b>(not scored)</b>" in Path(result["page"]).read_text()


def test_images_that_the_champion_was_trained_on_are_left_out(world: World, made: World) -> None:
    """The champion knows them by heart, and would look more stable than it is."""
    labels = world.folder / "labels.csv"
    paths = sorted((made.folder / "all").rglob("*.png"))
    # Of the images that steady holds out, dim was trained on a fifth.
    trained = [path for path in paths if "valid" in path.parts][::5]
    lines = [f"{path},{path.parent.name},{path not in trained and 'valid' in path.parts}" for path in paths]
    labels.write_text("\n".join(["fname,label,is_valid", *lines]) + "\n")
    build_reference(world.config("dim", images=str(made.folder / "all"), labels=str(labels), source="again"))
    world.crown("dim")
    assert check_behaviour(world.config("steady"))["images"]["n"] == IMAGES - len(trained)


def test_one_image_of_each_group_is_taken(world: World) -> None:
    result = check_behaviour(world.config("steady", group_by=r"-(0[0-2]\d|03)"))
    assert (result["images"]["n"], result["images"]["unreadable"]) == (31, 0)
    assert not any("groups" in note for note in result["notes"])


def test_where_groups_are_few_all_images_are_taken_and_it_is_said(world: World) -> None:
    result = check_behaviour(world.config("steady", group_by=r"-(\d\d)\d\.png"))
    assert result["images"]["n"] == IMAGES and "4 groups" in result["notes"][0]


def cases(world: World, **labels: str) -> str:
    """Two cases: an image that is red, one that is blue. ``labels``: what is said of them instead."""
    folder = world.folder / "cases"
    for label in ("red", "blue"):
        pixels = np.full((32, 40, 3), 110, np.uint8)
        pixels[..., 0 if label == "red" else 2] += 60
        path = folder / labels.get(label, label) / f"{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(folder)


def test_own_cases_that_come_right_pass(world: World) -> None:
    result = check_behaviour(world.config("steady", cases=cases(world)))
    assert result["passed"] and [case["passed"] for case in result["cases"]] == [True, True]
    assert result["sentence"].endswith("all 2 own cases come right.")


def test_one_own_case_that_comes_wrong_fails_a_stable_learner(world: World) -> None:
    world.crown("steady")
    result = check_behaviour(world.config("lost", cases=cases(world)))
    assert failed(result) == [] and result["passed"] is False
    wrong = {Path(case["uri"]).name: case for case in result["cases"] if not case["passed"]}
    assert list(wrong) == ["blue.png"]
    assert (wrong["blue.png"]["expected"], wrong["blue.png"]["got"]) == ("blue", ("red",))
    assert wrong["blue.png"]["champion_got"] == ("blue",)
    assert "1 of 2 own cases come out wrong, first blue.png: it must be blue, got red" in result["sentence"]


def test_a_case_that_cannot_be_read_is_an_error_that_names_it(world: World) -> None:
    folder = cases(world)
    Path(folder, "red", "broken.png").write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"broken\.png can't be read: undecodable"):
        check_behaviour(world.config("steady", cases=folder))
    assert latest_behaviour(Store(), Layout(world.root), world.exports["steady"].sha256[:12]) is None


def test_of_several_labels_the_whole_set_must_stay(world: World) -> None:
    """Red stays red in the dark, and is no longer bright. Beside it a champion with one label."""
    world.crown("steady")
    folder = cases(world, red="bright; red", blue="red")
    result = check_behaviour(world.config("tags", cases=folder))
    assert failed(result) == ["20 % darker"]
    turned = [each for each in record_of(result)["broke"] if not each["learner"]["stayed"]]
    assert {(tuple(each["learner"]["from"]), tuple(each["learner"]["to"])) for each in turned} == {
        (("bright", "red"), ("red",)),
        (("bright",), ()),
    }
    assert {Path(case["uri"]).name: case["passed"] for case in result["cases"]} == {"red.png": True, "blue.png": False}
    page = Path(result["page"]).read_text()
    assert "bright; red → <b>red</b>" in page and "<b>(none)</b>" in page


def test_a_value_may_move_by_a_twentieth(world: World) -> None:
    world.crown("steady")
    # The light of both is (170 + 2 * 110) / 3 / 255, times ten: 5.10.
    folder = cases(world, red="5.2", blue="6")
    result = check_behaviour(world.config("light", cases=folder))
    assert failed(result) == ["20 % darker", "20 % brighter"]
    assert {Path(case["uri"]).name: case["passed"] for case in result["cases"]} == {"red.png": True, "blue.png": False}
    assert result["cases"][0]["got"] == pytest.approx([5.10], abs=0.01)


def test_the_same_command_again_does_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cases(world)
    first = check_behaviour(world.config("dim", cases=folder))
    before = {path: path.stat().st_mtime_ns for path in Path(world.root, "behaviour").rglob("*") if path.is_file()}
    again = check_behaviour(world.config("dim", cases=folder))
    after = {path: path.stat().st_mtime_ns for path in Path(world.root, "behaviour").rglob("*") if path.is_file()}
    assert before == after and len(after) == 2
    assert json.loads(json.dumps(first)) == again and "nothing to do" in capsys.readouterr().err


def test_promote_goes_by_what_behave_showed_last(world: World) -> None:
    """With cases it fails, without it passes, with cases again it fails: found there, and shown."""
    world.crown("steady")
    lost, folder = world.exports["lost"].sha256[:12], cases(world)
    shown = [check_behaviour(world.config("lost", cases=each))["passed"] for each in (folder, None, folder)]
    assert shown == [False, True, False]
    with pytest.raises(SettingError, match="own cases come out wrong"):
        drivetrain.promote(world.config("lost"), lost)
    assert check_behaviour(world.config("lost"))["passed"]
    assert drivetrain.promote(world.config("lost"), lost)["champion"]["model_id"] == lost


def test_a_champion_that_was_gone_back_from_does_not_lock_out_a_learner(world: World, made: World) -> None:
    """As brittle as the champion dim, less stable than steady. Back at dim it passes as it did before."""
    dls = ImageDataLoaders.from_folder(made.folder / "all", train="train", valid="valid", bs=4, num_workers=0)
    model = by_hand([29.0, 29.0, 29.0], -87 * DARK)
    world = World(world.folder, world.exports | {"dusk": exported(Learner(dls, model), world.folder / "dusk.pkl")})
    world.crown("dim")
    assert check_behaviour(world.config("dusk"))["passed"]
    world.crown("steady")
    assert check_behaviour(world.config("dusk"))["passed"] is False
    drivetrain.roll_back(world.config("dim", trust=tuple(each.sha256 for each in world.exports.values())))
    assert check_behaviour(world.config("dusk"))["passed"]
    dusk = world.exports["dusk"].sha256[:12]
    assert drivetrain.promote(world.config("dusk"), dusk)["champion"]["model_id"] == dusk


@pytest.mark.parametrize("change", ["case", "champion", "images", "settings"])
def test_other_inputs_are_other_tests(world: World, change: str) -> None:
    folder = cases(world)
    first = check_behaviour(world.config("dim", cases=folder))
    more: dict[str, Any] = {}
    if change == "case":
        Image.new("RGB", (40, 32), (150, 90, 140)).save(Path(folder, "red", "red.png"))
    elif change == "champion":
        world.crown("steady")
    elif change == "images":
        more = {"behaviour_images": 35}
    else:
        more = {"max_pixels": 1_000_000}
    second = check_behaviour(world.config("dim", cases=folder, **more))
    assert second["behaviour"] != first["behaviour"]
    assert latest_behaviour(Store(), Layout(world.root), second["model_id"]) == record_of(second)


def test_images_are_enlarged_where_a_learner_brings_them_to_one_size(world: World, made: World) -> None:
    """To a network of convolutions alone a larger image shows larger things: 83 % of the digits' labels turned."""
    dls = ImageDataLoaders.from_folder(
        made.folder / "all", train="train", valid="valid", bs=4, num_workers=0, item_tfms=Resize(32)
    )
    resizing = exported(Learner(dls, STEADY, path=world.folder), world.folder / "resizing.pkl")
    exports = {**world.exports, "resizing": resizing}
    world = World(world.folder, exports)
    build_reference(world.config("resizing", images=str(made.folder / "all"), source="again"))
    result = check_behaviour(world.config("resizing"))
    assert len(result["perturbations"]) == 11 and result["notes"] == [] and result["passed"]
    world.crown("steady")
    beside = check_behaviour(world.config("resizing"))
    assert len(beside["perturbations"]) == 10 and "not enlarged" in beside["notes"][0], "the champion does not resize"


def test_a_killed_command_leaves_no_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record comes last: a page alone counts for nothing, and the same command makes both."""
    replace: Callable[..., None] = Store.replace

    def full(store: Store, uri: str, data: bytes) -> None:
        if uri.endswith("behaviour.json"):
            raise DrivetrainError("the disk is full")
        replace(store, uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "replace", full)
        with pytest.raises(DrivetrainError, match="full"):
            check_behaviour(world.config("steady"))
    assert latest_behaviour(Store(), Layout(world.root), world.exports["steady"].sha256[:12]) is None
    result = check_behaviour(world.config("steady"))
    found = latest_behaviour(Store(), Layout(world.root), result["model_id"])
    assert found and found["page"] == result["page"] and Path(result["page"]).exists()


@pytest.mark.parametrize(("name", "code"), [("steady", 0), ("dim", 5)])
def test_the_command_ends_with_5_when_the_tests_fail(
    world: World, name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["behave", world.exports[name].path, "--root", world.root, "--actors", "0"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().out.splitlines()
    assert ended.value.code == code
    assert json.loads(said[-1])["passed"] == (code == 0)
    assert any(line.startswith("20 % darker") and ("FAILED" in line) == (code == 5) for line in said)
    assert said[-2].startswith("Page: ") and said[-3].startswith("Failed" if code else "Passed")


def test_it_stands_in_the_python_api() -> None:
    assert drivetrain.check_behaviour is check_behaviour and "check_behaviour" in drivetrain.__all__


def test_no_label_or_name_becomes_part_of_the_page(world: World) -> None:
    folder = world.folder / "cases"
    folder.mkdir()
    Image.new("RGB", (40, 32), (170, 110, 110)).save(folder / "<img src=x onerror=1>.png")
    (folder / "labels.csv").write_text("fname,label\n<img src=x onerror=1>.png,red\n")
    page = Path(check_behaviour(world.config("dim", cases=str(folder)))["page"]).read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_a_job_takes_no_folder_of_cases_that_means_another_place() -> None:
    config = Config(root="/root", learner="0123456789ab", cases="cases")
    with pytest.raises(SettingError, match="cases = 'cases'"):
        submit_command(["behave", "0123456789ab"], config, None, address=None, insecure=False)


@pytest.mark.slow
def test_the_page_shows_what_broke_and_asks_nobody(world: World) -> None:
    world.crown("steady")
    page = Path(check_behaviour(world.config("dim", cases=cases(world)))["page"])
    seen = visit(
        page,
        "({broken: [...document.images].filter(each => !each.naturalWidth).length, images: document.images.length,"
        " wide: document.documentElement.scrollWidth - window.innerWidth})",
        after=500,
    )
    assert seen.console == [] and seen.requests == []
    # 12 images of the one change that fails, each twice, and two cases.
    assert seen.found["images"] == 26 and seen.found["broken"] == 0 and seen.found["wide"] <= 0
    for said in ("20 % darker", "red → blue", "champion: red, stays", "must be blue; got red", "40 of 40 answers turn"):
        assert said in seen.text, said
    assert page.stat().st_size < 300_000


@pytest.mark.thorough
def test_a_job_of_a_cluster_finds_what_this_process_finds(made: World, tmp_path: Path, ray_cluster: RayCluster) -> None:
    found = []
    for name in ("here", "there"):
        shutil.copytree(made.root, tmp_path / name / "root")
        world = World(tmp_path / name, made.exports)
        world.crown("steady")
        model_id = world.exports["dim"].sha256[:12]
        if name == "here":
            check_behaviour(world.config("dim", cases=cases(world)))
        else:
            words = ["submit", "--wait", "behave", model_id, "--root", world.root, "--cases", cases(world)]
            command = [sys.executable, "-m", "drivetrain.cli", *words, "--actors", "2"]
            done = subprocess.run(command, env=ray_cluster.env, capture_output=True, text=True, check=False)
            assert done.returncode == 5, done.stderr
            assert json.loads(done.stdout.splitlines()[-1])["passed"] is False
        record = latest_behaviour(Store(), Layout(world.root), model_id)
        assert record
        text = json.dumps({key: value for key, value in record.items() if key not in ("made", "asked", "page")})
        found.append(text.replace(str(world.folder), "…"))
    assert found[0] == found[1] and "20 % darker" in found[0]
