"""The description of the API against the API: whatever it allows is answered as it says, by schemathesis."""

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.http_fixtures import alone, replicas, serve, speaking

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e .[dev]")
requests = pytest.importorskip("requests")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

OPERATIONS = [
    ("POST", "/v1/lipsync"), ("POST", "/v1/faces"), ("GET", "/v1/models"), ("GET", "/v1/limits"), ("GET", "/healthz"), ("GET", "/readyz"),
]  # fmt: skip
"""All but /metrics, which asks the nodes of a cluster."""
CASES = 20


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_what_the_description_allows_is_answered_as_it_says(serve, method, path):
    async with serve() as served:
        schema = schemathesis.openapi.from_dict(served.api.openapi())
        operation = schema[path][method]
        modes = schemathesis.GenerationMode if method == "POST" else [schemathesis.GenerationMode.POSITIVE]
        cases = [case for mode in modes for case in drawn(operation, mode, CASES if method == "POST" else 1)]
        assert len(cases) >= (1.5 * CASES if method == "POST" else 1)
        for case in cases:
            sent = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
            answer = await served.client.request(sent.method, sent.url, content=sent.body, headers=dict(sent.headers))
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            # no schema can say which bytes are a face
            case.validate_response(
                schemathesis.Response.from_any(answer), excluded_checks=[checks.positive_data_acceptance]
            )


def drawn(operation, mode, count: int) -> list:
    """``count`` cases, the same every time."""
    found: list = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case):
        found.append(case)

    collect()
    return found
