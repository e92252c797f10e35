"""The package that a user installs: its wheel in a fresh environment, away from this checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import brainseg
from brainseg.config import Experiment
from study.spec.configs import shipped

ROOT = Path(__file__).parents[1]
IMPORTS = {
    "huggingface-hub": "huggingface_hub",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "tensorboard": "torch.utils.tensorboard",
}
"""Distributions whose packages have another name."""
SCRIPTS = ("study", "fetch", "compare", "explore", "predict", "export", "demo", "check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and the wheel from it."""
    pytest.importorskip("build", reason="builds the wheel: pip install build hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that shares this one's dependencies, not its paths."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but the .pth files there, such as that of an editable
    # install, are not.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder, without any path to the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _dependencies() -> list[tuple[str, str]]:
    """Return the name of each dependency that a user gets, and the comment beside it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\ndependencies = [\n")[1].split("\n]\n")[0]
    return re.findall(r'^    "([\w-]+)[^"]*",(.*)$', block, re.MULTILINE)


@pytest.mark.parametrize(("name", "reason"), _dependencies())
def test_every_dependency_has_a_reason_is_imported_and_pinned(name: str, reason: str) -> None:
    assert re.match(r" +# \w+", reason), f"no reason beside {name}"
    imported = re.compile(rf"^\s*(from|import) {IMPORTS.get(name, name)}\b", re.MULTILINE)
    sources = [
        path for package in ("brainseg", "study") for path in (ROOT / package).rglob("*.py")
    ]
    assert any(imported.search(path.read_text(encoding="utf-8")) for path in sources)
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    assert f"\n{name}==" in pinned


def test_the_image_for_kubernetes_is_called_by_the_version() -> None:
    text = (ROOT / "docs" / "rayjob.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"/brainseg:(\S+)", text)) == {brainseg.__version__}


def test_the_wheel_holds_the_code_its_yaml_files_and_templates_and_nothing_else(
    wheel: Path,
) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("brainseg", "study")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"study/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert held == sources | configs
    assert "study/configs/baseline.yaml" in held
    assert any(name.endswith(".j2") for name in held)


def test_licence_and_version_are_those_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"brainseg-{brainseg.__version__}.dist-info"
        metadata = archive.read(f"{folder}/METADATA").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE")
    assert f"\nVersion: {brainseg.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_the_shipped_files_of_a_checkout_are_those_at_its_top() -> None:
    assert shipped("baseline.yaml") == ROOT / "configs" / "baseline.yaml"


def test_an_installed_package_reads_its_own_files(installed: Path, empty: Path) -> None:
    code = "from study.spec.configs import shipped; print(shipped('baseline.yaml').resolve())"
    path = Path(_run(installed / "python", "-c", code).strip())
    assert path.is_relative_to(installed.parent)
    assert path.read_bytes() == (ROOT / "configs" / "baseline.yaml").read_bytes()


@pytest.mark.slow
def test_every_console_script_is_there_and_loads(installed: Path, empty: Path) -> None:
    code = (
        "from importlib.metadata import distribution\n"
        "for script in distribution('brainseg').entry_points: print(script.name, script.load())"
    )
    loaded = _run(installed / "python", "-c", code)
    names = {path.name for path in installed.glob("brainseg-*")}
    assert names == {line.split()[0] for line in loaded.splitlines()}
    assert names == {f"brainseg-{name}" for name in SCRIPTS}
    assert "exit codes:" in _run(installed / "brainseg-study", "--help")


@pytest.mark.slow
def test_a_plan_from_an_empty_folder_finds_the_shipped_files(installed: Path, empty: Path) -> None:
    command = (installed / "python", "-m", "study.run")
    assert "SYNTHETIC" in _run(*command, "--grid", "lite", "--search", "3", "--plan")
    assert {path.name for path in empty.iterdir()} == {"cache"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_in_an_empty_folder_lies_below_it(
    installed: Path, empty: Path, phantom_root: Path, tiny: Experiment
) -> None:
    shutil.copytree(phantom_root, empty / "phantom")
    (empty / "tiny.yaml").write_text(tiny.to_yaml())
    _run(installed / "brainseg-study", "--config", "tiny.yaml", "--data", "phantom")
    (report,) = empty.glob("results/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert str(ROOT) not in page
    assert list(report.parent.glob("models/*.safetensors"))
    record = json.loads((report.parent / "study.json").read_text(encoding="utf-8"))
    assert record["starts"][-1]["commit"] == f"version {brainseg.__version__}"
