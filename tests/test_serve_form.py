"""A request's options from texts: each by name or in one JSON object, once; and how the API describes them."""

import json
from dataclasses import fields
from fractions import Fraction

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import NO_BOX
from lipsync.errors import InvalidBoxes, InvalidOption, LipsyncError, MalformedRequest
from lipsync.faces.given import tracks_to_json
from lipsync.options import Options
from serve.form import TEXTS, body_schema, options_of

EACH = {
    "sync_mode": "bounce", "fps": "30000/1001", "audio_offset_ms": -40.5, "mel_pad_mode": "reflect", "compat": "reference",
    "detector": "centerface", "detect_every": 3, "face_choice": "index", "face_index": 2, "face_point": [1.5, 2, 0.25],
    "on_missing_face": "error", "box": [1, 20, 3, 40], "boxes": [[1, 2, 30, 40], None], "boxes_size": [64, 48], "pads": [0, 5, -1, 0],
    "nosmooth": True, "static": True, "resize_factor": 2, "rotate": True, "crop": [0, -1, 0, -1], "blend": "none", "codec": "h265",
    "crf": 20, "preset": "slow", "encoder_threads": 2, "resize": [640, 360], "label": True,
}  # fmt: skip


def test_the_examples_are_of_every_option_and_none_is_the_default():
    assert set(EACH) == {item.name for item in fields(Options)} == TEXTS - {"options"}
    for name, value in EACH.items():
        assert Options.from_mapping({name: value}) != Options()


@pytest.mark.parametrize("name", EACH)
def test_every_option_is_read_from_a_field_and_from_json(name):
    wanted = Options.from_mapping({name: EACH[name]})
    text = EACH[name] if isinstance(EACH[name], str) else json.dumps(EACH[name])
    assert options_of({name: text}) == wanted
    assert options_of({"options": json.dumps({name: EACH[name]})}) == wanted


@pytest.mark.parametrize("text", ["0 5 -1 0", "0,5,-1,0", " 0, 5,\t-1 , 0 ", "[0, 5, -1, 0]"])
def test_numbers_in_a_row_are_a_list_however_they_are_set_apart(text):
    assert options_of({"pads": text}).pads == (0, 5, -1, 0)


def test_rates_are_exact_and_points_keep_their_fractions():
    assert options_of({"fps": "29.97"}).fps == Fraction(30000, 1001)
    assert options_of({"fps": "25"}).fps == 25
    assert options_of({"face_point": "1.5 2 0.25"}).face_point == (1.5, 2.0, 0.25)


def test_json_and_fields_add_up_but_never_speak_twice():
    assert options_of({"options": '{"crf": 20}', "label": "true"}) == Options(crf=20, label=True)
    with pytest.raises(MalformedRequest, match="crf is given twice"):
        options_of({"options": '{"crf": 20}', "crf": "20"})
    with pytest.raises(InvalidOption, match="twice"):
        options_of({"options": '{"crf": 20, "crf": 30}'})


@pytest.mark.parametrize("texts", [{"cfr": "20"}, {"options": '{"cfr": 20}'}])
def test_an_unknown_option_is_refused_by_name(texts):
    with pytest.raises(InvalidOption, match="'cfr'"):
        options_of(texts)


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    "texts",
    [{"options": ""}, {"options": "{"}, {"options": "[]"}, {"options": "null"}, {"options": DEEP}, {"options": '{"crf":' + DEEP}, {"boxes": DEEP},
     {"pads": DEEP}, {"crf": ""}, {"crf": "20.5"}, {"crf": "NaN"}, {"crf": "9" * 5000}, {"crf": "1e999"}, {"pads": "0 5 x 0"}, {"pads": "1 2 3"}, {"label": "yes"},
     {"label": "1"}, {"label": "null"}, {"sync_mode": '"bounce"x'}, {"fps": "1e999999999"}, {"fps": "0"}, {"box": "{}"}, {"boxes": "[[1,2],3]"}, {"crf": "\ud800"},
     {"pads": "9" * 5000 + " 1 1 1"}, {"options": json.dumps({"boxes": [[0, 0, 1, 1]] * 3, "box": [0, 1, 0, 1]})}],
    ids=lambda texts: str(texts)[:40],
)  # fmt: skip
def test_a_wrong_option_is_refused_with_a_typed_error(texts):
    with pytest.raises(LipsyncError) as caught:
        options_of(texts)
    assert isinstance(caught.value, InvalidOption | InvalidBoxes | MalformedRequest)
    assert len(caught.value.detail) < 1000


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(TEXTS)), text=st.one_of(st.text(max_size=40), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)).map(json.dumps)))  # fmt: skip
def test_any_text_gives_options_or_a_typed_error(name, text):
    try:
        assert isinstance(options_of({name: text}), Options)
    except LipsyncError as error:
        assert isinstance(error, InvalidOption | InvalidBoxes | MalformedRequest)


def test_the_answer_about_faces_is_taken_back_whole():
    document = tracks_to_json(np.array([[1, 2, 30, 40], NO_BOX], np.int32), size=(64, 48), fps=Fraction(25))
    wanted = Options(boxes=((1, 2, 30, 40), None), boxes_size=(64, 48))
    assert options_of({"boxes": document}) == options_of({"options": f'{{"boxes": {document}}}'}) == wanted
    with pytest.raises(MalformedRequest, match="boxes_size"):
        options_of({"boxes": document, "boxes_size": "64 48"})
    with pytest.raises(InvalidBoxes, match="frames"):
        options_of({"boxes": document.replace('"frames":2', '"frames":3')})


# ---------------------------------------------------------------- the description

SCHEMA = body_schema({"face": "a face", "audio": "a voice"})["requestBody"]["content"]["multipart/form-data"]["schema"]


def test_the_description_of_the_body_is_valid_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == TEXTS | {"face", "audio"}
    assert SCHEMA["required"] == ["face", "audio"]


def test_the_description_knows_every_option_as_the_options_do():
    plain = {name: value for name, value in EACH.items() if name != "fps"} | {"fps": "30000/1001"}
    jsonschema.validate({"face": "", "audio": "", "options": "{}"} | plain, SCHEMA)
    for wrong in (
        {"crf": "20"},
        {"sync_mode": "backwards"},
        {"pads": [1, 2, 3]},
        {"label": 1},
        {"cfr": 20},
        {"boxes": [3]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"face": "", "audio": ""} | wrong, SCHEMA)


def test_the_description_has_the_options_defaults_and_help():
    for item in fields(Options):
        shown = SCHEMA["properties"][item.name]
        assert shown["description"] == item.metadata["help"]
        assert Options.from_mapping({item.name: shown.get("default", item.default)}) == Options()


def test_lists_are_described_as_one_json_part_each():
    encoding = body_schema({"face": "x"})["requestBody"]["content"]["multipart/form-data"]["encoding"]
    assert set(encoding) == {name for name, value in EACH.items() if isinstance(value, list)}
    assert {one["contentType"] for one in encoding.values()} == {"application/json"}
