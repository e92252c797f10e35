"""Nothing is sent unasked: the commands work where no other machine can be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dead_end import UNAVAILABLE
from processes import PATIENCE, Study

from brainseg.cli import FINISHED
from brainseg.config import Experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_RECORDED_OR_CUT_OFF = pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), marks=pytest.mark.exhaustive, id="recorded"),
        pytest.param(("--no-route",), id="no-route"),
    ],
)
DEAD_END = Path(__file__).parents[1] / "dead_end.py"
DEMO = """
import subprocess, sys, urllib.request
demo = subprocess.Popen(
    [sys.executable, "-m", "brainseg.demo", *sys.argv[1:]], stdout=subprocess.PIPE, text=True
)
line = next(line for line in demo.stdout if " shows " in line)
page = urllib.request.urlopen(line.split()[0]).read()
demo.terminate()
sys.exit(demo.wait() or b"gradio" not in page)
"""


def _run(folder: Path, *command: str | Path, flags: tuple[str, ...] = ()) -> str:
    """Run a command in a network of its own; return what it tried to send to others."""
    report = folder / "sent.txt"
    apart = ["unshare", "--map-root-user", "--net", "--mount", sys.executable, str(DEAD_END)]
    try:
        done = subprocess.run(
            [*apart, str(report), *flags, *map(str, command)],
            cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    except FileNotFoundError as error:
        pytest.skip(f"this machine has no network namespaces: {error}")
    if not report.exists():  # refused by unshare, or UNAVAILABLE
        pytest.skip(f"this machine cannot take the network away: {done.stderr.strip()}")
    assert done.returncode == FINISHED, done.stdout + done.stderr
    return report.read_text()


def test_what_is_sent_is_noticed(tmp_path: Path) -> None:
    """To a name server, and to an address."""
    ask = "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: pass\n"
    knock = "try: socket.create_connection(('192.0.2.7', 81), 0.2)\nexcept OSError: pass\n"
    sent = _run(tmp_path, sys.executable, "-c", ask + knock)
    assert "UDP to 10.99.0.2 port 53" in sent
    assert "TCP to 192.0.2.7 port 81" in sent
    assert UNAVAILABLE not in (FINISHED, 1, 2)


@_RECORDED_OR_CUT_OFF
def test_a_whole_study_sends_nothing(
    tmp_path: Path, phantom_root: Path, tiny: Experiment, flags: tuple[str, ...]
) -> None:
    study = Study(tmp_path / "study", phantom_root, tiny)
    assert _run(study.folder, *study.command, flags=flags) == ""
    assert (study.results / "report.html").exists()


@_RECORDED_OR_CUT_OFF
def test_pages_and_predictions_send_nothing(
    tmp_path: Path, phantom_root: Path, patient: Path, model_file: Path, flags: tuple[str, ...]
) -> None:
    explore: list[str | Path] = [
        "-m",
        "brainseg.explore",
        "--data",
        phantom_root,
        "--out",
        tmp_path / "explored",
    ]
    predict: list[str | Path] = [
        "-m",
        "brainseg.predict",
        model_file,
        patient,
        "--out",
        tmp_path / "predicted",
    ]
    demo: list[str | Path] = ["-c", DEMO, model_file, "--data", phantom_root, "--device", "cpu"]
    for command in (explore, predict, demo):
        assert _run(tmp_path, sys.executable, *command, flags=flags) == "", command
