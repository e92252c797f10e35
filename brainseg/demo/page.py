"""The demo's page: slices in, outlines out. What it does with them is `Desk`'s.

Nothing leaves the machine: no analytics, no share link, no fonts from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

# Gradio would otherwise report its use, and looks these up when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

from brainseg.demo import render as panels
from brainseg.demo.catalog import Sample
from brainseg.demo.handlers import NO_SECOND, Desk
from brainseg.inference.readers import IMAGE_SUFFIXES

MAX_FILE_SIZE = "5mb"
SESSIONS = 4
"""Visitors whose slices are kept; the one who was away longest loses them."""

_KEEP_SECONDS = 1800
_SLICE_HINT = "Upload a slice, or take one of the examples; then the outline appears here."
_PATIENT_HINT = (
    "Upload all slices of a patient, and then go through them with the slider. Files called like "
    "a slice with _mask at the end are taken for its true mask."
)


class Examples(NamedTuple):
    """Files behind the example buttons.

    Attributes:
        about: Whose slices they are.
        samples: Single slices.
        patient: Slices and masks of one patient.
    """

    about: str
    samples: Sequence[Sample]
    patient: Sequence[Path]


def build_page(desk: Desk, examples: Examples) -> gr.Blocks:
    """Build the page.

    Args:
        desk: Does the work.
        examples: To try it with.
    """
    names = list(desk.models)
    labels = [(f"{name}, val Dice {desk.models[name].val_dice:.3f}", name) for name in names]
    with _new_page() as page:
        gr.HTML(_HEADING)
        with gr.Row():
            first = gr.Dropdown(
                labels, value=names[0], label="Model", min_width=300, elem_id="first"
            )
            others = [("none", NO_SECOND), *labels]
            second = gr.Dropdown(
                others, value=NO_SECOND, label="Compare with", min_width=300, elem_id="second"
            )
        chosen = [first, second]
        with gr.Tab("One slice"):
            _add_slice_tab(desk, examples, chosen)
        with gr.Tab("A patient"):
            _add_patient_tab(desk, examples, chosen)
        with gr.Accordion("About the model", open=False):
            card = gr.Markdown(desk.describe(names[0], NO_SECOND), elem_id="card")
        gr.on([first.change, second.change], desk.describe, chosen, card, **_QUIET)
    return page


def build_empty_page() -> gr.Blocks:
    """Build the page that says how to make a model."""
    with _new_page() as page:
        gr.HTML(_HEADING)
        gr.Markdown(_HOW_TO, elem_id="how")
    return page


def launch(page: gr.Blocks, host: str, port: int | None, password: str | None) -> str:
    """Serve a page in the background and return its address.

    Args:
        page: Built by one of the functions above.
        host: Address to listen on.
        port: None takes the first free one from 7860 on.
        password: Asked for together with the user `brainseg`; None asks for nothing.
    """
    # One prediction at a time; who comes while many wait is told so.
    page.queue(max_size=64, default_concurrency_limit=1, api_open=False)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=("brainseg", password) if password else None,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=SESSIONS,
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ).set(button_primary_background_fill="#1d4ed8"),  # enough contrast to its white text
        css=_STYLE,
        js=_NAME_UPLOADS,
    )
    return str(address)


def _new_page() -> gr.Blocks:
    return gr.Blocks(
        title="Brain tumour outlines",
        analytics_enabled=False,
        delete_cache=(60, _KEEP_SECONDS),
    )


def _add_slice_tab(desk: Desk, examples: Examples, chosen: list[Any]) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = _file("Slice: TIFF, PNG or JPEG", "slice")
            mask = _file("True mask, if there is one", "mask")
            go = gr.Button("Outline the tumour", variant="primary", elem_id="go")
            gr.HTML(f"<h3>Examples</h3><p>{escape(examples.about)}</p>")
            with gr.Row():
                buttons = [
                    gr.Button(sample.label, size="sm", min_width=120)
                    for sample in examples.samples
                ]
        with gr.Column(scale=3, min_width=320):
            result = gr.HTML(panels.show_hint(_SLICE_HINT), elem_id="result")
    inputs = [image, mask, *chosen]
    go.click(desk.outline, inputs, result, **_WORK).then(None, js=_SCROLL, **_QUIET)
    for button, sample in zip(buttons, examples.samples, strict=True):
        files = str(sample.image), str(sample.mask)
        taken = button.click(lambda files=files: files, None, [image, mask], **_QUIET)
        done = taken.then(desk.outline, inputs, result, **_WORK)
        done.then(None, js=_SCROLL, **_QUIET)


def _add_patient_tab(desk: Desk, examples: Examples, chosen: list[Any]) -> None:
    seen = gr.State(None, time_to_live=_KEEP_SECONDS)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            files = _file("All slices of a patient", "slices", file_count="multiple")
            go = gr.Button("Outline all slices", variant="primary", elem_id="go-patient")
            gr.HTML(f"<h3>Example</h3><p>{escape(examples.about)}</p>")
            take = gr.Button("Example patient", size="sm")
        with gr.Column(scale=3, min_width=320):
            notes = gr.HTML(panels.show_hint(_PATIENT_HINT), elem_id="notes")
            slider = gr.Slider(
                1, 2, 1, step=1, label="Slice", visible=False, buttons=[], elem_id="number"
            )
            result = gr.HTML("", elem_id="patient-result")

    def outline(paths: list[str] | None, one: str, other: str) -> tuple[Any, ...]:
        found, text = desk.outline_patient(paths, one, other)
        if not found:
            return None, text, gr.Slider(visible=False), ""
        most = desk.find_largest(found)
        shown = gr.Slider(
            1, max(len(found), 2), most, label=f"Slice, of {len(found)}", visible=len(found) > 1
        )
        return found, text, shown, desk.show_slice(found, most)

    outputs = [seen, notes, slider, result]
    done = go.click(outline, [files, *chosen], outputs, **_WORK)
    done.then(None, js=_SCROLL, **_QUIET)
    paths = [str(path) for path in examples.patient]
    taken = take.click(lambda: paths, None, files, **_QUIET)
    done = taken.then(outline, [files, *chosen], outputs, **_WORK)
    done.then(None, js=_SCROLL, **_QUIET)
    slider.input(desk.show_slice, [seen, slider], result, trigger_mode="always_last", **_QUIET)


def _file(label: str, name: str, file_count: str = "single") -> gr.File:
    return gr.File(
        label=label,
        file_types=list(IMAGE_SUFFIXES),
        file_count=file_count,
        type="filepath",
        height=150,
        elem_id=name,
    )


_WORK = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "network"}
_QUIET = {"api_visibility": "private", "show_progress": "hidden"}

# On a phone the result lies far below the button.
_SCROLL = """() => {
  const all = [...document.querySelectorAll("#result, #notes")];
  const shown = all.find((element) => element.offsetParent);
  if (shown && shown.getBoundingClientRect().top > innerHeight / 2)
    shown.scrollIntoView({behavior: "smooth", block: "start"});
}"""

# Gradio gives all upload buttons one name, which tells a screen reader nothing.
_NAME_UPLOADS = """() => {
  const names = {
    slice: "Upload a slice", mask: "Upload its true mask", slices: "Upload all slices",
  };
  const rename = () => Object.entries(names).forEach(([id, name]) =>
    document.querySelectorAll(`#${id} button[aria-label^="Click to upload"]`).forEach((button) =>
      button.setAttribute("aria-label", name)));
  new MutationObserver(rename).observe(document.body, {childList: true, subtree: true});
  rename();
}"""

_HEADING = """
<h1>Brain tumour outlines</h1>
<p class="alert" role="note"><b>Research software. Not for clinical use.</b> Axial head MRI slices
whose channels are pre-contrast, FLAIR and post-contrast, as in the LGG MRI Segmentation dataset.
Files stay on this machine and are removed after half an hour.</p>
"""

_HOW_TO = """
## There is no trained model yet

This page shows the models of a study, and there is no study in `results/`. Make one, without any
data at hand in a few minutes:

```
python -m study.run --grid baseline
```

or on the real slices:

```
python -m study.run --grid baseline --data data/kaggle_3m
```

Then start this page again. To show one model file or another study:

```
python -m brainseg.demo model.safetensors
python -m brainseg.demo results/NAME
```
"""

_STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: .8rem }
.pictures figure { margin: 0 } .pictures img { width: 100%; max-width: 512px; display: block }
.pictures figcaption { font-size: .85rem; margin-top: .2rem }
.scale { display: inline-block; width: 7rem; height: .7rem; vertical-align: middle; background:
  linear-gradient(90deg, #000004, #420a68, #932667, #dd513a, #fca50a, #fcffa4) }
#result h2, #patient-result h2 { font-size: 1.1rem; overflow-wrap: anywhere }
.key { display: inline-block; border-left: .8rem solid; padding: 0 .6rem 0 .3rem }
.scores { display: flex; flex-wrap: wrap; gap: 1.2rem; margin: .4rem 0 .8rem }
.scores dt { font-size: .8rem } .scores dd { margin: 0; font-weight: 700; font-size: 1.2rem }
.alert { border-left: .35rem solid #b00000; padding: .4rem .8rem; margin: .4rem 0 }
.hint { padding: .4rem 0 }
"""
