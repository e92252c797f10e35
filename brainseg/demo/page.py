"""The layout of the demo's page, and the server that shows it.

Nothing leaves the machine: no share link, no fonts from other hosts, and no analytics, which
`brainseg/__init__.py` turns off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from brainseg.data.about import CHANNELS
from brainseg.demo.catalog import Examples
from brainseg.demo.handlers import NO_SECOND, Handlers
from brainseg.demo.render import ASSETS, render
from brainseg.errors import ConfigError
from brainseg.inference.readers import IMAGE_SUFFIXES

MAX_FILE_SIZE = "5mb"
SESSIONS = 4
"""The number of visitors whose slices are kept; those of the one away longest are dropped."""

_KEEP_SECONDS = 1800
_REFUSAL = (
    b"This host does not show the page under this name. Behind a proxy, start the demo with "
    b"--public-host NAME.\n"
)
_SLICE_HINT = "Upload a slice, or take one of the examples; then the outline appears here."
_PATIENT_HINT = (
    "Upload all slices of a patient, then go through them with the slider. A file NAME_mask is "
    "the true mask of the slice NAME."
)
_WORK = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "network"}
_QUIET = {"api_visibility": "private", "show_progress": "hidden"}
# On a phone the result is far below the button.
_SCROLL = (ASSETS / "scroll.js").read_text(encoding="utf-8")
# Gradio gives all upload buttons the same label, which screen readers read out.
_LABEL_UPLOADS = (ASSETS / "label_uploads.js").read_text(encoding="utf-8")


def build_page(handlers: Handlers, examples: Examples) -> gr.Blocks:
    """Build the page.

    Args:
        handlers: The handlers of its events.
        examples: Slices to try it with.
    """
    models = handlers.models
    names = list(models)
    labels = [(f"{name}, val Dice {models[name].val_dice:.3f}", name) for name in names]
    with _new_page() as page:
        gr.HTML(_heading(models[names[0]].header.channels))
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
            _add_slice_tab(handlers, examples, chosen)
        with gr.Tab("A patient"):
            _add_patient_tab(handlers, examples, chosen)
        with gr.Accordion("About the model", open=False):
            card = gr.Markdown(handlers.describe(names[0], NO_SECOND), elem_id="card")
        gr.on([first.change, second.change], handlers.describe, chosen, card, **_QUIET)
    return page


def build_empty_page() -> gr.Blocks:
    """Build the page that says how to train a model."""
    with _new_page() as page:
        gr.HTML(_heading(CHANNELS))
        gr.Markdown((ASSETS / "how_to.md").read_text(encoding="utf-8"), elem_id="how")
    return page


def launch(
    page: gr.Blocks, host: str, port: int | None, password: str | None, names: Collection[str]
) -> str:
    """Serve a page in the background and return its address.

    Args:
        page: The page.
        host: The address to listen on.
        port: The port to listen on; None takes the first free one from 7860 on.
        password: The password of the user `brainseg`; None asks for no password.
        names: Names of this host in requests. With a password, which a page that pretends to be
            this one does not have, any name will do.

    Raises:
        ConfigError: If the address cannot be listened on.
    """
    # One prediction at a time; beyond 64 waiting ones visitors get a message.
    page.queue(max_size=64, default_concurrency_limit=1, api_open=False)
    options = {"names": names, "any_host": password is not None}
    try:
        return _launch(page, host, port, password, (OwnHostOnly, (), options))
    except OSError as error:
        where = f"{host}:{port or '7860 and higher'}"
        raise ConfigError(f"cannot listen at {where}: {error}; give another --port") from error


class OwnHostOnly:
    """Refuses requests that other pages of a browser make (by DNS rebinding, say).

    Args:
        app: The server's ASGI application.
        names: Names of this host.
        any_host: Whether the header Host may be anything; Origin must then be the same.
    """

    def __init__(self, app: Any, names: Collection[str], *, any_host: bool) -> None:
        self._app, self._names, self._any_host = app, {n.lower() for n in names}, any_host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with status 403."""
        if scope["type"] == "lifespan" or self._is_ours(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            plain = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _is_ours(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        hosts, origins = (
            [_name(value) for key, value in headers if key == wanted]
            for wanted in (b"host", b"origin")
        )
        known = self._names | set(hosts if self._any_host else ())
        return len(hosts) == 1 and known.issuperset([*hosts, *origins]) and "" not in hosts


def _name(header: bytes) -> str:
    """Return the host's name in a header, without scheme and port; empty if it is malformed."""
    value = header.decode("latin-1")
    try:
        return urlsplit(value if "://" in value else f"//{value}").hostname or ""
    except ValueError:
        return ""


def _launch(
    page: gr.Blocks, host: str, port: int | None, password: str | None, own: tuple[Any, ...]
) -> str:
    _, address, _ = page.launch(
        app_kwargs={"middleware": [own]},
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
        css=(ASSETS / "style.css").read_text(encoding="utf-8"),
        js=_LABEL_UPLOADS,
    )
    return str(address)


def _heading(channels: Sequence[str]) -> str:
    return render("heading", ", ".join(channels), tuple(channels) == CHANNELS)


def _new_page() -> gr.Blocks:
    return gr.Blocks(
        title="Brain tumour outlines",
        analytics_enabled=False,
        delete_cache=(60, _KEEP_SECONDS),
    )


def _add_slice_tab(handlers: Handlers, examples: Examples, chosen: list[Any]) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = _file("Slice: TIFF, PNG or JPEG", "slice")
            mask = _file("True mask, if there is one", "mask")
            go = gr.Button("Outline the tumour", variant="primary", elem_id="go")
            gr.HTML(render("examples", "Examples", examples.about))
            with gr.Row():
                buttons = [
                    gr.Button(example.label, size="sm", min_width=120)
                    for example in examples.slices
                ]
        with gr.Column(scale=3, min_width=320):
            result = gr.HTML(render("hint", _SLICE_HINT), elem_id="result")
    inputs = [image, mask, *chosen]
    go.click(handlers.outline_slice, inputs, result, **_WORK).then(None, js=_SCROLL, **_QUIET)
    for button, example in zip(buttons, examples.slices, strict=True):
        files = str(example.image), str(example.mask)
        taken = button.click(lambda files=files: files, None, [image, mask], **_QUIET)
        done = taken.then(handlers.outline_slice, inputs, result, **_WORK)
        done.then(None, js=_SCROLL, **_QUIET)


def _add_patient_tab(handlers: Handlers, examples: Examples, chosen: list[Any]) -> None:
    seen = gr.State(None, time_to_live=_KEEP_SECONDS)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            files = _file("All slices of a patient", "slices", file_count="multiple")
            go = gr.Button("Outline all slices", variant="primary", elem_id="go-patient")
            gr.HTML(render("examples", "Example", examples.about))
            take = gr.Button("Example patient", size="sm", visible=bool(examples.patient))
        with gr.Column(scale=3, min_width=320):
            notes = gr.HTML(render("hint", _PATIENT_HINT), elem_id="notes")
            slider = gr.Slider(
                1, 2, 1, step=1, label="Slice", visible=False, buttons=[], elem_id="number"
            )
            result = gr.HTML("", elem_id="patient-result")

    def outline(paths: list[str] | None, one: str, other: str) -> tuple[Any, ...]:
        found, text = handlers.outline_patient(paths, one, other)
        if not found:
            return None, text, gr.Slider(visible=False), ""
        most = handlers.find_largest(found)
        shown = gr.Slider(
            1, max(len(found), 2), most, label=f"Slice, of {len(found)}", visible=len(found) > 1
        )
        return found, text, shown, handlers.show_slice(found, most)

    outputs = [seen, notes, slider, result]
    done = go.click(outline, [files, *chosen], outputs, **_WORK)
    done.then(None, js=_SCROLL, **_QUIET)
    paths = [str(path) for path in examples.patient]
    taken = take.click(lambda: paths, None, files, **_QUIET)
    done = taken.then(outline, [files, *chosen], outputs, **_WORK)
    done.then(None, js=_SCROLL, **_QUIET)
    slider.input(handlers.show_slice, [seen, slider], result, trigger_mode="always_last", **_QUIET)


def _file(label: str, name: str, file_count: str = "single") -> gr.File:
    return gr.File(
        label=label,
        file_types=list(IMAGE_SUFFIXES),
        file_count=file_count,
        type="filepath",
        height=150,
        elem_id=name,
    )
