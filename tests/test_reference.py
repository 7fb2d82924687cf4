"""How an image of the training set gets its split and its true label: by folders, or by a labels file."""

from pathlib import Path

import pyarrow as pa
import pytest
from builders import PREFIX, image, listed

from drivetrain.config import Config
from drivetrain.errors import SettingError
from drivetrain.reference import (
    Label,
    Reference,
    _marks,
    label_of_folders,
    match_labels,
    perhaps_meant,
    read_labels,
    scores_of,
)
from drivetrain.schema import row_schema
from drivetrain.store import Store

VOCAB = ("cat", "dog")
CAT: Label = ("trained", "cat")
DOG: Label = ("held_out", "dog")
UNKNOWN: Label = ("unknown", None)


# --- folders ---


@pytest.mark.parametrize(
    ("key", "split", "label"),
    [
        ("/train/cat/1.jpg", "trained", "cat"),
        ("/Training/dog/1.jpg", "trained", "dog"),
        ("/valid/cat/1.jpg", "held_out", "cat"),
        ("/VAL/cat/1.jpg", "held_out", "cat"),
        ("/test/dog/1.jpg", "held_out", "dog"),
        ("/dog/validation/1.jpg", "held_out", "dog"),
        ("/cat/1.jpg", "unknown", "cat"),
        ("/train/bird/1.jpg", "trained", None),
        ("/1.jpg", "unknown", None),
        ("/cat.jpg", "unknown", None),
        ("/train.jpg", "unknown", None),
        ("/x/train", "unknown", None),
        ("/dog/cat/1.jpg", "unknown", "cat"),
        ("/trained-on-tuesday/1.jpg", "unknown", None),
    ],
)
def test_folders_say_split_and_label_and_file_names_do_not(key: str, split: str, label: str | None) -> None:
    assert label_of_folders(key, VOCAB) == (split, label)


# --- the labels file ---


def test_a_labels_file_gives_split_and_label_by_fname() -> None:
    text = "fname,label,is_valid\na.jpg,cat,False\nb/c.jpg,dog,True\nd.jpg,,1\ne.jpg,cat, false \n"
    assert read_labels(text, "labels.csv") == {
        "a.jpg": CAT,
        "b/c.jpg": DOG,
        "d.jpg": ("held_out", None),
        "e.jpg": CAT,
    }


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("True", "held_out"),
        ("TRUE", "held_out"),
        ("1", "held_out"),
        ("1.0", "held_out"),
        ("0", "trained"),
        ("0.0", "trained"),
    ],
)
def test_is_valid_may_be_written_as_pandas_and_excel_write_it(word: str, split: str) -> None:
    assert read_labels(f"fname,label,is_valid\na,cat,{word}\n", "x") == {"a": (split, "cat")}


def test_columns_may_stand_in_any_order_and_label_may_be_missing() -> None:
    assert read_labels("is_valid,extra,fname\nTrue,9,a.jpg\n", "x") == {"a.jpg": ("held_out", None)}


def test_quoted_names_keep_their_commas() -> None:
    assert read_labels('fname,label,is_valid\n"a, b.jpg",cat,False\n', "x") == {"a, b.jpg": CAT}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("fname,label\na,cat\n", "['fname', 'label']"),
        ("fname;label;is_valid\n", "fname;label;is_valid"),
    ],
)
def test_missing_columns_are_refused_with_those_found(text: str, found: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_labels(text, "s3://b/labels.csv")
    message = str(caught.value)
    assert message.startswith("s3://b/labels.csv: expected the columns fname,label,is_valid")
    assert found in message


@pytest.mark.parametrize("word", ["yes", "", "2", "valid"])
def test_an_is_valid_that_is_neither_is_refused_with_its_line(word: str) -> None:
    with pytest.raises(SettingError, match=rf"labels\.csv, line 3: is_valid is '{word}'; expected True or False"):
        read_labels(f"fname,label,is_valid\na,cat,True\nb,cat,{word}\n", "labels.csv")


def test_a_line_that_is_too_short_is_refused_with_its_number() -> None:
    with pytest.raises(SettingError, match="line 2"):
        read_labels("fname,label,is_valid\na\n", "labels.csv")
    with pytest.raises(SettingError, match="line 2"):
        read_labels("is_valid,label,fname\nTrue,cat\n", "labels.csv")


def test_a_labels_file_saved_by_excel_or_not_there_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    config, images = Config(labels=str(file)), listed([image("1.jpg")])
    with pytest.raises(SettingError, match=r"labels\.csv can't be read"):
        _marks(Store(), config, PREFIX, images, VOCAB)
    file.write_bytes("fname,label,is_valid\r\n1.jpg,cat,FALSE\r\n".encode("utf-8-sig"))
    assert _marks(Store(), config, PREFIX, images, VOCAB).of(f"{PREFIX}/1.jpg") == CAT


# --- matching ---


def matched(labels: dict[str, Label], uris: list[str], where: str) -> dict[str, Label | None]:
    marks = match_labels(labels, uris, where)
    return {uri: marks.of(uri) for uri in uris}


def test_an_exact_uri_wins_over_any_end_of_a_path() -> None:
    uri = "s3://b/deep/down/in/x/1.jpg"
    labels = {uri: CAT, "s3://other/deep/down/in/x/1.jpg": DOG}
    assert matched(labels, [uri], "w") == {uri: CAT}


def test_names_of_the_training_machine_are_matched_by_the_ends_of_their_paths() -> None:
    labels = {"/home/ann/data/train/cat/1.jpg": CAT, "/home/ann/data/valid/dog/1.jpg": DOG}
    uris = ["s3://b/set/train/cat/1.jpg", "s3://b/set/valid/dog/1.jpg"]
    assert matched(labels, uris, "w") == dict(zip(uris, (CAT, DOG), strict=True))


def test_names_from_windows_are_matched_too() -> None:
    labels = {"C:\\Users\\ann\\train\\cat\\1.jpg": CAT, "C:\\Users\\ann\\valid\\dog\\1.jpg": DOG}
    uris = ["/data/train/cat/1.jpg", "/data/valid/dog/1.jpg"]
    assert matched(labels, uris, "w") == dict(zip(uris, (CAT, DOG), strict=True))


def test_the_longest_end_decides_where_short_ends_are_shared() -> None:
    labels = {"a/cat/1.jpg": CAT, "b/cat/1.jpg": DOG}
    found = matched(labels, ["/x/a/cat/1.jpg", "/x/b/cat/1.jpg"], "w")
    assert found == {"/x/a/cat/1.jpg": CAT, "/x/b/cat/1.jpg": DOG}


def test_a_basename_alone_is_enough_where_only_one_fname_has_it() -> None:
    assert matched({"cat/1.jpg": CAT}, ["s3://b/flat/1.jpg"], "w") == {"s3://b/flat/1.jpg": CAT}


def test_an_end_that_two_fnames_share_says_nothing() -> None:
    labels = {"cat/1.jpg": CAT, "dog/1.jpg": DOG, "dog/2.jpg": DOG}
    found = matched(labels, ["/flat/1.jpg", "/flat/2.jpg"], "w")
    assert found == {"/flat/1.jpg": UNKNOWN, "/flat/2.jpg": DOG}


def test_an_fname_labels_no_second_image_that_only_shares_its_basename() -> None:
    # Numbered files in class folders: dog/1.jpg is missing in the file, and is no cat.
    found = matched({"cat/1.jpg": CAT}, ["/x/cat/1.jpg", "/x/dog/1.jpg"], "w")
    assert found == {"/x/cat/1.jpg": CAT, "/x/dog/1.jpg": UNKNOWN}


def test_images_that_no_fname_fits_are_unknown_and_counted_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    uris = [f"/x/{i}.jpg" for i in range(3)]
    assert matched({"1.jpg": CAT}, uris, "labels.csv") == {uris[0]: UNKNOWN, uris[1]: CAT, uris[2]: UNKNOWN}
    assert "2 of 3 images are not in labels.csv; they are marked unknown" in capsys.readouterr().err


def test_a_full_match_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    matched({"1.jpg": CAT}, ["/x/1.jpg"], "labels.csv")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("labels", "example"), [({"a.png": CAT}, "'a.png'"), ({}, "(no line)")])
def test_a_file_that_fits_no_image_is_refused_with_an_example_of_both(labels: dict[str, Label], example: str) -> None:
    with pytest.raises(SettingError) as caught:
        matched(labels, ["s3://b/1.jpg"], "labels.csv")
    assert all(word in str(caught.value) for word in ("labels.csv", example, "'s3://b/1.jpg'"))


def test_lines_marked_trained_that_fit_no_image_are_kept_apart_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"train/1.jpg": CAT, "night/7.jpg": CAT, "night/8.jpg": DOG}
    assert match_labels(labels, ["/x/train/1.jpg"], "labels.csv").elsewhere == ("night/7.jpg",)
    assert "1 lines of labels.csv are marked as trained on and fit no image here, e.g. 'night/7.jpg'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["s3://b/in/a/1.jpg"], ["s3://b/in/a/1.jpg"]),
        (["s3://other/in/a/1.jpg"], []),
        (["/home/ann/a/1.jpg"], ["s3://b/in/a/1.jpg"]),
        (["C:\\ann\\b\\1.jpg"], ["s3://b/in/b/1.jpg"]),
        (["1.jpg"], ["s3://b/in/a/1.jpg", "s3://b/in/b/1.jpg"]),
        (["c/1.jpg", "2.jpg"], ["s3://b/in/a/1.jpg", "s3://b/in/b/1.jpg", "s3://b/in/b/2.jpg"]),
        (["3.jpg"], []),
    ],
)
def test_a_name_may_mean_every_image_that_shares_its_longest_end(names: list[str], meant: list[str]) -> None:
    uris = ["s3://b/in/a/1.jpg", "s3://b/in/b/1.jpg", "s3://b/in/b/2.jpg"]
    assert perhaps_meant(names, uris) == meant


# --- rows as arrays ---


def rows(*outcomes: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([{"uri": "/x", "status": "ok"} | each for each in outcomes], schema=row_schema(2))


def test_rows_become_the_arrays_that_drift_takes() -> None:
    one = {"embedding": [1, 2], "probs": [0.25, 0.75], "confidence": 0.75, "energy": 3.0, "label_index": 1}
    two = {"embedding": [3, 4], "probs": [1.0, 0.0], "confidence": 1.0, "energy": 5.0, "label_index": 0}
    scores = scores_of(rows(one, two), VOCAB)
    assert scores.embeddings.tolist() == [[1, 2], [3, 4]]
    assert scores.outputs.tolist() == [[0.25, 0.75], [1, 0]]
    assert (scores.confidence.tolist(), scores.energy.tolist()) == ([0.75, 1], [3, 5])
    assert scores.labels.tolist() == [1, 0]


def test_rows_of_a_regression_without_embeddings_give_values_and_no_labels() -> None:
    scores = scores_of(rows({"values": [0.5]}, {"values": [2.0]}), ())
    assert scores.embeddings.shape == (2, 0)
    assert scores.outputs.tolist() == [[0.5], [2.0]]
    assert len(scores.labels) == 0


def test_no_rows_are_no_images() -> None:
    scores = scores_of(rows(), ("cat", "dog", "emu"))
    assert len(scores) == 0
    assert scores.outputs.shape == (0, 3)


@pytest.mark.parametrize(
    ("splits", "held_out"), [({"held_out": 1, "trained": 9}, True), ({"trained": 9}, False), ({"held_out": 0}, False)]
)
def test_a_reference_knows_whether_it_holds_images_that_no_training_saw(splits: dict[str, int], held_out: bool) -> None:
    assert Reference("r", "m", {}, splits, 0, "now").held_out is held_out
