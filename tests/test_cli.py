"""The command line as a person or a script uses it: results on stdout, the rest on stderr, exit codes."""

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from lipsync.checkpoints import convert
from lipsync.cli.stopping import PATIENCE_S
from lipsync.model.seeded import seeded_generator
from lipsync.packaged import demo_face
from tests.engine_cases import NARROW
from tests.media_factory import audio_bytes, image_bytes, video_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch

    place = tmp_path_factory.mktemp("cli")
    torch.save({"state_dict": seeded_generator(0, widths=NARROW).state_dict()}, place / "model.pth")
    convert(place / "model.pth", place / "model.safetensors")
    (place / "face.jpg").write_bytes(demo_face())
    (place / "plain.png").write_bytes(image_bytes(format="png", size=(128, 128)))
    (place / "clip.mp4").write_bytes(video_bytes(frames=12, size=(160, 120)))
    (place / "voice.wav").write_bytes(audio_bytes(seconds=0.4))
    (place / "page.pth").write_text("<!DOCTYPE html><html></html>")
    return place


def lipsync(folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lipsync", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_run_makes_a_file_and_says_so(folder):
    done = lipsync(
        folder, "run", "face.jpg", "voice.wav", "-o", "out.mp4", "--checkpoint", "model.safetensors", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "model.safetensors" in done.stderr and "out.mp4: 10 frames" in done.stderr
    assert (folder / "out.mp4").stat().st_size > 1000


def test_run_prints_json_for_machines(folder):
    done = lipsync(
        folder, "run", "plain.png", "voice.wav", "-o", "j.mp4", "--checkpoint", "model.pth", "--json",
        "--box", "10", "100", "10", "100", "--fps", "29.97", "--sync-mode", "bounce", "--blend", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["output"] == "j.mp4" and said["num_frames"] == 12
    assert said["fps"] == pytest.approx(30000 / 1001)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "plain.png", "voice.wav", "--checkpoint", "model.pth"], 3, "no_face"),
        (["run", "voice.wav", "voice.wav", "--checkpoint", "model.pth"], 3, "no_video_stream"),
        (["run", "face.jpg", "plain.png", "--checkpoint", "model.pth"], 3, "no_audio_stream"),
        (["run", "missing.jpg", "voice.wav", "--checkpoint", "model.pth"], 3, "missing.jpg"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "page.pth"], 4, "checkpoint_unreadable"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "none.pth"], 4, "checkpoint_not_found"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "model.pth", "--detector", "s3fd"], 4, "detector_unavailable"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "model.pth", "--device", "cuda:7"], 5, "device_unavailable"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "model.pth", "-o", "no/where.mp4"], 6, "output_error"),
        (["run", "face.jpg", "voice.wav", "--checkpoint", "model.pth", "--crf", "99"], 2, "crf"),
        (["run", "face.jpg", "voice.wav", "--sync-mode", "sideways"], 2, "sideways"),
        (["weights", "inspect", "page.pth"], 4, "web page"),
        (["weights", "pull", "wav2lip"], 4, "github.com"),
        (["weights", "pull", "nonsense"], 4, "nonsense"),
        (["weights", "pull"], 2, "Missing argument 'name'. See 'python -m lipsync weights pull --help'."),
        (["run", "face.jpg"], 2, "Missing argument 'voice'"),
        (["run", "face.jpg", "voice.wav", "--croup"], 2, "No such option: --croup"),
        (["run", "face.jpg", "voice.wav", "--crf", "high"], 2, "Invalid value for '--crf'"),
        (["run", "face.jpg", "voice.wav", "--pads", "1"], 2, "--pads"),
        (["sing"], 2, "No such command 'sing'"),
        (["--sing"], 2, "No such option: --sing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_failure_is_one_plain_sentence_and_an_exit_code(folder, arguments, code, said):
    done = lipsync(folder, *arguments)
    assert done.returncode == code, done.stderr
    said_of_the_error = [line for line in done.stderr.splitlines() if not line.startswith("checkpoint: ")]
    assert len(said_of_the_error) == 1 and said_of_the_error[0].startswith("error ("), done.stderr
    assert said in said_of_the_error[0]
    assert done.stdout == ""


def test_an_error_is_json_for_machines_too(folder):
    done = lipsync(folder, "run", "plain.png", "voice.wav", "--checkpoint", "model.pth", "--json")
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"] == "no_face"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "face.jpg", "--json"],
        ["run", "face.jpg", "voice.wav", "--sync-mode", "sideways", "--json"],
        ["detect", "face.jpg", "--croup", "--json"],
        ["sing", "--json"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_json_for_machines_too(folder, arguments):
    done = lipsync(folder, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    said = json.loads(done.stderr)
    assert said["error"] == "invalid_option" and "--help" in said["detail"]


def test_a_bare_name_shows_the_help(folder):
    done = lipsync(folder, "weights")
    assert done.returncode == 2 and done.stderr == ""
    assert "inspect" in done.stdout and "convert" in done.stdout


def test_every_command_takes_json():
    from typer.main import get_command

    from lipsync.cli import app

    def leaves(command):
        below = getattr(command, "commands", {}).values()
        return [leaf for child in below for leaf in leaves(child)] if below else [command]

    commands = leaves(get_command(app))
    assert len(commands) == 11
    for command in commands:
        assert any("--json" in parameter.opts for parameter in command.params), command.name


def test_what_people_are_told_machines_get_as_json(folder):
    def said(*arguments):
        done = lipsync(folder, *arguments, "--json", XDG_CACHE_HOME=str(folder / "cache"))
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return json.loads(done.stdout)

    assert said("detect", "face.jpg", "-o", "m.json") == {
        "output": "m.json",
        "num_frames": 1,
        "num_frames_with_face": 1,
    }
    assert said("detect", "face.jpg") == json.loads((folder / "m.json").read_text())
    assert said("probe", "clip.mp4")["kind"] == "video"
    assert said("weights", "inspect", "model.pth")["kind"] == "generator"
    written = said("weights", "convert", "model.pth", "m.safetensors", "--dtype", "fp16")
    assert written["output"] == "m.safetensors" and written["dtype"] == "fp16"
    listed = said("weights", "list")
    assert listed["yunet"]["state"] == "missing" and "weights pull yunet" in listed["yunet"]["advice"]
    assert "research" in listed["wav2lip"]["terms"]


def test_demo_prints_json_for_machines(folder):
    done = lipsync(folder, "demo", "-o", "demo.mp4", "--device", "cpu", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    told = json.loads(done.stdout)
    assert told["output"] == "demo.mp4" and (folder / "demo.mp4").exists()
    assert told["checkpoint"] == "packaged default, generator.safetensors"


def test_run_without_a_checkpoint_says_that_it_is_the_packaged_one(folder):
    done = lipsync(folder, "run", "face.jpg", "voice.wav", "-o", "default.mp4", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "packaged default, generator.safetensors" in done.stderr


def test_detect_writes_boxes_that_run_reads(folder):
    done = lipsync(folder, "detect", "face.jpg", "-o", "boxes.json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((folder / "boxes.json").read_text())["boxes"]) == 1
    done = lipsync(
        folder, "run", "face.jpg", "voice.wav", "-o", "b.mp4", "--checkpoint", "model.pth", "--boxes", "boxes.json"
    )
    assert done.returncode == 0, done.stderr


def test_a_file_of_boxes_that_is_none_is_said(folder):
    done = lipsync(folder, "run", "face.jpg", "voice.wav", "--checkpoint", "model.pth", "--boxes", "voice.wav")
    assert done.returncode == 3 and "invalid_boxes" in done.stderr


def test_probe_says_what_a_file_is_whatever_its_name(folder):
    (folder / "lie.png").write_bytes((folder / "clip.mp4").read_bytes())
    said = json.loads(lipsync(folder, "probe", "lie.png").stdout)
    assert said["kind"] == "video" and said["video"]["fps"] == "25"
    assert json.loads(lipsync(folder, "probe", "voice.wav").stdout)["audio"]["sample_rate_hz"] == 48_000


def test_weights_are_inspected_and_converted(folder):
    said = json.loads(lipsync(folder, "weights", "inspect", "model.pth").stdout)
    assert said["kind"] == "generator" and said["entries"] == 352
    assert lipsync(folder, "weights", "convert", "model.pth", "again.safetensors", "--dtype", "fp16").returncode == 0
    assert json.loads(lipsync(folder, "weights", "inspect", "again.safetensors").stdout)["dtype"] == "fp16"
    listed = lipsync(folder, "weights", "list").stdout
    assert "yunet" in listed and "research" in listed


def test_doctor_says_what_this_machine_can_do(folder):
    done = lipsync(folder, "doctor", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["ready"] is True
    assert said["detectors"]["auto"] in ("yunet", "centerface")
    assert "ready" in lipsync(folder, "doctor").stdout


def test_a_damaged_file_in_the_cache_is_shown_with_what_to_do(folder, tmp_path):
    cache = tmp_path / "lipsync" / "weights"
    cache.mkdir(parents=True)
    (cache / "yunet_n_dynamic.onnx").write_bytes(b"half a")
    (cache / "s3fd.pth").write_bytes(b"half a")
    here = {"XDG_CACHE_HOME": str(tmp_path)}

    done = lipsync(folder, "weights", "list", **here)
    assert done.returncode == 0, done.stderr
    assert f"unusable: {cache / 'yunet_n_dynamic.onnx'} is not the yunet" in done.stdout
    assert "Delete it and pull it again" in done.stdout and "wav2lip_gan: " in done.stdout

    done = lipsync(folder, "doctor", "--json", **here)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and done.stderr == ""
    assert "Delete it and pull it again" in said["detectors"]["yunet"]
    assert "Delete it and pull it again" in said["weights"]["yunet"]
    assert said["detectors"]["s3fd"].startswith("unavailable: ") and "cut download" in said["detectors"]["s3fd"]
    # a run that leaves the choice to us fails on the damaged file as well, and says the same
    assert said["detectors"]["auto"] == "none" and said["ready"] is False
    assert said["codecs"]["h264"] is True

    done = lipsync(folder, "detect", "face.jpg", **here)
    assert done.returncode == 4 and "Delete it and pull it again" in done.stderr


def test_doctor_knows_every_detector_and_every_weights_file(folder, tmp_path):
    from lipsync.weights import KNOWN

    said = json.loads(lipsync(folder, "doctor", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert set(said["detectors"]) == {"yunet", "centerface", "s3fd", "auto"}
    assert set(said["weights"]) == {"packaged generator", *KNOWN}
    assert "lipsync weights pull yunet" in said["detectors"]["yunet"]
    assert "lipsync weights list" in said["detectors"]["s3fd"]
    assert KNOWN["s3fd"].origin in said["weights"]["s3fd"]


def test_help_lists_every_option(folder):
    from dataclasses import fields

    from lipsync.options import Options

    text = subprocess.run(
        [sys.executable, "-m", "lipsync", "run", "--help"],
        capture_output=True,
        text=True,
        env={"COLUMNS": "300"},
        check=True,
    ).stdout
    for item in fields(Options):
        if item.name == "boxes_size":
            continue  # the file of boxes says it
        assert "--" + item.name.replace("_", "-") in text


def test_what_detect_wrote_is_told_and_what_it_cannot_write_is_an_error(folder):
    done = lipsync(folder, "detect", "face.jpg", "-o", "told.json")
    assert done.stderr == "told.json: a face in 1 of 1 frames\n"
    done = lipsync(folder, "detect", "face.jpg", "-o", "no/where.json")
    assert done.returncode == 6 and "output_error" in done.stderr and "Traceback" not in done.stderr


def test_detect_asks_for_nothing_that_it_would_ignore(folder):
    text = lipsync(folder, "detect", "--help").stdout
    assert "--detect-every" in text and "--compat" in text
    assert "--crf" not in text and "--sync-mode" not in text


def test_flags_have_no_second_spelling(folder):
    text = lipsync(folder, "run", "--help").stdout
    assert "--nosmooth" in text and "--no-nosmooth" not in text and "--no-label" not in text


def test_no_progress_is_drawn_where_nobody_watches(folder):
    done = lipsync(
        folder, "run", "plain.png", "voice.wav", "-o", "[red]q.mp4", "--checkpoint", "model.pth",
        "--box", "10", "100", "10", "100",
    )  # fmt: skip
    first, second = done.stderr.splitlines()
    assert first == "checkpoint: model.pth"
    assert second.startswith("[red]q.mp4: 10 frames"), "a name is no markup"


def test_progress_is_drawn_on_a_terminal(folder):
    (folder / "longer.wav").write_bytes(audio_bytes(seconds=2))
    said = on_a_terminal(folder, "run", "face.jpg", "longer.wav", "-o", "t.mp4", "--checkpoint", "model.pth")
    assert "looking for faces" in said
    speeds = [int(speed) for speed in re.findall(r"rendering .*?\b50/50, (\d+) frames/s", said)]
    assert speeds and max(speeds) < 1000, said
    assert "t.mp4: 50 frames" in said


def on_a_terminal(folder, *arguments: str) -> str:
    """What a command writes to stderr where that is a terminal, without the terminal's control sequences."""
    ours, its = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "lipsync", *arguments],
        cwd=folder,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=its,
    )
    os.close(its)
    said = b""
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(4096):
                said += data
        except OSError as error:
            assert error.errno == errno.EIO, "how a terminal says that nobody writes to it any more"
    assert running.communicate(timeout=30)[0] == b"" and running.returncode == 0, said
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("signs", "after_s"),
    [
        ([INT], 0.0),
        ([TERM], 0.0),
        # an impatient caller: 40 ms apart until it has ended, wherever the first one finds it
        *[([INT] * 100, after_s) for after_s in (0.0, 0.1, 0.3)],
        ([TERM] * 100, 0.2),
        ([INT, TERM] * 50, 0.0),
    ],
    ids=lambda value: f"{len(value)} {value[0].name}" if isinstance(value, list) else None,
)
def test_a_run_that_is_stopped_says_so_and_leaves_nothing(folder, signs, after_s):
    (folder / "long.wav").write_bytes(audio_bytes(seconds=120))
    (folder / "stopped").mkdir(exist_ok=True)
    command = [
        "run", "plain.png", "long.wav", "-o", "stopped/s.mp4", "--checkpoint", "model.pth", "--box", "10", "100", "10", "100",
    ]  # fmt: skip
    # as a shell does to what it starts in the background
    ignoring = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    running = subprocess.Popen(
        [*ignoring, sys.executable, "-m", "lipsync", *command], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    while not list((folder / "stopped").iterdir()):
        assert running.poll() is None, "it ended before it began to write"
        time.sleep(0.05)
    time.sleep(after_s)
    until_s = time.monotonic() + PATIENCE_S - 1  # after which one more is obeyed
    for sign in signs:
        if running.poll() is None and time.monotonic() < until_s:
            running.send_signal(sign)
            time.sleep(0.04)
    said = running.communicate(timeout=30)[1]
    assert (running.returncode, said) == (130, "checkpoint: model.pth\ninterrupted; nothing was left behind\n")
    assert list((folder / "stopped").iterdir()) == []


def test_an_ending_that_hangs_can_be_ended_all_the_same(folder):
    code = """if True:
        import time
        import lipsync.cli
        from lipsync.cli import stopping

        def hang(**_):
            try:
                print("working", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                print("ending", flush=True)
                time.sleep(60)

        stopping.PATIENCE_S = 0.5
        lipsync.cli.app = hang
        lipsync.cli.main()
    """
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "working\n"
    running.send_signal(INT)
    assert running.stdout.readline() == "ending\n"
    running.send_signal(INT)
    time.sleep(0.6)
    assert running.poll() is None, "two at once are one"
    running.send_signal(INT)
    said = running.communicate(timeout=10)[1]
    assert running.returncode == 130
    assert said.startswith("interrupted before the ending was over") and said.count("\n") == 1


def test_the_version_is_told(folder):
    assert lipsync(folder, "--version").stdout.strip() == version("lipsync-serve")
