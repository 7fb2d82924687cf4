"""The three forms of labels, written and read: what people and their tools make of a queue."""

import csv
import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.errors import SettingError
from drivetrain.labelfiles import (
    ToLabel,
    delimiter_of,
    label_studio_config,
    read_labels_of_people,
    to_csv,
    to_fiftyone,
    to_label_studio,
)

TWO = [
    ToLabel("s3://b/a,1.jpg", None, ("cat",), 0.75, 3.5),
    ToLabel("s3://b/b.jpg", "dog", ("cat",), 0.5, None, "random"),
]
# Whatever a key may hold: S3's are any Unicode without NUL and lone surrogates.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


def read(text: str | bytes) -> dict[str, tuple[str, ...]]:
    return read_labels_of_people(text if isinstance(text, bytes) else text.encode(), "labels").by_name


def refused(text: str | bytes) -> str:
    with pytest.raises(SettingError) as error:
        read(text)
    return str(error.value)


def filled(data: bytes, labels: dict[str, str]) -> bytes:
    """A queue's CSV after a person filled in its column of labels."""
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([rows[0], *([row[0], labels[row[0]], *row[2:]] for row in rows[1:])])
    return sink.getvalue().encode()


# --- csv ---


def test_the_csv_has_no_label_that_nobody_gave() -> None:
    assert to_csv(TWO).decode().splitlines() == [
        "fname,label,predicted,confidence,chosen",
        '"s3://b/a,1.jpg",,cat,0.75,moved',
        "s3://b/b.jpg,dog,cat,0.5,random",
    ]
    assert read(to_csv(TWO)) == {"s3://b/b.jpg": ("dog",)}


@settings(deadline=None)
@given(st.dictionaries(NAMES, NAMES.map(str.strip).filter(bool), max_size=8))
def test_any_name_and_any_label_come_back_from_the_csv(labels: dict[str, str]) -> None:
    queue = to_csv([ToLabel(name, None, ("a\r\nb", "c"), 0.5) for name in labels])
    assert read(filled(queue, labels)) == {name: (label,) for name, label in labels.items()}


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.lists(NAMES.map(str.strip).filter(bool), min_size=1, unique=True), max_size=8))
def test_any_name_and_any_label_come_back_from_label_studio(labels: dict[str, list[str]]) -> None:
    tasks = json.loads(to_label_studio([ToLabel(name, None, ("x",), 0.5) for name in labels], "model", "multi_label"))
    for task in tasks:
        task["annotations"] = [{"result": [chose(*labels[task["data"]["image"]])]}]
    wanted = {name: tuple(words) for name, words in labels.items() if not name.startswith("/data/local-files/?d=")}
    assert read(json.dumps(tasks)).items() >= wanted.items()


@pytest.mark.parametrize(
    "text",
    [
        "fname,label\na.jpg,cat\nb.jpg,\n",
        "\ufefffname,label\r\na.jpg,cat\r\nb.jpg,\r\n",
        "fname;label;predicted\na.jpg;cat;dog\nb.jpg; ;dog",
        "label\tfname\ncat\ta.jpg\n\tb.jpg\n\n",
        'fname,label\n"a.jpg"," cat "\nb.jpg,""\na.jpg,cat\n',
    ],
    ids=["plain", "bom and crlf", "semicolons", "tabs", "quotes and a repeated line"],
)
def test_a_csv_as_people_and_spreadsheets_save_it(text: str) -> None:
    found = read_labels_of_people(text.encode(), "labels")
    assert (found.form, found.by_name, found.unlabelled) == ("csv", {"a.jpg": ("cat",)}, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\ufeff \n", "is empty"),
        ("uri,label\na,cat\n", "line 1: expected the columns fname,label.*found 'uri, label'"),
        ("fname,label,label\na,cat,dog\n", "label is missing or there twice"),
        ("fname,label\na,cat\nb\n", "line 3: expected 2 columns, found 1"),
        ("fname,label\na,cat\n,dog\n", "line 3: expected the name of an image"),
        ("fname,label\na,cat\nb,dog\na,dog\n", "line 4: a is 'dog', and 'cat' in line 2"),
        ('fname,label\na,"cat\n', "line 2: no CSV"),
        ("fname,label\na,cat\n".encode("utf-16"), "no UTF-8 text"),
        ("[{]", "line 1 column"),
        ('{"images": []}', "expected a list of tasks.*'images'"),
        ("[1]", "task 1: expected an object"),
        ('[{"data": {"picture": "a"}}]', "task 1: expected the image's uri as data.image, found the keys picture"),
        ('{"classes": ["cat"], "labels": {"a": 3}}', "image 'a': expected a class below 1, found the number 3"),
        ('{"labels": {"a": {"label": [1]}}}', "expected a label as text"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str | bytes, said: str) -> None:
    assert re.search(said, refused(text), re.DOTALL)


def test_the_labels_of_one_image_are_joined_by_what_no_class_holds() -> None:
    assert [delimiter_of(vocab) for vocab in (["a", "b"], ["a;b"], ["a;b", "c|d"])] == [";", "|", ","]
    (line,) = to_csv([ToLabel("a.jpg", None, ("cat", "dog"), 0.9)], "|").decode().splitlines()[1:]
    assert line == "a.jpg,,cat|dog,0.9,moved"


# --- Label Studio ---


def chose(*words: str) -> dict[str, Any]:
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": list(words)}}


def task(*annotations: dict[str, Any], image: str = "s3://b/a.jpg") -> dict[str, Any]:
    return {
        "id": 7,
        "data": {"image": image},
        "annotations": list(annotations),
        "predictions": [{"result": [chose("no")]}],
    }


def test_label_studio_gets_tasks_with_predictions_in_their_order() -> None:
    tasks = json.loads(to_label_studio(TWO, "5a5a", "single_label"))
    assert [each["data"]["image"] for each in tasks] == [each.uri for each in TWO]
    assert tasks[0]["predictions"] == [{"model_version": "5a5a", "score": 0.75, "result": [chose("cat")]}]
    assert "annotations" not in tasks[1], "a known label is not a person's word"
    assert read(json.dumps(tasks)) == {}, "predictions that nobody looked at are no labels"


def test_the_interface_names_the_controls_of_the_tasks_and_any_class() -> None:
    vocab = ['a "b"', "<script>", "c&d", "e'\"f"]
    view = ElementTree.fromstring(label_studio_config(vocab, "multi_label"))
    choices = view.find("Choices")
    assert choices is not None and [each.get("value") for each in choices] == vocab
    assert (choices.get("name"), choices.get("toName"), choices.get("choice")) == ("label", "image", "multiple")
    result = json.loads(to_label_studio(TWO, "m", "multi_label"))[0]["predictions"][0]["result"][0]
    image = view.find("Image")
    assert image is not None and image.get("value") == "$image"
    assert (result["from_name"], result["to_name"]) == ("label", image.get("name"))
    assert ElementTree.fromstring(label_studio_config([], "regression")).find("TextArea") is not None


def test_of_several_annotators_the_majority_counts_then_the_newest() -> None:
    def by(word: str, at: str, **more: Any) -> dict[str, Any]:
        return {"result": [chose(word)], "updated_at": at, **more}

    assert read(json.dumps([task(by("cat", "3"), by("dog", "1"), by("dog", "2"))])) == {"s3://b/a.jpg": ("dog",)}
    assert read(json.dumps([task(by("cat", "3"), by("dog", "1"))])) == {"s3://b/a.jpg": ("cat",)}
    cancelled = task(by("cat", "3", was_cancelled=True), by("dog", "1"))
    assert read(json.dumps([cancelled])) == {"s3://b/a.jpg": ("dog",)}
    truth = task(by("cat", "3"), by("cat", "4"), by("emu", "1", ground_truth=True))
    assert read(json.dumps([truth])) == {"s3://b/a.jpg": ("emu",)}


def test_skipped_annotations_are_no_labels_and_empty_ones_say_that_no_class_is_there() -> None:
    nothing = [
        task(image="a"),
        task({"result": []}, image="b"),
        task({"was_cancelled": True, "result": [chose("cat")]}, image="c"),
    ]
    found = read_labels_of_people(json.dumps(nothing).encode(), "x")
    assert (found.by_name, found.none, found.unlabelled) == ({"b": ()}, {"b"}, 2)
    two = [task({"result": [chose("cat")], "updated_at": "1"}, {"result": [], "updated_at": "2"}, image="d")]
    found = read_labels_of_people(json.dumps(two).encode(), "x")
    assert (found.by_name, found.none) == ({"d": ("cat",)}, {"d"}), "for a learner of one label the label counts"
    minimal = [{"image": "e", "annotation_id": 3}, {"image": "f"}]
    found = read_labels_of_people(json.dumps(minimal).encode(), "x")
    assert (found.none, found.unlabelled) == ({"e"}, 1)


def test_the_minimal_json_is_one_object_an_annotation() -> None:
    rows = [
        {"image": "a", "label": "cat", "annotator": 1, "created_at": "1"},
        {"image": "a", "label": "dog", "annotator": 2, "created_at": "2"},
        {"image": "b", "choice": "dog"},
        {"image": "c", "label": {"choices": ["cat", "dog"]}},
        {"image": "d"},
        {"image": "/data/local-files/?d=photos/e%20f.jpg", "label": "cat"},
        {"image": "g", "label": 2.5},
    ]
    found = read_labels_of_people(json.dumps(rows).encode(), "x")
    assert found.by_name == {
        "a": ("dog",), "b": ("dog",), "c": ("cat", "dog"), "photos/e f.jpg": ("cat",), "g": ("2.5",),
    }  # fmt: skip
    assert found.unlabelled == 1


# --- FiftyOne ---


def test_fiftyone_gets_classes_and_predictions_with_their_rank() -> None:
    found = json.loads(to_fiftyone(TWO, ["cat", "dog"], "single_label"))
    assert found["classes"] == ["cat", "dog"]
    assert found["labels"]["b"] == {
        "label": "cat", "confidence": 0.5, "attributes": {"rank": 2, "moved": None, "chosen": "random"},
    }  # fmt: skip
    local = json.loads(to_fiftyone([ToLabel("/x/a.b.jpg", None, ("cat",), 0.5)], ["cat"], "single_label"))
    assert list(local["labels"]) == ["/x/a.b.jpg"], "an absolute path is found as it is"
    several = json.loads(to_fiftyone(TWO, ["cat", "dog"], "multi_label"))["labels"]
    assert [each["label"] for each in several["a,1"]] == ["cat"]


def test_what_carries_a_confidence_is_a_models_word() -> None:
    found = read_labels_of_people(to_fiftyone(TWO, ["cat", "dog"], "single_label"), "x")
    assert (found.by_name, found.unlabelled) == ({}, 2)


def test_fiftyone_labels_come_as_text_numbers_objects_or_lists() -> None:
    labels = {"a": "cat", "b": 1, "c": {"label": "emu"}, "d": ["cat", {"label": "dog", "confidence": None}], "e": None}
    found = read_labels_of_people(json.dumps({"classes": ["cat", "dog"], "labels": labels}).encode(), "x")
    assert found.by_name == {"a": ("cat",), "b": ("dog",), "c": ("emu",), "d": ("cat", "dog")}
    assert found.stems and found.unlabelled == 1


def test_a_regression_has_no_place_in_fiftyone() -> None:
    with pytest.raises(SettingError, match="--to csv"):
        to_fiftyone(TWO, [], "regression")
