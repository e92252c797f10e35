"""A study at a URL and its copies on several machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from s3 import Store

from brainseg.cli import FINISHED, KNOWN_ERROR, USAGE
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.errors import StorageError
from brainseg.storage.remote import RemoteFolder, local_files
from study.cli import parse_options
from study.resolve import resolve
from study.run import main as run
from study.spec.trial_job import TrialJob
from study.storage import sync as sync_module
from study.storage.study_folder import read_spec, write_study
from study.storage.sync import StudySync, find_study, is_report_file
from study.storage.trial_folder import TrialFolder

TRIAL = Path("trials") / "raw-fold0-seed1"


@pytest.fixture
def url(store: Store, tmp_path: Path) -> str:
    return store.url(f"{tmp_path.name}/lite")


def test_what_a_study_asked_is_read_where_it_is(
    url: str, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has no copy of it, or a stale one."""
    sync = _on("one", url, tmp_path, monkeypatch)
    assert sync.begun_as() is None
    RemoteFolder(url).write("study.json", (generated / "study.json").read_bytes())
    begun = sync.begun_as()
    assert begun is not None
    assert begun == read_spec(generated) == StudySync(generated).begun_as()
    assert not (sync.folder / "study.json").exists(), "another driver may hold the copy"
    assert StudySync(tmp_path / "new").begun_as() is None


def _on(machine: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudySync:
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / machine))
    return StudySync(url)


def _write(sync: StudySync, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = sync.folder / TRIAL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _work(sync: StudySync) -> TrialFolder:
    """Return the trial's folder as its worker has it."""
    return sync.workspace(TRIAL, "raw")


def _checkpoint(epoch: int) -> dict[str, str]:
    folder = f"checkpoints/stage1-epoch{epoch:04d}"
    return {f"{folder}/state.safetensors": "state", f"{folder}/manifest.json": "{}"}


def _names(url: str) -> set[str]:
    below = TRIAL.as_posix()
    return {name.removeprefix(f"{below}/") for name in RemoteFolder(url).list(below)}


def test_names_of_trials_and_searches_do_not_pass_for_checkpoints() -> None:
    for trial in ("trials/a", "search/candidates/0001", "search/a/candidates/0001"):
        assert not is_report_file(f"{trial}/checkpoints/inner0/stage1-epoch0001/manifest.json")
        assert not is_report_file(f"{trial}/checkpoints.20261126/stage1-epoch0001/manifest.json")
    assert is_report_file("trials/checkpoints-fold0-seed44/history.csv")
    assert is_report_file("search/checkpoints/best.yaml")
    assert is_report_file("search/checkpoints/candidates/0001/history.csv")


def test_a_trial_goes_on_at_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _on("one", url, tmp_path, monkeypatch)
    folder = _work(one)
    _write(one, {"history.csv": "1", ".history.csv.7": "half", **_checkpoint(1)})
    folder.commit()
    other = _on("other", url, tmp_path, monkeypatch)
    assert other.folder != one.folder
    _work(other)
    assert (other.folder / TRIAL / "history.csv").read_text() == "1"
    assert _names(url) == {"history.csv", *_checkpoint(1)}


def test_the_first_machine_forgets_what_it_had_beyond_the_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _on("one", url, tmp_path, monkeypatch)
    folder = _work(sync)
    _write(sync, _checkpoint(1))
    folder.commit()
    _write(sync, _checkpoint(2))
    _work(sync)
    assert not (sync.folder / TRIAL / next(iter(_checkpoint(2)))).exists()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_says_that_all_is_whole_is_sent_last(
    failing: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses at each of the three moments between which a kill could come."""
    sync = _on("one", url, tmp_path, monkeypatch)
    files = {"scores.csv": "", "result.json": "{}", **_checkpoint(1)}
    folder = _work(sync)
    _write(sync, files)
    send, calls = RemoteFolder.send, []

    def refuse(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > failing:
            raise StorageError("gone")
        return send(*args)

    monkeypatch.setattr(sync_module, "FAR_WAITS", ())
    monkeypatch.setattr(RemoteFolder, "send", refuse)
    with pytest.raises(StorageError, match="cannot write trials/raw-fold0-seed1/: gone"):
        folder.commit()
    there = _names(url)
    assert len(there) == (0, 2, 3)[failing]
    assert "result.json" not in there
    assert any("manifest" in name for name in there) == (failing == 2)


def test_checkpoints_that_went_here_go_there_but_never_those_of_another_process(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = _on("late", url, tmp_path, monkeypatch)
    folder = _work(late)
    _write(late, _checkpoint(1) | _checkpoint(2))
    folder.commit()
    ahead = _on("ahead", url, tmp_path, monkeypatch)
    further = _work(ahead)
    _write(ahead, _checkpoint(3))
    for name in _checkpoint(1):
        (ahead.folder / TRIAL / name).unlink()
    further.commit()
    assert _names(url) == {*_checkpoint(2), *_checkpoint(3)}
    for name in _checkpoint(2):
        (late.folder / TRIAL / name).unlink()
    folder.commit()
    assert {*_checkpoint(3)} <= _names(url)


def test_a_driver_fetches_results_but_no_checkpoints_and_no_model(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = _on("node", url, tmp_path, monkeypatch)
    facts = {"variant": "raw", "fold": 0, "seed": 1, "error": "", "val_loss": 0.5}
    result = json.dumps({"status": "finished", **facts})
    folder = _work(node)
    _write(node, {"model.safetensors": "weights", "result.json": result, **_checkpoint(1)})
    folder.commit()
    driver = _on("driver", url, tmp_path, monkeypatch)
    driver.fetch()
    found = TrialFolder(driver.folder / TRIAL)
    assert found.is_finished()
    driver.trial(Path("search/candidates/0000"))
    assert found.is_finished(), "another's folder was fetched"
    assert not found.model.exists()
    assert not found.checkpoints.exists()
    driver.fetch_models([TRIAL])
    assert found.model.read_text() == "weights"
    RemoteFolder(url).delete([f"{TRIAL.as_posix()}/model.safetensors"])
    other = _on("other", url, tmp_path, monkeypatch)
    other.fetch()
    assert not TrialFolder(other.folder / TRIAL).is_finished()


def test_a_study_moved_aside_is_whole_there_and_gone_here(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _on("one", url, tmp_path, monkeypatch)
    assert sync.move_aside() is None
    folder = _work(sync)
    _write(sync, {"history.csv": "1"})
    folder.commit()
    (sync.folder / "study.json").write_text("{}")
    sync.commit()
    before = RemoteFolder(url).list()
    aside = sync.move_aside()
    assert isinstance(aside, str)
    assert RemoteFolder(aside).list().keys() == before.keys()
    assert RemoteFolder(url).list() == {}
    sync.fetch()
    assert not sync.folder.exists()


def test_a_reader_sends_what_it_wrote_and_nothing_that_is_newer_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trials.csv", "report.md"):
        RemoteFolder(url).write(name, b"old")
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "one"))
    reader = StudySync(url, read_only=True)
    reader.fetch()
    assert reader.folder != StudySync(url).folder
    RemoteFolder(url).write("trials.csv", b"newer")
    (reader.folder / "report.md").write_text("written here")
    reader.commit()
    assert RemoteFolder(url).read("trials.csv") == b"newer"
    assert RemoteFolder(url).read("report.md") == b"written here"


@pytest.mark.usefixtures("machine")
@pytest.mark.slow
def test_data_that_changed_behind_the_url_are_refused(
    store: Store, url: str, data: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = store.upload(data.root, f"{tmp_path.name}/kaggle_3m")
    command = ["--grid", "lite", "--data", location, "--storage", store.url(tmp_path.name)]
    command += ["--name", "lite", "--set", "model.encoder_weights=none", "--plan"]
    study = resolve(parse_options(command), print)
    study.folder.mkdir(parents=True)
    facts = {"first_seed": 44, "weights": "none", "cpus_per_trial": 1, "gpus_per_trial": 0}
    write_study(study.folder, study.spec, facts | {"versions": {}})
    study.sync.commit()
    assert run(command) == FINISHED
    masks = [name for name in local_files(data.root) if name.endswith("_mask.tif")]
    store.folder(f"{tmp_path.name}/kaggle_3m").delete([masks[0], masks[0].replace("_mask", "")])
    capsys.readouterr()
    assert run(command) == KNOWN_ERROR
    assert "holds another study (fingerprint: " in capsys.readouterr().err


def test_a_name_that_would_end_the_path_of_a_url_is_refused(
    url: str, phantom_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--grid", "lite", "--data", str(phantom_root), "--storage", url, "--plan"]
    command += ["--set", "model.encoder_weights=none"]
    assert run([*command, "--name", "run#2"]) == USAGE
    assert "at most 60 letters" in capsys.readouterr().err


def test_a_stopped_candidate_leaves_no_checkpoints_behind_the_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = _on("node", url, tmp_path, monkeypatch)
    folder = _work(node)
    history = "stage,epoch,step,val_loss,val_dice,best_val_dice,seconds\n1,1,1,1,0,0.5,2.0\n"
    _write(node, {"history.csv": history, **_checkpoint(1)})
    folder.commit()
    driver = _on("driver", url, tmp_path, monkeypatch)
    job = TrialJob(variant="raw", fold=0, seed=1, experiment=Experiment())
    driver.trial(TRIAL).write_stopped(job)
    assert _names(url) == {"history.csv", "experiment.yaml", "result.json"}
    assert StudySync(url).trial(TRIAL).status == "stopped"


def test_a_study_is_found_by_its_name_or_by_its_grid(tmp_path: Path) -> None:
    (tmp_path / "lite-synthetic").mkdir()
    assert find_study(tmp_path, None, "lite", None).folder.name == "lite-synthetic"
    (tmp_path / "lite").mkdir()
    assert find_study(tmp_path, None, "lite", None).folder.name == "lite"
    assert find_study(tmp_path, "mine", "lite", None).folder.name == "mine"
