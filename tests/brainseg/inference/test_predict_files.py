"""`python -m brainseg.predict` on good files and bad ones."""

from __future__ import annotations

import base64
import csv
import re
import shutil
import warnings
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from brainseg import predict
from brainseg.config import Experiment
from brainseg.data.loader import Batches
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.demo.catalog import find_models
from brainseg.demo.handlers import Desk
from brainseg.inference.overlay import encode_picture
from brainseg.inference.predictor import Predictor
from brainseg.inference.readers import find_scans, read_upload
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader, load_model, save_model
from brainseg.model.networks import build_model
from brainseg.training.epoch import validate

CPU = Compute(device="cpu")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)


@pytest.fixture(scope="module")
def predictor(model_file: Path) -> Predictor:
    return Predictor.load(model_file, CPU)


@pytest.fixture
def patient(data: SliceStore) -> Path:
    return sorted(path for path in data.root.iterdir() if path.is_dir())[0]


def _predict(model: Path, *inputs: Path | str, out: Path) -> int:
    return predict.main([str(model), *map(str, inputs), "--out", str(out), "--device", "cpu"])


def test_a_patient_in_masks_outlines_stack_and_scores(
    model_file: Path, predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert _predict(model_file, patient, out=out) == 0
    images = [patient / f"{patient.name}_{number}.tif" for number in range(1, 7)]
    masks = predictor.masks([read_upload(path) for path in images])
    folder = out / patient.name
    for path, mask in zip(images, masks, strict=True):
        assert np.array_equal(_pixels(folder / f"{path.stem}_mask.tif"), mask * 255)
        assert (folder / f"{path.stem}_outline.png").exists()
    done, stack = cv2.imreadmulti(str(folder / f"{patient.name}_stack.tif"), flags=-1)
    assert done
    assert np.array_equal(np.stack(stack), np.stack(masks) * 255)
    rows = _rows(out / "predictions.csv")
    assert [row["area_pixels"] for row in rows] == [str(mask.sum()) for mask in masks]
    totals = _rows(out / "patients.csv")
    assert [row["patient"] for row in totals] == [patient.name.rsplit("_", 1)[0]]
    for name in ("TP", "FP", "FN", "TN"):
        assert int(totals[0][name]) == sum(int(row[name]) for row in rows)
    tp, fp, fn = (int(totals[0][name]) for name in ("TP", "FP", "FN"))
    assert float(totals[0]["dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)


def test_masks_are_those_of_the_training_evaluation_bit_for_bit(
    model_file: Path, predictor: Predictor, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    """Alone, in a patient's folder, and in the batches that a test counts: the same pixels."""
    split = split_by_patient(data.slices, 0, tiny.data.split_seed)
    numbers = split.numbers(data.slices, "test").tolist()
    counts, _ = predictor.evaluate(data, "test")
    together = predictor.masks([data.image(number) for number in numbers])
    folder = next(data.root.glob(f"{split.test[0]}_*"))
    assert _predict(model_file, folder, out=tmp_path / "out") == 0
    for number, mask, (tp, fp, _, _) in zip(numbers, together, counts, strict=True):
        assert np.array_equal(predictor.masks([data.image(number)])[0], mask)
        assert (tp, fp) == (
            (mask & (data.mask(number) > 0)).sum(),
            (mask & (data.mask(number) == 0)).sum(),
        )
        written = tmp_path / "out" / folder.name / f"{data.slices[number].name}_mask.tif"
        if written.exists():
            assert np.array_equal(_pixels(written), mask * 255)


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
    numbers = [
        int(n)
        for n in split.numbers(real_data.slices, "test")
        if real_data.slices[n].patient == split.test[0]
    ]
    batches = Batches(real_data, np.array(numbers), experiment, augmented=False)
    cpu = torch.device("cpu")
    judged = validate(network.eval(), batches.epoch(0, 0), experiment, cpu, numbers)
    folder = next(real_data.root.glob(f"{split.test[0]}_*"))
    assert _predict(tmp_path / "model.safetensors", folder, out=tmp_path / "out") == 0
    desk = Desk(find_models(tmp_path / "model.safetensors"), CPU)
    for number in numbers:
        name, mask = real_data.slices[number].name, judged.shown[number]
        assert np.array_equal(
            _pixels(tmp_path / "out" / folder.name / f"{name}_mask.tif"), mask * 255
        )
    for number in numbers[:: len(numbers) // 3]:
        html = desk.outline(
            str(folder / f"{real_data.slices[number].name}.tif"), None, "model", ""
        )
        link = re.findall(r'href="data:image/png;base64,([^"]+)"', html)[0]
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(link), np.uint8), -1)
        assert np.array_equal(np.asarray(shown), judged.shown[number] * 255)
    assert sum(mask.sum() for mask in judged.shown.values()) > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_neighbours_and_threads_change_no_bit(
    predictor: Predictor, data: SliceStore, threads: int
) -> None:
    images = [data.image(number) for number in range(12)]
    alone = [predictor.probabilities([image])[0] for image in images]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = predictor.probabilities(images[::-1])[::-1]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".TIFF"])
def test_every_format_and_a_single_slice(
    model_file: Path, predictor: Predictor, data: SliceStore, tmp_path: Path, suffix: str
) -> None:
    image = data.image(2)
    path = tmp_path / f"slice{suffix}"
    path.write_bytes(encode_picture(image, suffix))
    assert _predict(model_file, path, out=tmp_path / "out") == 0
    kept = {".jpg": ".png", ".TIFF": ".tiff"}.get(suffix, suffix)
    written = _pixels(tmp_path / "out" / f"slice_mask{kept}")
    assert np.array_equal(written, predictor.masks([read_upload(path)])[0] * 255)
    row = _rows(tmp_path / "out" / "predictions.csv")[0]
    assert row["dice"] == ""
    assert 0 <= float(row["max_probability"]) <= 1


def test_other_sizes_are_padded_to_a_square_and_cropped_back(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 36, 3), dtype=np.uint8)
    square = np.zeros((48, 48, 3), np.uint8)
    square[:, 6:42] = image
    whole = predictor.probabilities([square])[0]
    assert np.array_equal(predictor.probabilities([image])[0], whole[:, 6:42])


def test_a_threshold_moves_the_mask_and_flips_average(model_file: Path, data: SliceStore) -> None:
    weights, header = load_model(model_file)
    raw = header.experiment.replaced({"preprocess.enabled": False})  # CLAHE depends on its tiles
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


AFFINES = {
    "as it is": np.diag([-1.0, -1.0, 5.0, 1.0]),
    "mirrored": np.diag([1.0, 1.0, 5.0, 1.0]),
    "coronal": np.array([[1.0, 0, 0, -5], [0, 0, 2.0, 3], [0, -1.0, 0, 9], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_a_volume_is_predicted_slice_by_slice_with_its_affine(
    model_file: Path, predictor: Predictor, data: SliceStore, tmp_path: Path, name: str
) -> None:
    """Whatever way a volume is stored, its slices reach the network the same way up."""
    images = np.stack([data.image(number) for number in range(6)])  # z, y, x
    true = np.stack([data.mask(number) for number in range(6)])
    in_place = nibabel.Nifti1Image(images.transpose(2, 1, 0, 3), AFFINES["as it is"])
    own = nibabel.orientations.io_orientation(AFFINES[name])
    lps = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nibabel.orientations.ornt_transform(lps, own)
    stored = nibabel.orientations.apply_orientation(np.asarray(in_place.dataobj), turn)
    nibabel.save(nibabel.Nifti1Image(stored, AFFINES[name]), tmp_path / "head.nii.gz")
    stored = nibabel.orientations.apply_orientation(true.transpose(2, 1, 0), turn)
    nibabel.save(nibabel.Nifti1Image(stored, AFFINES[name]), tmp_path / "head_mask.nii.gz")
    assert _predict(model_file, tmp_path / "head.nii.gz", out=tmp_path / "out") == 0
    written = nibabel.load(tmp_path / "out" / "head_mask.nii.gz")
    assert np.array_equal(written.affine, AFFINES[name])
    assert written.shape == stored.shape
    assert written.get_data_dtype() == np.uint8
    back = nibabel.orientations.apply_orientation(
        np.asarray(written.dataobj), nibabel.orientations.ornt_transform(own, lps)
    )
    assert np.array_equal(back.transpose(2, 1, 0), np.stack(predictor.masks(list(images))))
    rows = _rows(tmp_path / "out" / "predictions.csv")
    assert [row["slice"] for row in rows] == list("123456")
    tumour = [int(row["TP"]) + int(row["FN"]) for row in rows]
    assert tumour == true.sum(axis=(1, 2)).tolist()
    assert len(list((tmp_path / "out").glob("*_outline.png"))) == 6


def _save_png(path: Path, image: NDArray[np.unsignedinteger]) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _bad_files(folder: Path) -> dict[str, str]:
    """Write every kind of bad file; return name -> what its sentence says."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    _save_png(folder / "sixteen_bits.png", rgb.astype(np.uint16) * 257)
    _save_png(folder / "sixteen_bits_grey.png", rgb[:, :, 0].astype(np.uint16) * 257)
    _save_png(folder / "grey.png", rgb[:, :, 0])
    _save_png(folder / "transparent.png", np.dstack([rgb, rgb[:, :, :1]]))
    _save_png(folder / "tiny.png", rgb[:8, :8])
    Image.fromarray(rgb).convert("CMYK").save(folder / "ink.tif")
    Image.fromarray(rgb).convert("CMYK").save(folder / "ink_photo.jpg")
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    Image.fromarray(rgb).save(
        folder / "pages.tif", save_all=True, append_images=[Image.fromarray(rgb)]
    )
    whole = (folder / "pages.tif").read_bytes()
    (folder / "cut_slice.tif").write_bytes(encode_picture(rgb, ".tif")[:4000])
    (folder / "cut_picture.png").write_bytes(encode_picture(rgb, ".png")[:4000])
    (folder / "text.tif").write_text("no image")
    (folder / "empty.tif").write_bytes(b"")
    (folder / "gif.png").write_bytes(b"GIF89a" + bytes(64))
    Image.new("1", (10_000, 10_000)).save(folder / "hundred_megapixels.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    assert whole
    volume = rng.integers(0, 1700, (32, 32, 4, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "sixteen.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume[..., 0], np.eye(4)), folder / "one.nii")
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    cut = (folder / "sixteen.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    return {
        "sixteen_bits.png": "64x64x3 uint16; expected three channels of uint8",
        "sixteen_bits_grey.png": "one channel of 16 bits; expected three channels",
        "grey.png": "one grey channel; expected three channels",
        "transparent.png": "four channels, the last one transparency; expected three",
        "tiny.png": "8 x 8 pixels; expected sides from 32 to 4096",
        "ink.tif": "four channels of ink (CMYK); expected three",
        "ink_photo.jpg": "four channels of ink (CMYK); expected three",
        "palette.png": "a palette of colours; expected three",
        "pages.tif": "2 pages; expected one slice in a file",
        "cut_slice.tif": "no TIFF",
        "cut_picture.png": "bytes that are no image, or a truncated one",
        "text.tif": "no TIFF, PNG or JPEG image",
        "empty.tif": "no TIFF, PNG or JPEG image",
        "gif.png": "no TIFF, PNG or JPEG image",
        "hundred_megapixels.png": "pixels; expected sides from 32 to 4096",
        "bomb.png": "pixels; expected sides from 32 to 4096",
        "sixteen.nii.gz": "int16 from 0 to 1699; expected whole numbers from 0 to 255",
        "one.nii": "32x32x4; expected three sequences on a fourth axis",
        "broken.nii.gz": "no NIfTI volume",
        "cut.nii.gz": "damaged",
    }


def test_bad_files_get_a_sentence_each_and_the_others_go_on(
    model_file: Path, data: SliceStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        expected = _bad_files(folder)
    (folder / "good.png").write_bytes(encode_picture(data.image(2)))
    (folder / "notes.csv").write_text("not an input at all")
    code = _predict(model_file, folder, tmp_path / "missing.tif", out=tmp_path / "out")
    assert code == 3
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == len(expected) + 1
    for name, sentence in expected.items():
        lines = [line for line in errors if f"/{name}: " in line]
        assert len(lines) == 1, name
        assert sentence in lines[0]
    assert any("missing.tif: there is no such file" in line for line in errors)
    assert [Path(row["file"]).name for row in _rows(tmp_path / "out" / "predictions.csv")] == [
        "good.png"
    ]


def test_a_bad_mask_is_named(
    model_file: Path, data: SliceStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture(data.image(2)))
    (tmp_path / "a_mask.png").write_bytes(encode_picture(np.full((32, 32), 7, np.uint8)))
    assert _predict(model_file, tmp_path / "a.png", out=tmp_path / "out") == 3
    assert "a_mask.png: values 7 ...; expected 0 and 255" in capfd.readouterr().err


def test_damaged_headers_never_raise_anything_else(data: SliceStore, tmp_path: Path) -> None:
    """Random damage to files: an image, or a DataError; no other exception, no crash."""
    from brainseg.errors import DataError

    rng = np.random.default_rng(0)
    for suffix in (".tif", ".png", ".jpg"):
        whole = np.frombuffer(encode_picture(data.image(2), suffix), np.uint8)
        for _ in range(150):
            broken = whole.copy()
            places = rng.integers(0, min(len(whole), 400), 6)
            broken[places] = rng.integers(0, 256, 6)
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(broken.tobytes())
            try:
                assert read_upload(path).shape[2] == 3
            except DataError as error:
                assert path.name in str(error)


def test_an_existing_folder_is_not_written_into(
    model_file: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert _predict(model_file, patient, out=tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_two_inputs_of_one_name_are_not_written_over_each_other(
    data: SliceStore, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(encode_picture(data.image(0)))
    scans, problems = find_scans([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"])
    assert len(scans) == 1
    assert "would be written over" in problems[0]
    scans, problems = find_scans([tmp_path, tmp_path / "a"])
    assert len(scans) == 3  # the folder above tells them apart
    assert not problems


def test_usage_and_a_missing_model(tmp_path: Path, patient: Path, data: SliceStore) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(["model", "input", "--out", "x", "--threshold", "1.5"])
    assert stop.value.code == 2
    assert _predict(tmp_path / "none.safetensors", patient, out=tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_device_is_a_usage_error(
    model_file: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model_file), str(patient), "--out", str(tmp_path / "o"), "--device", "abacus"]
    assert predict.main(arguments) == 2
    assert "abacus" in capsys.readouterr().err


def test_sub_folders_are_patients_of_their_own(
    model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    root = tmp_path / "two"
    for folder in sorted(path for path in data.root.iterdir() if path.is_dir())[:2]:
        shutil.copytree(folder, root / folder.name)
    assert _predict(model_file, root, out=tmp_path / "out") == 0
    assert len(_rows(tmp_path / "out" / "patients.csv")) == 2
    assert len(list((tmp_path / "out").glob("two/*/*_stack.tif"))) == 2
