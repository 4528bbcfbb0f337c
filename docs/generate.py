"""Writes what the docs say of options, errors, settings, metrics and figures, from the code and docs/benchmarks.json.

`--check` says whether they are up to date.

Run by `make fix`; a test holds that nothing is stale.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sizing import sizing

from lipsync.cli import exit_code
from lipsync.errors import LipsyncError, all_errors
from lipsync.metrics import METRICS
from lipsync.options import Limits, Options
from lipsync.plan import Tuning
from serve.problems import status_of
from serve.settings import BatchingSettings, Settings

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
FIGURES = DOCS / "benchmarks.json"


def options_page() -> str:
    """docs/options.md, whole."""
    return f"""# Options

Made by `docs/generate.py` from `lipsync/options.py`; do not edit the tables here.

On the command line an option's name is written with dashes (`--sync-mode bounce`); in Python it is a field of
`lipsync.options.Options`; in JSON it has the same name.

## What a request may ask for

{_table(Options)}

## Sync modes

What happens where the face video and the voice differ in length. An image is simply shown as long as the voice lasts.

| mode | voice longer than the video | voice shorter than the video |
|---|---|---|
| `loop` | the video starts again | the video is cut |
| `bounce` | the video runs backwards, then forwards, and so on (the turning frames are shown once) | the video is cut |
| `cut_off` | the voice is cut | the video is cut |
| `silence` | the video's last frame is held | the voice is padded with silence |
| `remap` | the video is slowed down to the voice's length | the video is sped up to the voice's length |

## Limits

What an input may be at most; checked on headers before anything is decoded, and again while decoding.

{_table(Limits)}
"""


def errors_page() -> str:
    """docs/errors.md, whole."""
    rows = ["| slug | class | exit code | HTTP | meaning |", "|---|---|---|---|---|"]
    for error in all_errors():
        codes = f"{_code(error)} | {status_of(error('x'))}"
        rows.append(f"| `{error.slug}` | `{error.__name__}` | {codes} | {_first_line(error.__doc__)} |")
    return "\n".join(
        [
            "# Errors",
            "",
            "Made by `docs/generate.py` from `lipsync/errors.py`; do not edit the table here.",
            "",
            "Every error has a stable slug and a `detail` that says what is wrong and what to do. The command line",
            "prints the detail (with `--json` an object with `error`, the slug, and `detail`) and ends with the exit",
            "code; wrong usage of any kind is `invalid_option`, and 130 is an interruption. The server answers with",
            "the HTTP status and a problem document (RFC 9457); `overloaded` is 429 where only the caller's own",
            "requests are the reason. Of errors that are the operator's, callers are not told the detail.",
            "",
            *rows,
            "",
        ]
    )


def settings_page() -> str:
    """docs/settings.md, whole."""
    document = Settings.model_json_schema()
    groups = {name: ref for name, item in document["properties"].items() if (ref := item.get("$ref"))}
    parts = [_SETTINGS_HEAD, _settings_table("", document)]
    for name, ref in groups.items():
        schema = document["$defs"][ref.rpartition("/")[2]]
        parts += [f"## {name}", _said_of(name), _settings_table(f"{name}.", schema)]
    parts += [_BATCHING_HEAD, _settings_table("", BatchingSettings.model_json_schema())]
    return "\n\n".join(parts) + "\n"


_SETTINGS_HEAD = """# Settings of the served application

Made by `docs/generate.py` from `serve/settings.py`; do not edit the tables here.

Given in `serve_config.yaml` under `applications: args:`, nested as the names say (`admission.requests` is `admission:`,
and in it `requests:`). Unknown names are refused at any depth, and so is a number that cannot work. How many replicas
there are and what each gets of a machine stands beside them, under `deployments:`; those keys are Ray Serve's."""

_BATCHING_HEAD = """## user_config of the Generator

Under `deployments: Generator: user_config:`, and changed while it runs, without a restart."""

_GROUPS = {"preprocessor": "Each Preprocessor replica.", "renderer": "Each Renderer replica."}


def _said_of(name: str) -> str:
    schema = get_type_hints(Settings)[name]
    return _GROUPS.get(name) or _first_line(schema.__doc__)


def _settings_table(prefix: str, schema: dict[str, Any]) -> str:
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    helps = {item.name: item.metadata["help"] for kind in (Limits, Tuning) for item in fields(kind)}
    for name, item in schema["properties"].items():
        if "$ref" not in item:
            meaning = item.get("description") or helps[name]
            rows.append(f"| `{prefix}{name}` | {_default_json(item['default'])} | {_values_json(item)} | {meaning} |")
    return "\n".join(rows)


def _default_json(value: Any) -> str:
    return "–" if value is None else f"`{json.dumps(value)}`"


def _values_json(item: dict[str, Any]) -> str:
    if "anyOf" in item:
        return next(_values_json(one) for one in item["anyOf"] if one != {"type": "null"})
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    kind = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "array": "list",
    }[item["type"]]
    bounds = [f"{sign} {item[name]:g}" for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if name in item]
    return " ".join([kind, *bounds])


def metrics_page() -> str:
    """docs/metrics.md, whole."""
    rows = ["| name | on a cluster | kind | label | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS:
        label = f"`{metric.label}`" if metric.label else "–"
        rows.append(f"| `{metric.name}` | `ray_{metric.name}` | {metric.kind} | {label} | {metric.help} |")
    return "\n".join([_METRICS_HEAD, "", *rows, ""])


_METRICS_HEAD = """# Metrics

Made by `docs/generate.py` from `lipsync/metrics.py`; do not edit the table here.

In one process `LipsyncService(meters=PrometheusMeters(registry))` fills a `prometheus_client` registry, under the first
name. On a cluster every node exports them through Ray's agent, under the second name and with labels of Ray's
(`deployment`, `replica`, `application`); the application's `/metrics` gathers all nodes. Ray Serve's own metrics, whose
names begin with `ray_serve_`, are there too.

`reason` is an error's slug (docs/errors.md), with what there was enough of behind `overloaded_`: `requests`, `frames`,
`key` or `spool`. `stage` is `open`, `voice`, `detect`, `decode`, `crop`, `generate`, `paste` or `encode`; the workers
of a stage add up, so that a request's stages may come to more than it took."""


def _table(schema: type[Any]) -> str:
    hints = get_type_hints(schema)
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for item in fields(schema):
        values = _values(hints[item.name]).replace("|", "\\|")
        rows.append(f"| `{item.name}` | {_default(item.default)} | {values} | {item.metadata['help']} |")
    return "\n".join(rows)


def _values(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        return "list" if args[-1] is Ellipsis else f"{len(args)} numbers"
    if origin is not None:
        return _values(next(arg for arg in args if arg is not type(None)))
    return {"bool": "true, false", "int": "whole number", "float": "number", "Fraction": "number or N/D"}[hint.__name__]


def _default(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _code(error: type[LipsyncError]) -> int:
    return exit_code(error("x"))


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def readme() -> str:
    """README.md with its marked blocks made anew."""
    text = README.read_text()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name, block in (
        ("options", _table(Options)),
        ("figures", figures_table(figures)),
        ("fresh", fresh_line(figures)),
        ("ladder", ladder_chart()),
    ):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
    return text


def operations_page() -> str:
    """docs/operations.md with its sizing tables made anew."""
    head, rest = (DOCS / "operations.md").read_text().split("<!-- sizing:begin -->", 1)
    tables = sizing(json.loads(FIGURES.read_text()))
    return f"{head}<!-- sizing:begin -->\n{tables}\n<!-- sizing:end -->{rest.split('<!-- sizing:end -->', 1)[1]}"


def figures_table(figures: dict[str, Any]) -> str:
    """The figures that a reader wants first, each from docs/benchmarks.json; what was not measured is left out."""
    rows: list[tuple[str, str, str]] = []
    if "demo" in figures:
        demo = figures["demo"]
        rows.append(("the packaged face and voice, in a warm process", f"{demo['frames_per_s']} frames/s", "25"))
        rows.append(("first bytes of a stream", f"{demo['first_fragment_s']} s", "–"))
    if "overhead" in figures:
        for case in figures["overhead"]["cases"]:
            if case["made_here"]:
                name = f"CPU of everything but the generator ÷ encoding alone, {case['face']}, {case['detector']}"
                rows.append((name, str(case["ratio"]), f"≤ {1.3 if case['is_still'] else 2.0}"))
    if "decoding" in figures:
        worst = max(case["ratio"] for case in figures["decoding"]["cases"])
        rows.append(("frames decoded ÷ frames put out, detection included, at worst", str(worst), "≤ 2.2"))
        bounce = figures["decoding"].get("bounce", {"ratio": "not yet"})
        rows.append(("the same with `bounce` and a single keyframe", str(bounce["ratio"]), "≤ 2.2"))
    if "memory" in figures:
        rows.append(
            (
                "more memory for a 10-minute 1080p clip than for a 1-minute one",
                f"{figures['memory']['more_mb']} MB",
                "≤ 100 MB",
            )
        )
    if not rows:
        return "Not measured yet."
    on = next(iter(figures.values()))["machine"]
    lines = ["| what | measured | wanted |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(
        [*lines, "", f"On {on['cores']} cores of an {on['processor']}, shared with other work, without a GPU."]
    )


def fresh_line(figures: dict[str, Any]) -> str:
    """What a newcomer waits for, as measured by `python -m benchmarks fresh`."""
    fresh = figures.get("fresh")
    if fresh is None:
        return "How long each takes on a fresh machine: not measured yet."
    demo_min, test_min, machine = fresh["demo_s"] / 60, fresh["test_s"] / 60, fresh["machine"]
    day = fresh["date"]
    return (
        f"From a fresh clone, installing included: `make demo` {demo_min:.1f} minutes, then `make test` "
        f"{test_min:.1f} minutes ({machine['cores']} cores, {machine['processor']}; packages, torch's CPU build among "
        "them, from a mirror nearby; "
        f"as of {day}: tests that were added since take longer)."
    )


def ladder_chart() -> str:
    """The ladder's picture, of the GPU if there is one."""
    folder = DOCS / "benchmarks"
    if (folder / "ladder_cuda.png").exists():
        return "![The ladder on a GPU: frames a second by technique](docs/benchmarks/ladder_cuda.png)"
    if (folder / "ladder_cpu.png").exists():
        return (
            "![The ladder on a CPU: frames a second by technique](docs/benchmarks/ladder_cpu.png)\n\n"
            "This is a CPU, one thread of it, and not what the ladder is for; its rows for a GPU are not measured yet."
        )
    return "The ladder of techniques: not measured yet."


PAGES = {
    DOCS / "options.md": options_page,
    DOCS / "errors.md": errors_page,
    DOCS / "settings.md": settings_page,
    DOCS / "metrics.md": metrics_page,
    DOCS / "operations.md": operations_page,
    README: readme,
}


def stale_pages() -> list[str]:
    """Names of the pages that are not what this script would write."""
    return [path.name for path, page in PAGES.items() if not path.is_file() or path.read_text() != page()]


def main() -> int:
    if "--check" in sys.argv:
        stale = stale_pages()
        print("stale: " + ", ".join(stale) if stale else "up to date")
        return 1 if stale else 0
    for path, page in PAGES.items():
        path.write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
