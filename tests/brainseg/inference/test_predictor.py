from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from predictions import read_pixels, read_rows, run_predict

import brainseg
from brainseg.config import Experiment
from brainseg.data.layouts import patient_of
from brainseg.data.loader import Batches
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.data.split import split_by_patient
from brainseg.demo.catalog import find_models
from brainseg.demo.handlers import Handlers
from brainseg.errors import CheckpointError, DataError
from brainseg.inference.evaluation import PLAIN, evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.metrics import count_pixels, dice
from brainseg.model import device
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader, load_model, save_model
from brainseg.model.networks import build_model
from brainseg.training.epoch import validate
from brainseg.training.trainer import TrainResult, train_two_stage

CPU = Compute(device="cpu")


@pytest.fixture(scope="module")
def result(data: SliceStore, tiny: Experiment) -> TrainResult:
    short = tiny.replaced({"stages.1.epochs": 1, "preprocess.filters": ["median", "clahe"]})
    return train_two_stage(short, data, compute=CPU)


def test_five_lines_of_python(
    data: SliceStore, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the README and the package's docstring, on phantoms."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    assert "Experiment()" in example
    assert '"data/kaggle_3m"' in example
    example = example.replace("Experiment()", 'load_experiment("tiny.yaml")')
    example = example.replace('"data/kaggle_3m"', repr(str(data.root)))
    example = example.replace("import Experiment", "import load_experiment")
    names: dict[str, object] = {}
    exec(example, names)
    masks = names["masks"]
    assert isinstance(masks, list)
    assert masks[0].shape == (32, 32)
    assert (tmp_path / "model.safetensors").exists()


def test_a_saved_model_predicts_what_training_saw(
    result: TrainResult, data: SliceStore, tmp_path: Path
) -> None:
    loaded = Predictor.load(result.save(tmp_path / "m.safetensors"), CPU)
    images = [data.image(index) for index in loaded.part_indices(data, "val")]
    found, again = loaded.probabilities(images), Predictor.of(result, CPU).probabilities(images)
    assert np.array_equal(found, again)


def test_masks_have_the_inputs_own_sizes(result: TrainResult) -> None:
    generator = np.random.default_rng(0)
    sizes = [(32, 32), (50, 40), (33, 70)]
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    predictor = Predictor.of(result, CPU)
    assert [mask.shape for mask in predictor.masks(images)] == sizes
    maps = predictor.probabilities(images)
    assert all(0 <= map_.min() <= map_.max() <= 1 for map_ in maps)


@pytest.mark.parametrize(
    "image",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3))],
    ids=["grey", "four channels", "float"],
)
def test_another_kind_of_image_is_refused(result: TrainResult, image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match="expected HxWx3 of uint8"):
        Predictor.of(result, CPU).masks([image])


def test_other_data_cannot_be_evaluated(result: TrainResult, data: SliceStore) -> None:
    import dataclasses

    other = dataclasses.replace(data, fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match="was trained on data"):
        evaluate_model(Predictor.of(result, CPU), other)


def test_loading_leaves_the_callers_random_numbers_alone(result: TrainResult) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Predictor.of(result, CPU)
    assert torch.equal(torch.rand(2), expected)


def test_the_public_names_are_importable() -> None:
    assert all(getattr(brainseg, name) for name in brainseg.__all__)
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        brainseg.nonsense  # noqa: B018


def test_masks_are_those_of_the_training_evaluation_bit_for_bit(
    model_file: Path, predictor: Predictor, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    """Alone, in a patient's folder, and in the batches that a test counts: the same pixels."""
    split = split_by_patient(data.slices, 0, tiny.data.split_seed)
    indices = split.indices(data.slices, "test").tolist()
    counts = evaluate_model(predictor, data).test.counts[PLAIN]
    together = predictor.masks([data.image(index) for index in indices])
    folder = next(data.root.glob(f"{split.test[0]}_*"))
    assert run_predict(model_file, folder, out=tmp_path / "out") == 0
    for index, mask, (tp, fp, _, _) in zip(indices, together, counts, strict=True):
        assert np.array_equal(predictor.masks([data.image(index)])[0], mask)
        assert (tp, fp) == (
            (mask & (data.mask(index) > 0)).sum(),
            (mask & (data.mask(index) == 0)).sum(),
        )
        written = tmp_path / "out" / folder.name / f"{data.slices[index].name}_mask.tif"
        if written.exists():
            assert np.array_equal(read_pixels(written), mask * 255)


@pytest.mark.slow
def test_real_slices_have_one_mask_in_training_evaluation_prediction_and_demo(
    real_data: SliceStore, tmp_path: Path
) -> None:
    """At the slices' own size, through a network whose logits lie close around the threshold."""
    changes = {"model.encoder": "efficientnet-b0", "model.encoder_weights": "none"}
    experiment = Experiment().replaced(changes)
    network = build_model(experiment.model, 3)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    header = ModelHeader(
        experiment=experiment,
        fingerprint=real_data.fingerprint,
        synthetic=False,
        weights="random",
        best={},
        metrics={},
    )
    save_model(tmp_path / "model.safetensors", weights, header)
    split = split_by_patient(real_data.slices, 0, experiment.data.split_seed)
    indices = [
        int(n)
        for n in split.indices(real_data.slices, "test")
        if real_data.slices[n].patient == split.test[0]
    ]
    batches = Batches(real_data, np.array(indices), experiment, augmented=False)
    cpu = torch.device("cpu")
    judged = validate(network.eval(), batches.epoch(0, 0), experiment, cpu, indices)
    folder = next(real_data.root.glob(f"{split.test[0]}_*"))
    assert run_predict(tmp_path / "model.safetensors", folder, out=tmp_path / "out") == 0
    handlers = Handlers(find_models(tmp_path / "model.safetensors"), CPU)
    for index in indices:
        name, mask = real_data.slices[index].name, judged.masks[index]
        assert np.array_equal(
            read_pixels(tmp_path / "out" / folder.name / f"{name}_mask.tif"), mask * 255
        )
    for index in indices[:: len(indices) // 3]:
        html = handlers.outline_slice(
            str(folder / f"{real_data.slices[index].name}.tif"), None, "model", ""
        )
        link = re.findall(r'href="data:image/png;base64,([^"]+)"', html)[0]
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(link), np.uint8), -1)
        assert np.array_equal(np.asarray(shown), judged.masks[index] * 255)
    assert sum(mask.sum() for mask in judged.masks.values()) > 0


@pytest.mark.slow
def test_real_slices_score_in_prediction_as_in_the_study_digit_for_digit(
    real_root: Path, tmp_path: Path
) -> None:
    """A network trained for a moment on ten patients of at least 25 slices, one of them tested."""
    num_files = {folder: len(list(folder.iterdir())) for folder in sorted(real_root.glob("*/"))}
    patients = sorted((f for f, n in num_files.items() if n >= 50), key=lambda f: num_files[f])
    for folder in patients[:10]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    real_data = open_dataset(tmp_path / "few")
    changes = {
        "data.size": 32,
        "data.tumour_share": 0.7,
        "model.encoder": "mobilenet_v2",
        "model.encoder_weights": "none",
        "model.batchnorm_momentum": 0.1,
        "stages.0.epochs": 0,
        "stages.1.epochs": 8,
        "stages.1.learning_rate": 3e-3,
    }
    result = train_two_stage(Experiment().replaced(changes), real_data, compute=CPU)
    model = result.save(tmp_path / "model.safetensors")
    tables = evaluate_model(Predictor.load(model, CPU), real_data).tables(real_data)
    tested = {row["patient"] for row in tables["scores"]}
    folders = [f for f in real_data.root.iterdir() if patient_of(f.name) in tested]
    assert run_predict(model, *folders, out=tmp_path / "out") == 0
    slices = {Path(r["file"]).stem: r for r in read_rows(tmp_path / "out" / "predictions.csv")}
    assert slices.keys() == {row["slice"] for row in tables["slices"]}
    assert len(slices) >= 20
    found = {row["patient"]: row for row in read_rows(tmp_path / "out" / "patients.csv")}
    pairs = [(row, slices[row["slice"]]) for row in tables["slices"]]
    pairs += [(row, found[row["patient"]]) for row in tables["scores"]]
    differences = [abs(float(f"{float(a['Dice']):.6f}") - float(b["dice"])) for a, b in pairs]
    print(f"{len(slices)} slices, {len(found)} patients, largest difference {max(differences)}")
    for ours, theirs in pairs:
        assert f"{float(ours['Dice']):.6f}" == theirs["dice"]
        for name in ("TP", "FP", "FN", "TN", "hd95", "hd95_worst", "nsd"):
            assert str(ours[name]) == theirs[name], name
    # The masks in the files are those that were counted.
    true = {item.name: real_data.mask(n) > 0 for n, item in enumerate(real_data.slices)}
    for row in tables["slices"]:
        (path,) = (tmp_path / "out").rglob(f"{row['slice']}_mask.tif")
        counts = count_pixels(read_pixels(path)[None] > 0, true[row["slice"]][None])[0]
        assert f"{float(dice(counts)):.6f}" == row["Dice"]
    assert sum(row["TP"] for row in tables["slices"]) > 0  # it has learnt something


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_neighbours_and_threads_change_no_bit(
    predictor: Predictor, data: SliceStore, threads: int
) -> None:
    images = [data.image(index) for index in range(12)]
    alone = [predictor.probabilities([image])[0] for image in images]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = predictor.probabilities(images[::-1])[::-1]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_other_sizes_are_padded_to_a_square_and_cropped_back(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 36, 3), dtype=np.uint8)
    square = np.zeros((48, 48, 3), np.uint8)
    square[:, 6:42] = image
    whole = predictor.probabilities([square])[0]
    assert np.array_equal(predictor.probabilities([image])[0], whole[:, 6:42])


def test_a_threshold_moves_the_mask_and_flips_average(model_file: Path, data: SliceStore) -> None:
    weights, header = load_model(model_file)
    raw = header.experiment.replaced({"preprocess.filters": []})  # CLAHE depends on its tiles
    predictor = Predictor(weights, header.model_copy(update={"experiment": raw}), CPU)
    image = data.image(2)
    plain = predictor.predict([image])[0]
    eager = predictor.predict([image], threshold=0.2)[0]
    assert np.array_equal(eager.mask, plain.probabilities >= 0.2)
    views = [(), (0,), (1,), (0, 1)]
    maps = [np.flip(predictor.probabilities([np.flip(image, v).copy()])[0], v) for v in views]
    averaged = predictor.predict([image], tta=True)[0].probabilities
    assert np.allclose(averaged, np.mean(maps, axis=0), atol=1e-5)
    assert not np.array_equal(averaged, plain.probabilities)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinite_values_on_a_gpu_without_bfloat16_name_the_cpu(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(predictor, "_device", torch.device("cuda"))
    monkeypatch.setattr(device, "cuda_dtype", lambda: dtype)
    with pytest.raises(CheckpointError, match=r"NaN: .*its training diverged") as error:
        predictor._checked(torch.tensor([torch.inf]))
    assert ("give --device cpu" in str(error.value)) == (dtype == torch.float16)
