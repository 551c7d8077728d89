"""Output that cannot be written: one message, status 3, no traceback, behind every command."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests_support import COMMAND, RECIPE, distbp, finish, start

FULL = Path("/dev/full")
COMMANDS = {
    "version": ["--version"],
    "help": ["--help"],
    "help of a command": ["train", "--help"],
    "evaluate": ["evaluate", "RUN", "digits"],
    "predict": ["predict", "RUN", "digits", "--out", "p.npy"],
    "bench": ["bench", "--layers", "4,3", "--batch", "4", "--steps", "10"],
    "bench of two": ["bench", "--layers", "4,3", "--batch", "4", "--steps", "10", "--workers", "2"],
    "train": ["train", "--epochs", "2", "--shards", "2", "--out", "new"],
    "train of two": ["train", "--epochs", "200", "--shards", "2", "--workers", "2", "--out", "new"],
}
SAYS = {"full": "No space left on device", "closed pipe": "Broken pipe"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    distbp("train", folder / "recipe.yaml", "--epochs", 1, "--out", folder / "out")
    return folder / "out"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written_is_said_once(command, kind, run, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    words = [str(run) if word == "RUN" else word for word in COMMANDS[command]]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            stdout={"full": full, "closed pipe": writing}[kind],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | ({"PYTHONUNBUFFERED": "1"} if kind == "full" else {}),
            timeout=60,
            check=False,
        )
    os.close(writing)
    said = {SAYS[kind], SAYS["closed pipe"]} if "of two" in command else {SAYS[kind]}  # ranks see the end of their pipe
    expected = [f"expected to be able to write standard output; the system says: {words}" for words in said]
    assert any(words in done.stderr for words in expected), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 3
    if command == "train of two":
        assert "distbp train --resume new" in done.stderr
    if command == "train":
        assert "--resume" not in done.stderr or (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_nobody_wants_goes_nowhere(command, run, tmp_path):
    words = [str(run) if word == "RUN" else word for word in COMMANDS[command]]
    done = subprocess.run(
        [*COMMAND, *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: os.close(1),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_standard_error_does_not_hide_the_status_nor_go_into_the_output(run):
    for words, status in ((["evaluate", run, "digits"], 0), (["evaluate", "nowhere", "digits"], 2)):
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.close(2),
            check=False,
            timeout=60,
        )
        assert done.returncode == status
        assert (b"accuracy" in done.stdout) == (status == 0)
        assert b"distbp:" not in done.stdout


def test_files_do_not_take_the_place_of_closed_streams(run, tmp_path):
    """With all three closed, the next file that is opened would be standard output."""
    out = tmp_path / "p.npy"
    command = [*COMMAND, "predict", str(run), "digits", "--out", str(out)]
    done = subprocess.run(command, preexec_fn=lambda: os.closerange(0, 3), check=False, timeout=60)
    assert done.returncode == 0
    assert out.read_bytes().startswith(b"\x93NUMPY")
    assert b"rows written" not in out.read_bytes()


def test_a_terminal_without_box_characters_is_no_reason_to_fail(tmp_path):
    environment = dict(os.environ) | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for words in (["train", "--epochs", 1, "--shards", 1, "--out", tmp_path / "a"], ["--help"], ["train", "--help"]):
        done = distbp(*words, env=environment)
        assert "Traceback" not in done.stderr
        assert done.stdout.isascii()


def test_without_a_terminal_there_is_a_line_an_epoch(tmp_path):
    done = distbp(
        *["train", "--epochs", 2, "--shards", 2, "--workers", 2, "--out", tmp_path / "run"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name not in ("TERM", "COLUMNS")},
    )
    assert done.stdout.count("epoch ") == 2
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["train", "--epochs", "100000"]], ids=["help", "train"])
def test_an_interrupt_at_the_start_leaves_no_traceback(words, tmp_path):
    """Python's own start, before any line of ours, is left out: these tests wait until the package is imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == os.environ['INTERRUPT_AT']:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    for module in ["typer", "distbp.cli.train", *([] if words == ["--help"] else ["numpy", "distbp.train"])]:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        done = finish(start(*words, env=environment | {"INTERRUPT_AT": module}, cwd=tmp_path), 60)
        assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT), done.stderr
        assert "Traceback" not in done.stderr
