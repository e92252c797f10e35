"""Every variant of every grid that comes with the program, in little: killed, and continued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from processes import Study, assert_equal, wait_until

from brainseg.config import Experiment
from brainseg.storage.files import read_csv
from study.spec.grid import LEAKY, Changes, shipped_grids

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.timeout(900)]


def _variants(base: Experiment, start: int) -> dict[str, Changes]:
    """The different experiments of all grids, named after the first grid that has them.

    Args:
        base: What they differ from.
        start: Index of the first variant of each grid that is taken; -1 takes the last alone.
    """
    seen: dict[Experiment, str] = {}
    found = {}
    for grid in shipped_grids():
        for name, changes in list(grid.variants.items())[start:]:
            keys = {**grid.shared, **changes}
            experiment = base.replaced(keys)
            if experiment not in seen:
                leaky = LEAKY if experiment.is_leaky else ""
                seen[experiment] = f"{leaky}{grid.name}-{name.removeprefix(LEAKY)}"
                found[seen[experiment]] = keys
    return found


@pytest.fixture(params=[-1, 0], ids=["last", "all"])
def studies(
    request: pytest.FixtureRequest, tmp_path: Path, phantom_root: Path, tiny: Experiment
) -> Iterator[list[Study]]:
    variants = _variants(tiny, request.param)
    studies = []
    for name in ("quiet", "killed"):
        study = Study(tmp_path / name, phantom_root, tiny)
        text = yaml.safe_dump({"description": "All.", "variants": variants}, sort_keys=False)
        (study.folder / "all.yaml").write_text(text)
        study.command[study.command.index("lite")] = "all.yaml"
        study.command += ["--concurrent", "2", "--cpus-per-trial", "1"]
        study.results = study.results.with_name("all-synthetic")
        studies.append(study)
    yield studies
    for study in studies:
        study.end()


def test_every_shipped_variant_trains_and_goes_on_after_a_kill_to_equal_bits(
    studies: list[Study],
) -> None:
    quiet, killed = studies
    quiet.finish()
    rows = read_csv(quiet.results / "trials.csv")
    assert len(rows) >= 6
    assert {row["status"] for row in rows} == {"finished"}
    killed.start()

    def is_half_way() -> bool:
        """Whether half of the trials have ended, and one is between two epochs."""
        begun = {path.parent for path in killed.results.glob("trials/*/history.csv")}
        ended = {path.parent for path in killed.results.glob("trials/*/result.json")}
        return len(ended) >= len(rows) // 2 and len(begun) > len(ended)

    wait_until(is_half_way)
    killed.kill()
    assert len(list(killed.results.glob("trials/*/result.json"))) < len(rows)
    killed.finish()
    assert_equal(killed, quiet)
    report = (quiet.results / "report.md").read_text()
    assert "LEAKY" in report
