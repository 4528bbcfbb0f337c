"""Errors as HTTP answers: each has a status, a shape and a slug, and none says what is the operator's alone."""

import json

import pytest
from ray.exceptions import RayTaskError

from lipsync.errors import (
    CheckpointNotFound,
    DetectorUnavailable,
    EngineError,
    InputError,
    LipsyncError,
    OutputError,
    Overloaded,
    ResultTooLarge,
    ServiceError,
    all_errors,
)
from serve.faults import cause_of
from serve.problems import STATUS, answer, document, reason_of, status_of, told

SECRET = "Cannot open /srv/secret/spool-0/face on 10.0.0.7:6379."


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.slug)
def test_every_error_has_a_status_and_a_document(error):
    response = answer(told(error("What is wrong, and what to do."), "id-1"), "id-1")
    body = json.loads(response.body)
    assert response.status_code == status_of(error("x")) == body["status"]
    assert response.media_type == "application/problem+json"
    assert set(body) == {"type", "title", "status", "detail", "error", "request_id"}
    assert body["error"] == error.slug and body["type"] == f"urn:lipsync:error:{error.slug}"
    assert body["request_id"] == "id-1" and body["title"] and body["detail"].endswith((".", "id-1."))
    assert 400 <= response.status_code < 500 if issubclass(error, InputError) else response.status_code >= 400


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.slug)
def test_whoever_may_try_again_is_told_when(error):
    response = answer(error("x"), "id")
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))
    assert int(response.headers.get("retry-after", "1")) >= 1


def test_a_keys_own_load_is_told_from_everybodys():
    full = Overloaded("x")
    full.retry_after_s, full.reason = 2.2, "key"
    response = answer(full, "id")
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    full.reason = "frames"
    assert answer(full, "id").status_code == 503
    assert reason_of(full) == "overloaded_frames"


def test_a_missing_key_is_told_the_scheme():
    response = answer(next(e for e in all_errors() if e.slug == "unauthorized")("x"), "id")
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    "error",
    [e for e in all_errors() if not issubclass(e, InputError | ServiceError | ResultTooLarge)],
    ids=lambda e: e.slug,
)
def test_what_is_the_operators_alone_stays_in_the_log(error):
    said = told(error(SECRET), "id-1")
    assert type(said) is error
    assert "secret" not in json.dumps(document(said, "id-1"))
    assert "id-1" in said.detail and len(said.detail.split()) > 5, "a sentence all the same"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        KeyError("/srv/secret"),
        OSError(2, "No such file", "/srv/secret"),
        MemoryError(),
        StopAsyncIteration(),
    ],
    ids=repr,
)
def test_an_error_that_nobody_foresaw_says_only_where_to_look(error):
    said = told(error, "id-1")
    response = answer(said, "id-1")
    assert response.status_code == 500
    assert json.loads(response.body)["error"] == "error"
    assert (
        b"secret" not in response.body and b"Traceback" not in response.body and type(error).__name__ not in said.detail
    )


def test_rays_wrapping_with_its_remote_traceback_never_shows():
    plain = next(e for e in all_errors() if e.slug == "no_face")("No face in 3 frames. Send another.")
    wrapped = RayTaskError(
        "render", 'Traceback\n File "/srv/secret/render.py"', plain, ip="10.0.0.7"
    ).as_instanceof_cause()
    assert "secret" in str(wrapped), "Ray's error says it"
    assert document(told(cause_of(wrapped), "id"), "id")["detail"] == plain.detail


def test_what_the_caller_can_change_is_the_callers_fault():
    assert status_of(ResultTooLarge("x")) == 422
    assert status_of(DetectorUnavailable("x")) == 400
    for error in (OutputError, EngineError, CheckpointNotFound, LipsyncError):
        assert status_of(error("x")) == 500


def test_statuses_stand_by_class_and_never_contradict_the_tree():
    assert set(STATUS.values()) <= {400, 401, 413, 415, 422, 500, 503, 504}
