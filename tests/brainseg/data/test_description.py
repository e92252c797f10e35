from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from predictions import read_pixels, read_rows, run_predict

from brainseg.config import Experiment
from brainseg.data.about import CHANNELS
from brainseg.data.description import DESCRIPTION_FILE, find_files, read_description
from brainseg.data.inputs import StoreInputs
from brainseg.data.patients import describe_patients
from brainseg.data.slice_store import open_dataset
from brainseg.data.split import PARTS, split_of
from brainseg.errors import DataError
from brainseg.explore import __main__ as explore
from brainseg.inference.evaluation import PLAIN, evaluate_masks, evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.training.trainer import train_two_stage

CPU = Compute("cpu")
PATIENTS = [f"P{number}" for number in range(10)]
Write = Callable[[Path], dict[str, Any]]


def _slice(patient: str, number: int, channels: int = 1) -> tuple[NDArray[np.uint8], ...]:
    """A disc in noise whose size and place depend on patient and slice, 40 x 36 pixels."""
    rng = np.random.default_rng([int(patient[1:]), number])
    rows, columns = np.mgrid[:40, :36]
    mask = (rows - rng.integers(12, 28)) ** 2 + (columns - rng.integers(12, 24)) ** 2 < 40
    image = rng.integers(20, 60, (40, 36, channels)) + 120 * mask[:, :, None]
    return image.astype(np.uint8), mask.astype(np.uint8)


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def _pairs(root: Path) -> dict[str, Any]:
    for patient in PATIENTS:
        for number in range(3):
            image, mask = _slice(patient, number)
            _save(root / "images" / f"{patient}_{number}.png", image)
            _save(root / "masks" / f"{patient}_{number}.png", mask * 255)
    return {
        "images": "images/{patient}_{name}.png",
        "masks": "masks/{patient}_{name}.png",
        "channels": ["FLAIR"],
    }


def _jpegs(root: Path) -> dict[str, Any]:
    for patient in PATIENTS:
        for number in range(3):
            image, mask = _slice(patient, number, 3)
            folder = root / f"{patient}_20200101"
            _save(folder / f"s{number}.jpg", image[: 40 - number])  # of different sizes
            _save(folder / f"s{number}_mask.png", 2 * mask[: 40 - number])
    return {
        "images": "{patient}/{name}.jpg",
        "masks": "{patient}/{name}_mask.png",
        "patient_pattern": r"(.*)_\d{8}",
        "channels": ["red", "green", "blue"],
        "tumour": [2],
    }


def _sixteen_bits(root: Path, channels: Sequence[str] = ("CT",)) -> dict[str, Any]:
    for patient in PATIENTS:
        for number in range(3):
            image, mask = _slice(patient, number, len(channels))
            _save(root / patient / f"{number}.tif", image.astype(np.uint16) * 200)
            _save(root / patient / f"{number}_mask.tif", mask)
    return {
        "images": "{patient}/{name}.tif",
        "masks": "{patient}/{name}_mask.tif",
        "channels": list(channels),
    }


def _manifest(root: Path) -> dict[str, Any]:
    _pairs(root)
    with (root / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask", "patient", "scanner"])
        for patient in PATIENTS:
            for number in range(3):
                name = f"{patient}_{number}.png"
                rows.writerow([f"images/{name}", f"masks/{name}", patient, "A"])
    return {"manifest": "list.csv", "channels": ["FLAIR"]}


def _volumes(root: Path) -> dict[str, Any]:
    for patient in PATIENTS:
        slices = [_slice(patient, number) for number in range(4)]
        image, mask = (np.stack([s[n].squeeze() for s in slices], axis=-1) for n in (0, 1))
        for channel, scale in (("0000", 1.7), ("0001", 9.0)):
            path = root / "imagesTr" / f"{patient}_{channel}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image((image * scale).astype(np.float32), np.eye(4)), path)
        (root / "labelsTr").mkdir(exist_ok=True)
        label = nibabel.Nifti1Image(mask.astype(np.uint8) * 3, np.eye(4))
        nibabel.save(label, root / "labelsTr" / f"{patient}.nii.gz")
    return {
        "images": {
            "T1": "imagesTr/{patient}_0000.nii.gz",
            "FLAIR": "imagesTr/{patient}_0001.nii.gz",
        },
        "masks": "labelsTr/{patient}.nii.gz",
        "tumour": [3],
    }


SLOW = pytest.mark.slow
KINDS: dict[str, tuple[Write, int, int]] = {
    "png pairs": (_pairs, 1, 30),
    "jpeg of several sizes": (_jpegs, 3, 30),
    "16 bit tiff": (_sixteen_bits, 1, 30),
    "manifest": (_manifest, 1, 30),
    "nifti of nnU-Net": (_volumes, 2, 40),
}


def _write(root: Path, write: Write, **changes: Any) -> Path:
    root.mkdir(exist_ok=True)
    tree = write(root) | changes
    tree = {key: value for key, value in tree.items() if value is not None}
    (root / "dataset.yaml").write_text(yaml.safe_dump(tree))
    return root


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("manifest", "nifti of nnU-Net") else pytest.param(kind, marks=SLOW)
        for kind in KINDS
    ],
)
def test_a_described_dataset_is_opened_trained_and_evaluated(
    kind: str, tmp_path: Path, tiny: Experiment
) -> None:
    write, channels, count = KINDS[kind]
    known = {"licence": "CC0", "eligibility": "Adults."}
    data = open_dataset(_write(tmp_path / "data", write, **known))
    assert (len(data.slices), data.patients, len(data.channels)) == (count, PATIENTS, channels)
    assert data.about.model_dump(exclude={"name", "source"}, exclude_defaults=True) == known
    assert data.image(0).shape == (*data.shapes[0], channels)
    assert data.image(0).dtype == np.uint8
    assert data.mask(0).sum() == data.slices[0].tumour_pixels > 0
    assert open_dataset(data.root).fingerprint == data.fingerprint
    short = tiny.replaced({"stages.1.epochs": 0, "optimizer.batch_size": 8})
    result = train_two_stage(short, data, compute=CPU)
    assert result.header.channels == data.channels
    test = evaluate_model(Predictor.of(result, CPU), data).test
    assert test.counts[PLAIN].sum() == sum(mask.size for mask in test.true)


def test_patients_that_are_corrected_in_a_manifest_are_other_data(tmp_path: Path) -> None:
    """The files are the same: two patients that turn out to be one must not be split."""
    data = open_dataset(_write(tmp_path / "data", _manifest))
    manifest = data.root / "list.csv"
    rows = manifest.read_text().replace(",P1,", ",P0,")
    for number in range(3):  # the slices of one patient need names of their own
        rows = rows.replace(f"images/P1_{number}.png", f"images/P1-{number}.png")
        (data.root / f"images/P1_{number}.png").rename(data.root / f"images/P1-{number}.png")
    manifest.write_text(rows)
    corrected = open_dataset(data.root)
    assert corrected.patients == [name for name in PATIENTS if name != "P1"]
    assert corrected.fingerprint != data.fingerprint
    manifest.write_text(rows.replace(",P9,", ",Q9,"))  # nothing but a name
    assert "Q9" in open_dataset(data.root).patients
    assert open_dataset(data.root).covariates["Q9"] == {"scanner": "A"}


def test_the_order_of_a_manifests_lines_changes_nothing(tmp_path: Path) -> None:
    data = open_dataset(_write(tmp_path / "data", _manifest))
    manifest = data.root / "list.csv"
    head, *lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([head, *reversed(lines)]) + "\n")
    again = open_dataset(data.root)
    assert again.slices == data.slices
    assert again.fingerprint == data.fingerprint
    assert not any("natural order" in note for note in data.notes)
    assert any("list.csv are not in the natural order" in note for note in again.notes)


def test_two_scans_of_a_patient_are_two_volumes(tmp_path: Path, tiny: Experiment) -> None:
    root = _write(tmp_path / "data", _jpegs)
    for path in sorted((root / "P0_20200101").iterdir()):  # a second examination of P1
        target = root / "P1_20210101" / f"later-{path.name}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    data = open_dataset(root)
    own = [n for n, item in enumerate(data.slices) if item.patient == "P1"]
    assert len(own) == 6
    assert [data.slices[n].scan for n in own] == ["P1_20200101"] * 3 + ["P1_20210101"] * 3
    keys = {"data.context": 1, "data.channels": ["red"], "data.size": 64}
    inputs = StoreInputs(data, tiny.replaced(keys))
    third, fourth = (inputs.image(n) for n in own[2:4])
    assert np.array_equal(third[..., 2], third[..., 1])  # the first scan ends here
    assert np.array_equal(fourth[..., 0], fourth[..., 1])
    # A spot at the end of the first and at the start of the second scan is not one lesion.
    predicted = [np.zeros(data.shapes[n], bool) for n in own]
    for mask in predicted[2:4]:
        mask[:2, :2] = True
    assert evaluate_masks(data, own, predicted).lesions["P1"].invented == 2
    # The same files as one examination are other data.
    for path in (root / "P1_20210101").iterdir():
        path.rename(root / "P1_20200101" / path.name)
    assert open_dataset(root).fingerprint != data.fingerprint


def test_two_volumes_of_a_patient_are_rescaled_apart(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _volumes, patient_pattern="(P.)x?")
    for path in sorted(root.rglob("P0*")):
        path.rename(path.with_name(path.name.replace("P0", "P1x")))
    for path in root.rglob("P1x_*"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(image.get_fdata() * 5, image.affine), path)
    data = open_dataset(root)
    own = [n for n, item in enumerate(data.slices) if item.patient == "P1"]
    assert [data.slices[n].scan for n in own] == ["P1"] * 4 + ["P1x"] * 4
    text = (root / DESCRIPTION_FILE).read_text()
    (root / DESCRIPTION_FILE).write_text(text.replace("patient_pattern: (P.)x?\n", ""))
    apart = open_dataset(root)
    assert {"P1", "P1x"} < set(apart.patients)
    for n in own:
        (other,) = (k for k, item in enumerate(apart.slices) if item.name == data.slices[n].name)
        assert np.array_equal(data.image(n), apart.image(other))


def test_one_scan_per_patient_leaves_fingerprints_as_they_were(tmp_path: Path) -> None:
    data = open_dataset(_write(tmp_path / "data", _jpegs))
    digest = hashlib.sha256()
    for index, item in enumerate(data.slices):
        pixels = np.dstack([data.image(index), data.mask(index)]).tobytes()
        content = hashlib.blake2b(pixels, digest_size=16).hexdigest()
        digest.update(f"{item.patient}/{item.name} {content}\n".encode())
    assert data.fingerprint == digest.hexdigest()


def test_a_star_stands_for_any_text_on_both_sides_of_a_placeholder(tmp_path: Path) -> None:
    changes = {"images": "im*s/{patient}_{name}.p*g", "masks": "m*s/{patient}_{name}.png"}
    assert len(open_dataset(_write(tmp_path / "data", _pairs, **changes)).slices) == 30


def test_two_images_of_one_name_and_patient_are_refused(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _jpegs)
    (root / f"{PATIENTS[0]}_20200101").rename(root / f"{PATIENTS[1]}_20210101")
    with pytest.raises(DataError, match="share patient and name with another") as error:
        open_dataset(root)
    assert error.value.problems[0] == f"{PATIENTS[1]}: s0"


def test_a_leaky_split_deals_out_slices_that_share_their_names(tmp_path: Path) -> None:
    data = open_dataset(_write(tmp_path / "data", _jpegs))
    assert len({item.name for item in data.slices}) == 3
    split = split_of(Experiment().replaced({"data.split": "slice"}), data.slices)
    parts = [split.indices(data.slices, part) for part in PARTS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(data.slices)))


def test_values_that_are_no_bytes_are_rescaled_over_the_patient(tmp_path: Path) -> None:
    data = open_dataset(_write(tmp_path / "data", _volumes))
    first = np.stack([data.image(index) for index in range(4)])
    for channel in (0, 1):  # the scale of the file does not matter
        assert np.percentile(first[..., channel], 99.9) == 255
    assert np.abs(first[..., 0].astype(int) - first[..., 1]).max() <= 1


def test_the_spacing_of_volumes_is_known_if_all_headers_tell_it(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _volumes)
    assert open_dataset(root).spacings == ()  # sides of 1 without a unit
    for path in sorted((root / "imagesTr").glob("*_0001.nii.gz")):  # the first channel
        before = open_dataset(root)
        patient = path.name.removesuffix("_0001.nii.gz")
        for other in sorted(root.rglob(f"{patient}*.nii.gz")):
            image = nibabel.load(other)
            image.header.set_xyzt_units("mm")
            affine = np.diag([0.6, 0.9, 4.0, 1.0])
            values = np.asanyarray(image.dataobj)
            nibabel.save(nibabel.Nifti1Image(values, affine, image.header), other)
    assert before.spacings == ()
    assert "4 of 40 slices have no spacing in their file's header" in before.notes[-1]
    data = open_dataset(root)
    assert data.spacing(0) == pytest.approx((0.9, 0.6))  # of rows, then of columns
    assert len(data.spacings) == len(data.slices)
    assert data.fingerprint == before.fingerprint
    assert not any("spacing" in note for note in data.notes)


@pytest.mark.parametrize("name", ["labelsTr/P3.nii.gz", "imagesTr/P3_0000.nii.gz"])
def test_a_volume_whose_voxels_lie_elsewhere_than_those_of_its_image_is_refused(
    tmp_path: Path, name: str
) -> None:
    root = _write(tmp_path / "data", _volumes)
    image = nibabel.load(root / name)
    values, affine = np.asanyarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), root / name)
    with pytest.raises(DataError, match="1 of 10") as error:
        open_dataset(root)
    (problem,) = error.value.problems
    file = name.rpartition("/")[2]
    assert problem.startswith(f"imagesTr/{file}: its affine is not that of P3_0001.nii.gz: ")
    assert "axes LPS and RAS" in problem


def test_a_volume_may_have_its_axes_in_another_order_or_a_rounded_affine(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _volumes)
    data = open_dataset(root)
    for name in ("P3", "P4"):
        path = root / "labelsTr" / f"{name}.nii.gz"
        image = nibabel.load(path)
        codes = nibabel.orientations.axcodes2ornt(("S", "L", "A"))
        turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes)
        turned = image.as_reoriented(turn)
        affine = turned.affine + 1e-3 * np.eye(4, 4, 3)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(turned.dataobj), affine), path)
    assert open_dataset(root).fingerprint == data.fingerprint


def test_further_columns_of_a_manifest_describe_patients(tmp_path: Path) -> None:
    rows = describe_patients(open_dataset(_write(tmp_path / "data", _manifest)))
    assert {row["scanner"] for row in rows} == {"A"}


def test_what_is_not_used_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _pairs)
    (root / "images" / "P0_9.bmp").write_bytes(b"x")
    (notes,) = open_dataset(root).notes
    assert "1 files match no pattern and are not used: images/P0_9.bmp" in notes
    _write(root, _pairs, images="images/{name}.png", masks="masks/{name}.png")
    data = open_dataset(root)
    assert "each image is taken as a patient of its own" in data.notes[0]
    assert len(data.patients) == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"imges": "a"}, "did you mean images?"),
        ({"images": "../{name}.png"}, "leaves the folder"),
        ({"images": "/data/{name}.png"}, "leaves the folder"),
        ({"images": "{patiënt}/{name}.png"}, "expected {patient} or {name}"),
        ({"channels": None}, "name the channels"),
        ({"masks": None}, "give images and masks, or a manifest"),
        ({"patient_pattern": "["}, "is not a regular expression"),
        ({"channels": ["a", "b"]}, "1 channels; dataset.yaml names 2: a, b"),
        ({"images": "pictures/{name}.png"}, "its image pictures/"),
        ({"manifest": "list.csv", "images": None, "masks": None}, "cannot read"),
    ],
)
def test_a_faulty_description_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    root = _write(tmp_path / "data", _pairs, **changes)
    with pytest.raises(DataError) as error:
        open_dataset(root)
    assert said in " ".join([str(error.value), *error.value.problems])


def _break(root: Path, fault: str) -> None:
    first, mask = root / "images" / "P0_1.png", root / "masks" / "P0_1.png"
    if fault == "image gone":
        first.unlink()
    elif fault == "mask gone":
        mask.unlink()
    elif fault == "other size":
        _save(mask, np.zeros((20, 20), np.uint8))
    elif fault == "grey mask":
        _save(mask, np.arange(1440, dtype=np.uint8).reshape(40, 36))
    elif fault == "no image":
        first.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("image gone", "its image images/P0_1.png is missing"),
        ("mask gone", "its mask masks/P0_1.png is missing"),
        ("other size", "but its image 1x40x36"),
        ("grey mask", "name the tumour's in dataset.yaml"),
        ("no image", "not a TIFF, PNG or JPEG image"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, fault: str, said: str) -> None:
    root = _write(tmp_path / "data", _pairs)
    _break(root, fault)
    with pytest.raises(DataError) as error:
        open_dataset(root)
    assert any("P0_1.png" in problem and said in problem for problem in error.value.problems)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../x.png,masks/P0_0.png,P0", "is not a path below"),
        ("/x.png,masks/P0_0.png,P0", "is not a path below"),
        ("images/none.png,masks/P0_0.png,P0", "there is no file images/none.png"),
        ("images/P0_0.png,masks/P0_0.png,", "no patient"),
    ],
)
def test_a_faulty_line_of_a_manifest_is_named(tmp_path: Path, line: str, said: str) -> None:
    root = _write(tmp_path / "data", _manifest)
    with (root / "list.csv").open("a") as file:
        file.write(f"{line},A\n")
    with pytest.raises(DataError) as error:
        open_dataset(root)
    assert any(said in problem and "line 32" in problem for problem in error.value.problems)


def test_the_check_describes_a_dataset_and_lists_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _write(tmp_path / "data", _jpegs, licence="CC0")
    assert explore.main(["--data", str(root), "--check"]) == 0
    out = capsys.readouterr().out
    assert "slices      30, 30 with tumour" in out
    assert "40 x 36: 10, 39 x 36: 10, 38 x 36: 10 px" in out
    assert "red, green, blue" in out
    (root / "P3_20200101" / "s1.jpg").write_bytes(b"")
    (root / "P4_20200101" / "s1_mask.png").unlink()
    assert explore.main(["--data", str(root), "--check"]) == 1
    assert "P4_20200101/s1.jpg: its mask P4_20200101/s1_mask.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "sizes"),
    [
        pytest.param(_jpegs, 3, marks=SLOW),
        pytest.param(_pairs, 1, marks=SLOW),
        pytest.param(_volumes, 1, marks=SLOW),
    ],
)
def test_a_dataset_of_any_layout_is_explored(write: Write, sizes: int, tmp_path: Path) -> None:
    root = _write(tmp_path / "data", write)
    assert explore.main(["--data", str(root), "--out", str(tmp_path / "page")]) == 0
    page = json.loads((tmp_path / "page" / "explore.json").read_text())
    data = open_dataset(root)
    assert page["dataset"]["sizes"] == sizes
    assert list(page["dataset"]["intensity"]) == list(data.channels)
    tumour = sum(item.tumour_pixels for item in data.slices)
    share = tumour / sum(height * width for height, width in data.shapes)
    assert page["dataset"]["tumour_pixel_share"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("kind", "files"),
    [pytest.param("png pairs", "images", marks=pytest.mark.slow), ("one volume", "v.nii.gz")],
)
def test_files_of_another_dataset_are_predicted(
    kind: str, files: str, tmp_path: Path, tiny: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    data = open_dataset(_write(root, _pairs))
    short = tiny.replaced({"stages.1.epochs": 0})
    model = train_two_stage(short, data, compute=CPU).save(tmp_path / "model.safetensors")
    volume = np.stack([_slice("P1", n)[0].squeeze() for n in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), root / "v.nii.gz")
    assert run_predict(model, root / files, out=tmp_path / "out") == 0
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == (30 if "images" in files else 3)
    _save(root / "rgb.png", np.zeros((40, 40, 3), np.uint8))
    assert run_predict(model, root / "rgb.png", out=tmp_path / "none") == 3
    assert "rgb.png: 3 channels; expected 1 (FLAIR)" in capsys.readouterr().err


def _four_channels(root: Path) -> dict[str, Any]:
    for patient in PATIENTS:
        for number in range(3):
            image, mask = _slice(patient, number)
            four = np.dstack(
                [image[..., 0], image[..., 0] // 2, 255 - image[..., 0], image[..., 0]]
            )
            _save(root / patient / f"{number}.png", four)
            _save(root / patient / f"{number}_mask.png", mask)
    return {
        "images": "{patient}/{name}.png",
        "masks": "{patient}/{name}_mask.png",
        "channels": ["T1", "T1c", "T2", "FLAIR"],
    }


def _named_as_lgg(root: Path) -> dict[str, Any]:
    return _sixteen_bits(root, CHANNELS)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(_sixteen_bits, marks=pytest.mark.slow),
        pytest.param(_four_channels, marks=pytest.mark.slow),
        _named_as_lgg,
    ],
)
def test_files_of_sixteen_bits_or_four_channels_are_predicted_as_the_study_scores_them(
    write: Write, tmp_path: Path, tiny: Experiment
) -> None:
    data = open_dataset(_write(tmp_path / "data", write))
    named = tiny.replaced({"data.channels": list(data.channels), "stages.1.epochs": 1})
    result = train_two_stage(named, data, compute=CPU)
    model = result.save(tmp_path / "model.safetensors")
    patient = PATIENTS[0]
    assert run_predict(model, data.root / patient, out=tmp_path / "out") == 0
    members = [n for n, item in enumerate(data.slices) if item.patient == patient]
    masks = Predictor.of(result, CPU).masks([data.image(index) for index in members])
    for number, mask in enumerate(masks):
        (path,) = (tmp_path / "out").rglob(f"{number}_mask.*")
        assert np.array_equal(read_pixels(path) > 0, mask)


def test_a_pattern_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    for suffix in ("", "_mask"):
        path = tmp_path / f"{'a' * 40}!{suffix}.png"
        cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    (tmp_path / DESCRIPTION_FILE).write_text(
        "images: '{name}.png'\nmasks: '{name}_mask.png'\npatient_pattern: '((?:a|aa)+)[bc]'\n"
        "channels: [FLAIR]\n"
    )
    description = read_description(tmp_path)
    assert description is not None
    with pytest.raises(DataError, match="give a simpler pattern"):
        find_files(tmp_path, description)
