"""The benchmarks: their arithmetic, their help, and short runs of the cheap ones."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.goodput import Killer, Loss
from benchmarks.growth import exponent
from benchmarks.measure import Spread, alternate, digits, ratios, set_flags, table
from benchmarks.packing import list_packings
from benchmarks.quality import accumulate, reached

ROOT = Path(__file__).parents[2]
SHARED = ("__init__", "measure")
NAMES = [
    path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem not in SHARED
]
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_a_spread_is_median_and_range() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert str(Spread.of([1.5, 0.5])) == "1.00 (0.500 to 1.50)"


def test_ratios_are_taken_within_each_alternation() -> None:
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(3.0, 2.0, 4.0)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (-0.01234, "-0.012"),
        (-1e-9, "0.000"),
    ],
)
def test_numbers_have_few_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_ways_are_measured_in_turn() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in "AB"}  # type: ignore[misc,func-returns-value]
    assert alternate(ways, 2) == {"A": [1, 3], "B": [2, 4]}
    assert order == ["A", "B", "A", "B"]


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["x", 2.0], [Spread(1.0, 1.0, 1.0), 3]]) == (
        "| a | b |\n| --- | --- |\n| x | 2.00 |\n| 1.00 (1.00 to 1.00) | 3 |"
    )


def test_changes_become_flags_that_a_study_reads() -> None:
    from brainseg.config import parse_changes

    changes = {"preprocess.filters": ["median"], "data.size": 64, "model.encoder_weights": "none"}
    flags = set_flags(changes)
    assert flags[::2] == ["--set"] * 3
    assert parse_changes(flags[1::2]) == changes


@pytest.mark.parametrize(
    ("sizes", "values", "expected"),
    [([1, 2, 4], [3.0, 9.0, 12.0], 1.0), ([10, 40], [2.0, 2.0], 0.0), ([1, 4], [1.0, 16.0], 2.0)],
)
def test_the_exponent_is_that_of_a_power(
    sizes: Sequence[int], values: Sequence[float], expected: float
) -> None:
    assert exponent(sizes, values) == pytest.approx(expected)


def test_packings_go_from_one_trial_to_one_per_core_and_hold_the_default() -> None:
    assert list_packings(4, 8) == ([(1, 4), (2, 2), (4, 1)], (4, 1))
    assert list_packings(2, 1) == ([(1, 2)], (1, 2))
    packings, default = list_packings(6, 4)
    assert default in packings


def test_the_target_is_reached_after_the_seconds_of_all_epochs_so_far() -> None:
    curve = accumulate([(2.0, 0.1), (3.0, 0.5), (4.0, 0.4)])
    assert curve == [(2.0, 0.1), (5.0, 0.5), (9.0, 0.4)]
    assert reached(curve, 0.4) == 5.0
    assert reached(curve, 0.6) is None


class _Nodes:
    """Stands for a cluster; a loss is a line in the study's log."""

    def __init__(self, number: int) -> None:
        self.worker_nodes = [SimpleNamespace(unique_id=n) for n in range(number)]
        self.killed: list[int] = []

    def add_node(self, **options: object) -> None:
        self.worker_nodes.append(SimpleNamespace(unique_id=len(self.killed) + 10))


def test_a_loss_lasts_until_the_trial_has_got_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two nodes is killed, never both; epochs that are written again do not count."""
    now, nodes, log = [100.0], _Nodes(2), tmp_path / "log.txt"
    trial = tmp_path / "results" / "benchmark" / "trials" / "raw"
    trial.mkdir(parents=True)

    def kill(cluster: _Nodes, node: SimpleNamespace) -> None:
        cluster.worker_nodes.remove(node)
        cluster.killed.append(node.unique_id)

    def step(seconds: float, epochs: int, line: str = "") -> None:
        now[0] += seconds
        (trial / "history.csv").write_text("step\n" + "".join(f"{n}\n" for n in range(epochs)))
        with log.open("a") as file:
            file.write(line)
        killer.look(None, trial.parents[2])

    monkeypatch.setattr("benchmarks.goodput.time.time", lambda: now[0])
    monkeypatch.setattr("benchmarks.goodput.kill_node", kill)
    killer = Killer(nodes, 1.0, every=10.0, seed=0)
    step(0, 0)
    step(5, 1, "raw  1/3  frozen\n")
    step(7, 1)
    assert nodes.killed == []
    step(3, 1)
    assert nodes.killed == [0]
    assert len(nodes.worker_nodes) == 2
    step(2, 0, "raw continues after a failure: its node was lost, 1 so far; no retry\n")
    assert killer.losses == [Loss("raw", 115.0, epochs=1, unsaved=10.0)]
    step(3, 1)
    assert killer.losses[0].seconds is None
    step(4, 2, "raw  2/3  all\n")
    assert killer.losses[0].seconds == 9.0
    assert (killer.num_killed, killer.num_epochs) == (1, 2)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "gpu" else []) for name in NAMES],
)
def test_help_teaches_and_loads_no_torch(name: str) -> None:
    code = (
        f"import sys; from benchmarks.{name} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('LOADED', {'torch', 'ray'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "examples:" in run.stdout
    assert f"python -m benchmarks.{name}" in run.stdout
    assert "exit codes:" in run.stdout
    assert name == "gpu" or "LOADED set()" in run.stdout  # gpu.py is torch's from top to bottom
    assert max(len(line) for line in run.stdout.splitlines()) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_read_and_the_page_names_the_command(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    texts = [(ROOT / "benchmarks" / f"{stem}.py").read_text() for stem in (name, "measure")]
    parser: argparse.ArgumentParser = module._parser()
    for action in parser._actions:
        if action.dest != "help":
            assert f"args.{action.dest}" in "".join(texts), f"--{action.dest} is never read"
    assert f"python -m benchmarks.{name}" in README


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "loading --size 32 --steps 2 --encoder mobilenet_v2",
        "steps --encoders mobilenet_v2 --sizes 32 --threads 1 --batch 4 --steps 1",
        "prediction --size 32 --slices 4 --encoder mobilenet_v2",
        pytest.param(
            "goodput --size 32 --epochs 1 3 --seeds 1 --probability 0.1 --every 5",
            marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)],
        ),
    ],
)
def test_a_cheap_benchmark_prints_a_table(command: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{command} --alternations 2".split()],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "| --- |" in run.stdout
    assert "(min to max)" in run.stdout or " to " in run.stdout
    assert "cores" in run.stdout
