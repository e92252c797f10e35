"""The demo in a real headless Chromium, as a first-time user meets it.

With BRAINSEG_DATA the slices are real ones, else phantoms. The networks are small and hardly
trained: what is compared is the page with `brainseg.predict`, not either with the truth.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from conftest import REAL_DATA
from numpy.typing import NDArray
from PIL import Image

from brainseg import predict
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.inference.readers import find_scans
from brainseg.model.model_file import read_header, save_model
from brainseg.model.networks import build_model
from brainseg.storage.files import read_csv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
WAIT = 60_000  # milliseconds, for machines that do other things too


@dataclass(frozen=True)
class Server:
    """A demo that runs in a process of its own."""

    address: str
    process: psutil.Process
    study: Path
    calls: list[str]

    def memory(self) -> float:
        """Return the resident memory in MB."""
        return float(self.process.memory_info().rss) / 1e6


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    pytest.importorskip("gradio", reason='needs pip install -e ".[demo]"')
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def slices(data: SliceStore) -> SliceStore:
    if not REAL_DATA:
        return data
    from brainseg.data.slice_store import open_dataset

    return open_dataset(REAL_DATA)


@pytest.fixture(scope="module")
def study(model_file: Path, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants: one trained on phantoms, one that never was and finds tumour everywhere."""
    folder = tmp_path_factory.mktemp("results") / "pair"
    (folder / "models").mkdir(parents=True)
    shutil.copyfile(model_file, folder / "models" / "trained.safetensors")
    header = read_header(model_file)
    raw = tiny.replaced({"data.size": 64, "threshold": 0.45})
    changes = {"experiment": raw, "metrics": {"val_dice": 0.0}}  # listed second
    weights = build_model(raw.model, 3).state_dict()
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    path = folder / "models" / "untrained.safetensors"
    save_model(path, contiguous, header.model_copy(update=changes))
    return folder


@pytest.fixture(scope="module")
def server(chromium: Any, study: Path, slices: SliceStore) -> Iterator[Server]:
    with _serve([str(study), "--data", str(slices.root)], study) as running:
        yield running


class _serve:  # noqa: N801
    """Run the command; its calls to the outside would go to a proxy that writes them down."""

    def __init__(self, arguments: list[str], study: Path, **environment: str) -> None:
        self.arguments, self.study, self.environment = arguments, study, environment
        self.calls: list[str] = []

    def __enter__(self) -> Server:
        self.proxy = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()
        proxy = f"http://127.0.0.1:{self.proxy.getsockname()[1]}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "brainseg.demo", *self.arguments, "--device", "cpu"],
            cwd=self.environment.pop("cwd", str(ROOT)),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HTTP_PROXY": proxy,
                "HTTPS_PROXY": proxy,
                "NO_PROXY": "127.0.0.1,localhost",
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if found := re.search(r"^(http://\S+) shows", line):
                process = psutil.Process(self.process.pid)
                return Server(found.group(1), process, self.study, self.calls)
        raise AssertionError(f"the demo ended: {printed}")

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.proxy.accept()
            except OSError:
                return
            with connection:
                self.calls.append(connection.recv(200).decode(errors="replace"))

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.proxy.close()


@pytest.fixture
def page(server: Server, chromium: Any) -> Iterator[Any]:
    yield from _open(chromium, server.address, 1280, 900)


@pytest.fixture
def phone(server: Server, chromium: Any) -> Iterator[Any]:
    yield from _open(chromium, server.address, 390, 844)


def _open(chromium: Any, address: str, width: int, height: int) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.errors, page.hosts = [], set()
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
    page.goto(address)
    page.get_by_role("button", name="Outline the tumour").wait_for()
    yield page
    context.close()


@pytest.fixture(scope="module")
def pair(slices: SliceStore) -> tuple[Path, Path]:
    """A slice with much tumour, and its true mask, as files of the dataset."""
    largest = max(slices.slices, key=lambda item: item.tumour_pixels)
    image = next(slices.root.glob(f"*/{largest.name}.tif"))
    return image, image.with_name(f"{largest.name}_mask.tif")


def _predicted(model: Path, path: Path, out: Path) -> dict[str, str]:
    assert predict.main([str(model), str(path), "--out", str(out), "--device", "cpu"]) == 0
    return read_csv(out / "predictions.csv")[0]


def _decode(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), -1), np.uint8)


def _choose(page: Any, label: str, name: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=re.compile(f"^(✓ *)?{name}")).click()


def _attach(page: Any, element: str, *paths: Path) -> None:
    page.locator(f"#{element} input[type=file]").set_input_files([str(path) for path in paths])
    page.locator(f"#{element} .file-preview").wait_for()


def _go(page: Any) -> None:
    page.get_by_role("button", name="Outline the tumour").click()


def test_a_slice_and_its_mask_give_what_predict_gives(
    server: Server, page: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    _attach(page, "slice", pair[0])
    _attach(page, "mask", pair[1])
    _choose(page, "Compare with", "untrained")
    _go(page)
    page.locator("#result .prediction").nth(1).wait_for()
    for number, name in enumerate(("trained", "untrained")):
        section = page.locator("#result .prediction").nth(number)
        expected = _predicted(
            server.study / "models" / f"{name}.safetensors", pair[0], tmp_path / name
        )
        text = section.inner_text()
        assert name in text
        scores = dict(
            zip(
                section.locator("dt").all_inner_texts(),
                section.locator("dd").all_inner_texts(),
                strict=True,
            )
        )
        for key in ("dice", "iou", "precision", "recall"):
            shown = scores[{"dice": "Dice", "iou": "IoU"}.get(key, key)]
            assert shown == f"{float(expected[key]):.4f}"
        for word, key in (("found", "TP"), ("false", "FP"), ("missed", "FN")):
            assert f"{word} {int(expected[key]):,}" in text
        link = section.get_by_role("link", name="Mask as PNG").get_attribute("href")
        written = tmp_path / name / f"{pair[0].stem}_mask.tif"
        expected_mask = _decode(written.read_bytes())
        assert np.array_equal(_decode(base64.b64decode(link.split(",")[1])), expected_mask)
    assert float(expected["dice"]) > 0
    assert not page.errors
    assert page.hosts == {server.address.split("/")[2]}


def test_pictures_are_described_and_the_page_is_not_for_clinical_use(
    server: Server, page: Any
) -> None:
    page.get_by_role("button", name="large tumour").click()
    page.locator("#result .prediction").wait_for()
    alts = [image.get_attribute("alt") for image in page.locator("#result img").all()]
    assert len(alts) == 3
    assert all(alt and len(alt) > 20 for alt in alts)
    assert "outline predicted by trained" in alts[0]
    assert page.get_by_text("Not for clinical use").first.is_visible()
    assert "SYNTHETIC" in page.locator("#result").inner_text()  # the model knows phantoms only
    page.get_by_role("button", name="About the model").click()
    card = page.locator("#card").inner_text()
    assert "mobilenet_v2" in card
    assert "not for clinical use" in card


def test_a_patients_slices_with_the_slider_by_keyboard(
    server: Server, page: Any, slices: SliceStore, pair: tuple[Path, Path]
) -> None:
    folder = pair[0].parent
    scans, _ = find_scans([folder])
    page.get_by_role("tab", name="A patient").click()
    _attach(page, "slices", *(path for scan in scans for path in (scan.path, scan.mask) if path))
    page.get_by_role("button", name="Outline all slices").click()
    page.locator("#patient-result .prediction").wait_for()
    assert f"all {len(scans)} slices together" in page.locator("#notes").inner_text()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    names = [scan.path.name for scan in scans]
    heading = page.locator("#patient-result h2")
    for name in names[:3]:
        page.wait_for_function(
            "name => document.querySelector('#patient-result h2')?.innerText === name", arg=name
        )
        assert heading.inner_text() == name
        page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.wait_for_function(
        "name => document.querySelector('#patient-result h2')?.innerText === name", arg=names[-1]
    )
    assert not page.errors


def test_everything_can_be_reached_by_keyboard(server: Server, page: Any) -> None:
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const e = document.activeElement;"
                " return e.innerText || e.getAttribute('aria-label') || e.tagName }"
            )
        )
        if reached[-1].strip() == "large tumour":
            break
    text = " ".join(reached)
    for wanted in ("Model", "Compare with", "One slice", "Outline the tumour", "large tumour"):
        assert wanted in text, reached
    page.keyboard.press("Enter")
    page.locator("#result .prediction").wait_for()


def test_a_reload_gives_a_fresh_page_that_works(server: Server, page: Any) -> None:
    page.get_by_role("button", name="no tumour").click()
    page.locator("#result .prediction").wait_for()
    page.reload()
    page.get_by_role("button", name="small tumour").wait_for()
    assert page.locator("#result .prediction").count() == 0
    page.get_by_role("button", name="small tumour").click()
    page.locator("#result .prediction").wait_for()
    assert not page.errors


def _write_bad_files(folder: Path) -> dict[str, str]:
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (60_000, 20_000)).save(folder / "bomb.png")
        Image.new("RGB", (10_000, 10_000)).save(folder / "hundred_megapixels.png")
    (folder / "text.tif").write_text("this is no image")
    (folder / "sixteen.png").write_bytes(cv2.imencode(".png", rgb.astype(np.uint16))[1].tobytes())
    Image.fromarray(rgb).convert("CMYK").save(folder / "ink.tif")
    return {
        "bomb.png": "at most 4096 along a side",
        "hundred_megapixels.png": "at most 4096 along a side",
        "text.tif": "not a TIFF, PNG or JPEG image",
        "sixteen.png": "uint16; expected three channels of uint8",
        "ink.tif": "four channels of ink (CMYK)",
    }


def test_bad_files_get_a_message_and_nothing_breaks(
    server: Server, page: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = _write_bad_files(tmp_path)
    before = server.memory()
    for name, sentence in expected.items():
        page.reload()
        _attach(page, "slice", tmp_path / name)
        _go(page)
        alert = page.locator("#result [role=alert]")
        alert.wait_for()
        assert name in alert.inner_text()
        assert sentence in alert.inner_text()
    assert server.memory() < before + 100
    page.reload()
    _attach(page, "slice", pair[0])
    _go(page)
    page.locator("#result .prediction").wait_for()


def test_other_formats_and_large_files_are_refused_on_the_page(
    server: Server, page: Any, tmp_path: Path
) -> None:
    (tmp_path / "large.png").write_bytes(bytes(6 * 2**20))
    page.locator("#slice input[type=file]").set_input_files(str(tmp_path / "large.png"))
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    page.reload()
    (tmp_path / "page.svg").write_text("<svg/>")
    page.locator("#slice input[type=file]").set_input_files(str(tmp_path / "page.svg"))
    page.get_by_text(re.compile("Invalid file type")).first.wait_for()
    page.reload()
    _go(page)
    page.get_by_text("There is no slice yet").wait_for()


def test_fifty_slices_at_once(server: Server, page: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(50):
        image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        paths.append(tmp_path / f"slice_{number}.png")
        paths[-1].write_bytes(cv2.imencode(".png", image)[1].tobytes())
    before = server.memory()
    page.get_by_role("tab", name="A patient").click()
    _attach(page, "slices", *paths)
    page.get_by_role("button", name="Outline all slices").click()
    page.locator("#patient-result .prediction").wait_for()
    assert "of 50" in page.locator("#number").inner_text()
    assert server.memory() < before + 200


def test_fifty_large_uploads_at_once(server: Server, page: Any) -> None:
    """Fifty connections send the largest file that is allowed, together: 250 MB."""
    before = server.memory()
    content = os.urandom(5 * 10**6 - 1000)

    def send(number: int) -> int:
        body = (
            b'--line\r\nContent-Disposition: form-data; name="files"; filename="%d.tif"\r\n'
            b"Content-Type: image/tiff\r\n\r\n" % number
        )
        request = urllib.request.Request(
            f"{server.address}gradio_api/upload",
            data=body + content + b"\r\n--line--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=line"},
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            return int(answer.status)

    with ThreadPoolExecutor(50) as senders:
        assert set(senders.map(send, range(50))) == {200}
    assert server.memory() < before + 200
    page.get_by_role("button", name="small tumour").click()
    page.locator("#result .prediction").wait_for()


def test_a_phone_needs_no_sideways_scrolling(server: Server, phone: Any) -> None:
    phone.get_by_role("button", name="large tumour").click()
    phone.locator("#result .prediction").wait_for()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("path", ["/etc/passwd", "models/trained.safetensors", "../pair"])
def test_other_files_of_the_machine_are_not_served(server: Server, path: str) -> None:
    target = path if path.startswith("/") else str(server.study / path)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.address}gradio_api/file={target}", timeout=60)
    assert refused.value.code in (403, 404)


def test_nothing_was_sent_anywhere(server: Server, page: Any) -> None:
    """The last test of this server: no connection to the proxy in all of the above."""
    page.get_by_role("button", name="small tumour").click()
    page.locator("#result .prediction").wait_for()
    assert server.calls == []


def test_without_a_study_the_page_says_how_to_make_one(chromium: Any, tmp_path: Path) -> None:
    with _serve([], tmp_path, cwd=str(tmp_path)) as empty:
        page = chromium.new_page()
        page.goto(empty.address)
        page.get_by_text("There is no trained model yet").wait_for(timeout=WAIT)
        assert "python -m study.run --grid baseline" in page.locator("#how").inner_text()
        page.close()


def test_uploads_are_gone_when_the_page_ends(
    chromium: Any, study: Path, pair: tuple[Path, Path], tmp_path: Path, slices: SliceStore
) -> None:
    arguments = [str(study), "--data", str(slices.root)]
    with _serve(arguments, study, TMPDIR=str(tmp_path)) as running:
        for page in _open(chromium, running.address, 800, 800):
            _attach(page, "slice", pair[0])
            assert list(tmp_path.rglob(pair[0].name))
    assert not list(tmp_path.rglob("*.tif"))


def test_a_password_is_asked_for(chromium: Any, study: Path, slices: SliceStore) -> None:
    arguments = [str(study), "--data", str(slices.root), "--host", "127.0.0.1"]
    with _serve(arguments, study, BRAINSEG_DEMO_PASSWORD="open sesame") as running:
        page = chromium.new_page()
        page.set_default_timeout(WAIT)
        page.goto(running.address)
        for password in ("wrong", "open sesame"):
            page.get_by_label(re.compile("username", re.IGNORECASE)).fill("brainseg")
            page.get_by_label(re.compile("password", re.IGNORECASE)).fill(password)
            page.get_by_role("button", name="Login").click()
            if password == "wrong":
                page.get_by_text(re.compile("Incorrect|Invalid")).first.wait_for()
        page.get_by_role("button", name="Outline the tumour").wait_for()
        page.close()
