"""The HTTP interface's own description: that it is one, and that the answers are as described."""

import json

import httpx
import jsonschema
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from lipsync.faces.given import tracks_from_json
from lipsync.packaged import demo_face
from serve.form import options_of
from tests.http_fixtures import (
    BOX,
    FACE,
    KEY,
    alone,
    replicas,
    serve,
    speaking,
)

# ---------------------------------------------------------------- the description


async def test_the_description_is_an_openapi_document(serve):
    async with serve() as served:
        document = (await served.client.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        OpenAPI.model_validate(document)
        schemas = list(schemas_in(document))
        assert len(schemas) > 20
        for schema in schemas:
            jsonschema.Draft202012Validator.check_schema(schema)
        described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
        routes = {
            (route.path, method)
            for route in served.api.routes
            if isinstance(route, APIRoute)
            for method in route.methods
        }
        assert described == routes
        for item in document["paths"].values():
            for operation in item.values():
                assert operation["description"] and "200" in operation["responses"]
        assert "swagger" in (await served.client.get("/docs")).text


def described(document: dict, method: str, path: str, response: httpx.Response) -> dict:
    """What the description has of an answer: its media type's part. The answer's headers are described too."""
    answer = document["paths"][path][method]["responses"][str(response.status_code)]
    ours = {name for name in response.headers if name.startswith(("x-", "server-", "retry-", "www-"))}
    assert ours <= {name.lower() for name in answer["headers"]}
    media_type = response.headers["content-type"].partition(";")[0]
    assert list(answer["content"]) == [media_type]
    return answer["content"][media_type]


async def test_every_answer_is_as_it_is_described(serve, monkeypatch):
    async def gathered():
        return "ray_lipsync_requests_running 0.0\n"

    monkeypatch.setattr("serve.http.gather", gathered)
    face, given = demo_face(), {"preset": "ultrafast"}
    async with serve(limits={"video_bytes": 500_000, "image_bytes": 500_000}) as served:
        document, post, get = served.api.openapi(), served.post, served.client.get
        answers = [
            ("/v1/lipsync", 200, await post(data=BOX)), ("/v1/lipsync", 200, await post("/v1/lipsync?stream=true", data=BOX)),
            ("/v1/lipsync", 400, await post(audio=None)), ("/v1/lipsync", 413, await post(face=FACE + bytes(600_000))),
            ("/v1/lipsync", 415, await post(face=b"<!doctype html>")), ("/v1/lipsync", 422, await post()),
            ("/v1/faces", 200, await post("/v1/faces", face=face, audio=None)), ("/v1/faces", 400, await post("/v1/faces", data=given)),
            ("/v1/faces", 422, await post("/v1/faces", audio=None)),
            ("/v1/models", 200, await get("/v1/models")), ("/v1/limits", 200, await get("/v1/limits")), ("/healthz", 200, await get("/healthz")),
            ("/readyz", 200, await get("/readyz")), ("/metrics", 200, await get("/metrics")),
        ]  # fmt: skip
        for path, status, response in answers:
            assert response.status_code == status, response.text
            part = described(document, "post" if path in ("/v1/lipsync", "/v1/faces") else "get", path, response)
            if "json" in response.headers["content-type"]:
                jsonschema.validate(response.json(), part["schema"])
                wrong = response.json() | {"more": 1}
                assert not jsonschema.Draft202012Validator(part["schema"]).is_valid(wrong), "no schema that takes all"
        assert {path for path, _, _ in answers} == set(document["paths"])
        examples = [await get("/v1/limits"), await get("/healthz"), await get("/readyz")]
        for path, shown in zip(("/v1/limits", "/healthz", "/readyz"), examples, strict=True):
            example = described(document, "get", path, shown)["example"]
            assert example == (shown.json() if path == "/v1/limits" else shown.text)


async def test_every_example_is_one_of_what_it_stands_beside(serve, monkeypatch):
    monkeypatch.setenv("LIPSYNC_API_KEYS", KEY)
    async with serve(auth={"mode": "keys"}) as served:
        document = served.api.openapi()
    bodies, answers = 0, 0
    for item in document["paths"].values():
        for operation in item.values():
            form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})
            for example in form.get("examples", {}).values():
                jsonschema.validate(example["value"], form["schema"])
                options_of({name: value if isinstance(value, str) else json.dumps(value)
                            for name, value in example["value"].items() if name not in ("face", "audio")})  # fmt: skip
                bodies += 1
            for answer in operation["responses"].values():
                for part in answer["content"].values():
                    if "example" in part:
                        jsonschema.validate(part["example"], part["schema"])
                        answers += 1
                    else:
                        assert part["schema"].get("format") == "binary"
    assert bodies == 6 and answers > 25
    faces = document["paths"]["/v1/faces"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert tracks_from_json(json.dumps(faces)).boxes[1] is None


def schemas_in(value):
    if isinstance(value, dict):
        if isinstance(value.get("schema"), dict):
            yield value["schema"]
        for inner in value.values():
            yield from schemas_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from schemas_in(inner)
