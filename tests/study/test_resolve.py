from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from stubs import Drive, history_of

from brainseg.errors import ConfigError, StudyError, WeightsError
from brainseg.model.encoders import smp
from brainseg.storage.files import hash_file, read_csv
from study.analysis.protocol import describe_changes
from study.cli import parse_options
from study.resolve import Study, allocate, resolve, write_facts
from study.run import main
from study.spec.resources import Node, TrialResources
from study.storage.leaderboard import ranked
from study.storage.study_folder import check_folder, read_spec, read_split, read_study
from study.storage.trial_folder import TrialFolder, candidate_folder

FLAGS = ["--grid", "lite", "--plan", "--set", "model.encoder_weights=none", "--folds", "2"]


def _args(root: Path, storage: Path, *flags: str) -> argparse.Namespace:
    return parse_options([*FLAGS, "--data", str(root), "--storage", str(storage), *flags])


@pytest.fixture
def study(phantom_root: Path, tmp_path: Path) -> Study:
    study = resolve(_args(phantom_root, tmp_path), print)
    study.folder.mkdir()
    write_facts(study, TrialResources(cpus=3))
    return study


def test_what_was_resolved_is_written_and_read_back(study: Study) -> None:
    assert read_spec(study.folder) == study.spec
    assert (study.spec.patients, study.spec.slices) == (12, 72)
    for name in ("experiment.yaml", "split.json", "patients.csv"):
        assert (study.folder / name).stat().st_size > 0
    assert study.sizes.keys() == {"unet tu-tf_efficientnet_lite0"}


def test_each_variant_is_given_the_weights_of_its_encoder(
    phantom_root: Path, tmp_path: Path
) -> None:
    encoders = ("mobilenet_v2", "tu-tf_efficientnet_lite0")
    for name in encoders:
        encoder = smp.encoders.get_encoder(name, weights=None)
        save_file(encoder.state_dict(), tmp_path / f"{name}.safetensors")
    variants = {"small": {"model.encoder": encoders[0]}, "lite": {"model.encoder": encoders[1]}}
    (tmp_path / "grid.yaml").write_text(json.dumps({"description": "two", "variants": variants}))
    flags = ["--grid", str(tmp_path / "grid.yaml"), "--data", str(phantom_root), "--plan"]
    weights = f"model.encoder_weights={tmp_path}/{{encoder}}.safetensors"
    args = parse_options([*flags, "--set", weights])
    study = resolve(args, print)
    files = [tmp_path / f"{name}.safetensors" for name in encoders]
    assert study.spec.weight_files == {str(path): hash_file(path) for path in files}
    assert [job.weights_hash for job in study.jobs()] == [hash_file(path) for path in files]
    assert study.weights == "mobilenet_v2.safetensors, tu-tf_efficientnet_lite0.safetensors"
    files[1].unlink()
    with pytest.raises(WeightsError, match=r"lite0\.safetensors, which is not a file"):
        resolve(args, print)


def test_variants_of_which_a_gpu_would_keep_some_are_refused(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainseg.data.resident.LARGEST", 1_000_000)
    variants = {"small": {"data.size": 32}, "large": {"data.size": 64}}
    (tmp_path / "grid.yaml").write_text(json.dumps({"description": "two", "variants": variants}))
    flags = ["--grid", str(tmp_path / "grid.yaml"), "--data", str(phantom_root), "--plan"]
    flags += ["--set", "model.encoder=mobilenet_v2", "--set", "model.encoder_weights=none"]
    resolve(parse_options(flags), print)
    resolve(parse_options([*flags, "--set", "data.resident=always"]), print)
    with pytest.raises(ConfigError, match=r"data\.resident is auto.* always or never"):
        resolve(parse_options([*flags, "--set", "data.resident=auto"]), print)


def test_a_trial_is_open_until_it_has_ended_and_again_on_request(study: Study) -> None:
    jobs = study.jobs()
    assert study.open_jobs(jobs, retry_failed=False) == jobs
    folder = TrialFolder(study.folder / jobs[1].path)
    folder.path.mkdir(parents=True)
    folder.write_failure(jobs[1], "diverged", "the loss is nan")
    assert study.open_jobs(jobs, retry_failed=False) == [jobs[0], *jobs[2:]]
    assert study.open_jobs(jobs, retry_failed=True) == jobs


def test_a_winner_not_known_yet_counts_as_one_more_variant(
    phantom_root: Path, tmp_path: Path
) -> None:
    study = resolve(_args(phantom_root, tmp_path, "--search", "2"), print)
    assert study.num_open_candidates() == 2
    assert [len(study.jobs()), len(study.expected_jobs())] == [4, 6]
    for index, variant in enumerate(study.spec.variants):  # both have ended, without a winner
        job = study.spec.candidate(index, study.spec.search_space.baseline(variant))
        folder = candidate_folder(study.folder, index)
        folder.write_params(study.spec.search_space.baseline(variant))
        folder.write_failure(job, "diverged", "the loss is nan")
    assert study.num_open_candidates() == 0
    assert [len(study.jobs()), len(study.expected_jobs())] == [4, 4]
    again = replace(study, begins_again=True)
    assert [len(again.expected_jobs()), again.num_open_candidates()] == [6, 2]


def test_a_study_that_continues_gives_each_trial_what_it_began_with(
    study: Study, phantom_root: Path, tmp_path: Path
) -> None:
    nodes = (Node(cpus=16, gpus=0),)
    assert read_study(study.folder)["cpus_per_trial"] == 3
    assert allocate(_args(phantom_root, tmp_path), study, nodes).cpus == 3
    assert allocate(_args(phantom_root, tmp_path, "--cpus-per-trial", "2"), study, nodes).cpus == 2
    assert allocate(_args(phantom_root, tmp_path, "--fresh"), study, nodes).cpus == 4


def test_the_protocol_counts_every_tested_trial(study: Study) -> None:
    """Also that of a winner which an extended search no longer chooses."""
    job = study.jobs()[0].model_copy(update={"variant": "winner-c0001"})
    folder = TrialFolder(study.folder / job.path)
    folder.path.mkdir()
    folder.model.touch()
    folder.write_success(job, {"val_loss": 0.3}, {})
    more = replace(study, spec=study.spec.model_copy(update={"seeds": 2}))
    write_facts(more, TrialResources(cpus=3))
    (change,) = describe_changes(read_study(study.folder)["protocol"])
    assert change["trials tested"] == "1"


def test_a_study_grows_by_variants_and_says_so(phantom_root: Path, tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    text = "description: x\nvariants: {low: {threshold: 0.4}"
    grid.write_text(f"{text}}}")
    storage = tmp_path / "results"
    first = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    first.folder.mkdir(parents=True)
    write_facts(first, TrialResources(cpus=1))

    grid.write_text(f"{text}, high: {{threshold: 0.6}}}}")
    more = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    assert check_folder(more.folder, more.spec)
    assert [job.name for job in more.jobs() if job not in first.jobs()] == [
        "high-fold0-seed44",
        "high-fold1-seed44",
    ]
    write_facts(more, TrialResources(cpus=1))
    (change,) = describe_changes(read_study(more.folder)["protocol"])
    assert (change["what"], change["before"], change["after"]) == ("variants", "low", "low, high")

    grid.write_text("description: x\nvariants: {low: {threshold: 0.3}}")
    other = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    with pytest.raises(StudyError, match=r"variant high is gone; variant low: .*0\.4.*0\.3"):
        check_folder(other.folder, other.spec)


SPACE = "stages.1.learning_rate: {low: 0.00001, high: 0.003, log: true}\n"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, phantom_root: Path) -> Path:
    """A study whose search of eight stubs is over."""
    storage = tmp_path_factory.mktemp("searched")
    (storage / "space.yaml").write_text(f"{SPACE}augment.strength: {{low: 0.0, high: 2.0}}\n")
    flags = ["--search", "8", "--scheduler", "none", "--space", str(storage / "space.yaml")]
    study = resolve(_args(phantom_root, storage, *flags), print)
    study.folder.mkdir()
    write_facts(study, TrialResources(cpus=1))
    with pytest.MonkeyPatch.context() as patch:
        Drive(study.spec, study.folder).run(patch)
    return study.folder


def _warm(root: Path, tmp_path: Path, source: Path, *flags: str, text: str = SPACE) -> Study:
    (tmp_path / "space.yaml").write_text(text)
    search = ["--search", "9", "--space", str(tmp_path / "space.yaml"), *flags]
    said: list[str] = []
    args = _args(root, tmp_path / "here", *search, "--warm-start", str(source))
    study = resolve(args, said.append)
    (tmp_path / "said").write_text("\n".join(said))
    return study


def test_the_best_candidates_of_an_earlier_search_follow_the_variants(
    searched: Path, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _warm(phantom_root, tmp_path, searched, "--set", "data.size=32")
    search = study.spec.search
    assert search is not None
    best = ranked(read_csv(searched / "candidates.csv"))[:5]
    rates = [float(row["stages.1.learning_rate"]) for row in best]
    usual = study.spec.experiment.stages[1].learning_rate
    changed = [rate for rate in rates if rate != usual]
    assert [start["stages.1.learning_rate"] for start in search.starts] == changed
    assert all(start.keys() == {"variant", "stages.1.learning_rate"} for start in search.starts)
    study.folder.mkdir(parents=True)
    write_facts(study, TrialResources(cpus=1))
    assert read_spec(study.folder).search == search
    Drive(study.spec, study.folder).run(monkeypatch)
    drawn = [trial[3] for trial in history_of(study.folder)]
    variants = [study.spec.search_space.baseline(name) for name in study.spec.variants]
    expected = [*variants, *search.starts]
    assert drawn[: len(expected)] == expected
    assert drawn[len(expected)] not in expected  # the sampler goes on


def test_a_search_continues_with_what_it_began_with(
    searched: Path, phantom_root: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(searched, tmp_path / "earlier"))
    study = _warm(phantom_root, tmp_path, copy)
    study.folder.mkdir(parents=True)
    write_facts(study, TrialResources(cpus=1))
    shutil.rmtree(copy)
    again = _warm(phantom_root, tmp_path, copy)
    assert again.spec == study.spec
    with pytest.raises(StudyError, match="there is no study"):
        _warm(phantom_root, tmp_path, copy, "--fresh")


def test_candidates_that_do_not_fit_are_named_and_left_out(
    searched: Path, phantom_root: Path, tmp_path: Path
) -> None:
    best = ranked(read_csv(searched / "candidates.csv"))[:5]
    rates = {float(row["stages.1.learning_rate"]) for row in best}
    text = f"stages.1.learning_rate: {{low: 0.00001, high: {max(rates) * 0.999}}}"
    rate = ["--set", "stages.1.learning_rate=1e-5"]
    study = _warm(phantom_root, tmp_path, searched, *rate, text=text)
    assert study.spec.search is not None
    left = {start["stages.1.learning_rate"] for start in study.spec.search.starts}
    assert left == rates - {max(rates), 1e-5}
    said = (tmp_path / "said").read_text()
    assert f"does not fit: stages.1.learning_rate: found {max(rates)}" in said


def test_each_search_says_how_many_it_takes(
    searched: Path, phantom_root: Path, tmp_path: Path
) -> None:
    space = "  space: {stages.1.learning_rate: {low: 0.00001, high: 0.003, log: true}}\n"
    text = (
        f"description: x\nshared: {{model.encoder: tu-tf_efficientnet_lite0}}\n"
        f"search:\n  per: variant\n  candidates: 3\n{space}"
        "variants:\n  a: {}\n  b: {preprocess.filters: [median, clahe]}\n"
    )
    (tmp_path / "grid.yaml").write_text(text)
    said: list[str] = []
    flags = ["--grid", str(tmp_path / "grid.yaml"), "--warm-start", str(searched)]
    study = resolve(_args(phantom_root, tmp_path / "here", *flags), said.append)
    assert study.spec.search is not None
    own = [
        sum(start["variant"] == name for start in study.spec.search.starts) for name in ("a", "b")
    ]
    for name, count in zip(("a", "b"), own, strict=True):
        taken = f"Warm start: {min(2, count)} candidates of {searched.name} for {name}"
        assert taken in said
        more = f"{count - 2} more for {name} do not fit into --search N; raise N"
        assert any(more in line for line in said) == (count > 2)


def test_the_winner_and_what_it_changes_are_planned_as_a_grid(
    searched: Path, phantom_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = str(searched / "best_grid.yaml")
    assert main(["--grid", grid, "--data", str(phantom_root), "--plan"]) == 0
    out = capsys.readouterr().out
    assert "protocol" in out
    assert "4, 4 of them to run" in out  # two variants on the study's two folds
    flags = ["--grid", grid, "--data", str(phantom_root), "--plan"]
    spec = resolve(parse_options(flags), print).spec
    split = read_split(searched)["search"][0]
    assert spec.chosen_on is not None
    assert spec.chosen_on.variants == ("winner",)
    assert spec.chosen_on.judged == tuple(sorted(split["val"]))
    assert spec.chosen_on.trained == tuple(sorted(split["train"]))


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--set", "data.split_seed=45"], StudyError, "judged on other data or another split"),
        (["--set", "inner_fold=3"], StudyError, "inner_fold 0, here it is 3"),
        (["--grid", "architectures"], ConfigError, "no variant has model.architecture"),
    ],
)
def test_a_search_that_does_not_fit_is_refused_in_a_sentence(
    searched: Path,
    phantom_root: Path,
    tmp_path: Path,
    flags: list[str],
    error: type[Exception],
    words: str,
) -> None:
    if flags[0] == "--grid":
        grid = tmp_path / "other.yaml"
        grid.write_text("description: x\nvariants: {a: {model.architecture: fpn}}")
        flags = ["--grid", str(grid)]
    with pytest.raises(error, match=f"--warm-start .*{words}"):
        _warm(phantom_root, tmp_path, searched, *flags)


def test_a_search_that_is_not_over_is_refused(
    searched: Path, phantom_root: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(searched, tmp_path / "earlier"))
    (candidate_folder(copy, 3).path / "result.json").unlink()
    with pytest.raises(StudyError, match="not over, 1 candidates are left"):
        _warm(phantom_root, tmp_path, copy)
    with pytest.raises(StudyError, match=r"there is no study\.json"):
        _warm(phantom_root, tmp_path, tmp_path)
