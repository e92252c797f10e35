"""Damaged files, disks that refuse, lost nodes, no memory: real studies meet them and go on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from processes import PATIENCE, Study, assert_equal, trials_of, wait_until
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from brainseg.cli import FINISHED, KNOWN_ERROR, SOME_FAILED
from brainseg.config import Experiment
from brainseg.data.slice_store import open_dataset
from study.storage.trial_folder import TrialFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, phantom_root: Path, unhurried: Experiment
) -> Path:
    """The results of a study whose driver was killed after an epoch of stage 2: to be copied."""
    study = Study(tmp_path_factory.mktemp("interrupted"), phantom_root, unhurried)
    study.start()
    try:
        study.wait_for_epoch(3)
        wait_until(lambda: all(len(kept) > 1 for kept in study.checkpoints().values()))
        study.kill()
    finally:
        study.end()
    assert len(study.checkpoints()) == 2
    assert not list(study.results.glob("trials/*/result.json")), "the moment was missed"
    return study.results.parent


@pytest.fixture
def killed(interrupted: Path, study: Study) -> Iterator[Study]:
    """Its copy in another folder, the original away: who goes on, goes on with one that moved."""
    shutil.copytree(interrupted, study.results.parent, symlinks=True)
    away = interrupted.rename(interrupted.with_name("away"))
    yield study
    away.rename(interrupted)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.exhaustive
def test_damaged_checkpoints_are_passed_over_for_the_one_before_or_the_beginning(
    undisturbed: Study, killed: Study
) -> None:
    """Tune's own files are cut in half too: nobody reads them."""
    other, one = sorted(killed.checkpoints().values(), key=len)
    _flip_a_bit(one[-1] / "state.safetensors")
    for number, checkpoint in enumerate(other):
        (_empty, _truncate)[number % 2](checkpoint / "best.safetensors")
    states = [path for path in killed.results.glob("tune/**/*") if path.is_file()]
    assert any(path.name.startswith("experiment_state") for path in states)
    for path in states:
        _truncate(path)
    killed.finish()
    assert killed.log().count("is damaged and skipped") == 1 + len(other)
    assert killed.log().count("continues after epoch") == 1
    assert_equal(killed, undisturbed)


@pytest.mark.exhaustive
def test_a_resume_that_forgets_is_noticed(undisturbed: Study, killed: Study) -> None:
    """A checkpoint without AdamW's first moments must not pass for a whole one."""
    for checkpoints in killed.checkpoints().values():
        _forget_moments(checkpoints[-1])
    killed.finish()
    with pytest.raises(AssertionError):
        assert_equal(killed, undisturbed)


def _forget_moments(checkpoint: Path) -> None:
    """Zero AdamW's moments, the checksums made to fit."""
    path = checkpoint / "state.safetensors"
    state = load_file(path)
    save_file({k: v * (not k.endswith("exp_avg")) for k, v in state.items()}, path)
    manifest = checkpoint / "manifest.json"
    sums = json.loads(manifest.read_text())
    sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(sums))


@pytest.mark.exhaustive
def test_swapped_checkpoints_are_noticed(undisturbed: Study, killed: Study) -> None:
    one, other = (killed.results / "trials" / name for name in killed.checkpoints())
    (one / "checkpoints").rename(one / "mine")
    (other / "checkpoints").rename(one / "checkpoints")
    (one / "mine").rename(other / "checkpoints")
    killed.finish()
    assert killed.log().count("is of another experiment") == 2
    assert_equal(killed, undisturbed)


@pytest.mark.exhaustive
def test_memory_that_runs_out_halves_the_batches_of_that_trial(
    undisturbed: Study, study: Study
) -> None:
    process = study.start_with_fault("memory", "stage1-epoch0002")
    assert process.wait(PATIENCE) == FINISHED, study.log()
    rows = [TrialFolder(path).read() for path in (study.results / "trials").iterdir()]
    assert sorted(row["batch_parts"] for row in rows if row) == [1, 2]
    with pytest.raises(AssertionError):
        assert_equal(study, undisturbed)


@pytest.mark.exhaustive
def test_a_dataset_that_changed_is_refused(
    killed: Study, phantom_root: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_root, data)
    open_dataset(data)  # decoded and stored as it is; then a file changes
    image = next(path for path in sorted(data.glob("*/*.tif")) if "mask" not in path.name)
    pixels = cv2.imread(str(image))
    assert pixels is not None
    cv2.imwrite(str(image), 255 - pixels)
    killed.command[-1] = str(data)
    assert killed.start().wait(PATIENCE) == KNOWN_ERROR
    assert "holds another study (fingerprint: " in killed.log()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that a test may fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def study_on_disk(small_disk: Path, phantom_root: Path, unhurried: Experiment) -> Iterator[Study]:
    study = Study(small_disk / "study", phantom_root, unhurried)
    yield study
    study.end()


def _fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        while shutil.disk_usage(disk).free:
            try:
                file.write(bytes(shutil.disk_usage(disk).free))
                file.flush()
            except OSError:
                break
    return ballast


def test_a_full_disk_ends_a_study_that_goes_on_once_there_is_space(
    undisturbed: Study, small_disk: Path, study_on_disk: Study
) -> None:
    process = study_on_disk.start("--retries", "0")
    study_on_disk.wait_for_epoch(2)
    ballast = _fill(small_disk)
    assert process.wait(PATIENCE) in (KNOWN_ERROR, SOME_FAILED)
    ballast.unlink()
    assert "No space left on device" in study_on_disk.log()
    study_on_disk.finish()
    assert "continues after epoch" in study_on_disk.log()
    assert_equal(study_on_disk, undisturbed)


@pytest.mark.exhaustive
def test_a_disk_full_for_seconds_is_waited_for(
    undisturbed: Study, small_disk: Path, study_on_disk: Study
) -> None:
    process = study_on_disk.start("--retries", "0")
    study_on_disk.wait_for_epoch(2)
    ballast = _fill(small_disk)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(10)
    ballast.unlink()
    assert process.wait(PATIENCE) == FINISHED, study_on_disk.log()
    assert_equal(study_on_disk, undisturbed)


def test_a_disk_too_small_is_refused_before_the_start(
    small_disk: Path, study_on_disk: Study
) -> None:
    _fill(small_disk).rename(small_disk / "other")
    assert study_on_disk.start().wait(PATIENCE) == KNOWN_ERROR


@pytest.mark.exhaustive
def test_storage_that_is_gone_for_seconds_is_waited_for(
    undisturbed: Study, tmp_path: Path, phantom_root: Path, unhurried: Experiment
) -> None:
    """A share is unmounted under a running study, and mounted again."""
    disk, share = tmp_path / "disk", tmp_path / "share"
    for folder in (disk, share):
        folder.mkdir()
    _mount_share(disk, share)
    study = Study(tmp_path / "study", phantom_root, unhurried)
    study.results.parent.symlink_to(share)
    try:
        process = study.start("--retries", "0")
        study.wait_for_epoch(2)
        subprocess.run(["umount", "--lazy", str(share)], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10)
        assert not (study.results / "trials").exists()
        _mount_share(disk, share)
        assert process.wait(PATIENCE) == FINISHED, study.log()
        assert_equal(study, undisturbed)
    finally:
        study.end()
        subprocess.run(["umount", "--lazy", str(share)], check=True)


def _mount_share(disk: Path, share: Path) -> None:
    mount = ["mount", "--bind", str(disk), str(share)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a share")


def test_storage_that_cannot_be_written_is_a_sentence(
    small_disk: Path, study_on_disk: Study
) -> None:
    _assert_refused_while_read_only(small_disk, study_on_disk)


@pytest.mark.exhaustive
def test_a_study_goes_on_once_its_storage_can_be_written_again(
    undisturbed: Study, interrupted: Path, small_disk: Path, study_on_disk: Study
) -> None:
    shutil.copytree(interrupted, study_on_disk.results.parent, symlinks=True)
    _assert_refused_while_read_only(small_disk, study_on_disk)
    assert _remount(small_disk, "rw")
    study_on_disk.finish()
    assert_equal(study_on_disk, undisturbed)


def _assert_refused_while_read_only(small_disk: Path, study_on_disk: Study) -> None:
    wait_until(lambda: _remount(small_disk, "ro"))
    refused = subprocess.run(
        study_on_disk.command, cwd=study_on_disk.folder, capture_output=True, timeout=PATIENCE
    )
    assert refused.returncode == KNOWN_ERROR
    assert b"cannot be written: name another folder" in refused.stderr
    assert refused.stderr.count(b"\n") == 1


def _remount(disk: Path, mode: str) -> bool:
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that takes no trials, and three nodes with a processor each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.exhaustive
def test_the_trials_of_a_lost_node_go_on_at_another_without_a_retry(
    undisturbed: Study, study: Study, three_nodes: Cluster
) -> None:
    study.environment["RAY_AUTH_MODE"] = "disabled"
    process = study.start("--address", three_nodes.address, "--retries", "0")
    study.wait_for_epoch(2)
    lost = next(node for node in three_nodes.worker_nodes if trials_of(node))
    three_nodes.remove_node(lost, allow_graceful=False)
    assert process.wait(PATIENCE) == FINISHED, study.log()
    assert "continues after a failure: its node was lost, 1 so far" in study.log()
    assert "a trial lost its node, which used up no retry" in study.log()
    assert_equal(study, undisturbed)
