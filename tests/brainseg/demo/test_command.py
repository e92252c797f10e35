from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from brainseg.demo import __main__ as demo
from brainseg.errors import ConfigError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_other_machines_need_a_password(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="BRAINSEG_DEMO_PASSWORD"):
        demo.check_host(host, None)
    demo.check_host(host, "secret")
    assert demo.main(["--host", host]) == 2
    assert "shows the page to other machines" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_password(host: str) -> None:
    demo.check_host(host, None)


NAMES = ("localhost", "127.0.0.1", "::1", "demo.example.org")
OURS = [
    {"host": "localhost:7860"},
    {"host": "127.0.0.1:7860", "origin": "http://localhost:7860"},
    {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
    {"host": "LOCALHOST"},
    {"host": "demo.example.org", "origin": "https://demo.example.org"},
    {"host": "127.0.0.1:7860", "origin": "https://demo.example.org"},
]
FOREIGN = [
    {},
    {"host": ""},
    {"host": "evil.example"},
    {"host": "localhost.evil.example"},
    {"host": "evil.example:7860", "origin": "http://evil.example:7860"},
    {"host": "localhost@evil.example"},
    {"host": "[::1"},
    {"host": "localhost", "origin": "http://evil.example"},
    {"host": "localhost", "origin": "null"},
    {"host": "localhost", "origin": ""},
    {"host": "localhost", "origin": "http://localhost.evil.example"},
]


def _status(headers: Mapping[str, str], *, any_host: bool, kind: str = "http") -> int:
    """Return what a request is answered with: 200 if it reaches the page."""
    from brainseg.demo.page import OwnHostOnly

    sent: list[dict[str, Any]] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
    app = OwnHostOnly(page, NAMES, any_host=any_host)
    asyncio.run(app({"type": kind, "headers": pairs}, None, send))
    return int(sent[0].get("status") or sent[0]["code"])


@pytest.mark.parametrize("any_host", [False, True])
@pytest.mark.parametrize("headers", OURS, ids=str)
def test_requests_of_this_host_reach_the_page(headers: dict[str, str], any_host: bool) -> None:
    assert _status(headers, any_host=any_host) == 200
    assert _status(headers, any_host=any_host, kind="websocket") == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_requests_of_other_pages_are_refused(headers: dict[str, str]) -> None:
    assert _status(headers, any_host=False) == 403
    assert _status(headers, any_host=False, kind="websocket") == 1008


def test_with_a_password_any_name_of_this_host_will_do_and_no_other_origin() -> None:
    other = {"host": "workstation:7860", "origin": "http://workstation:7860"}
    assert _status(other, any_host=True) == 200
    assert _status(other | {"origin": "http://evil.example"}, any_host=True) == 403


def test_the_server_that_is_started_refuses_a_foreign_host_and_a_port_in_use() -> None:
    from brainseg.demo.page import build_empty_page, launch

    page = build_empty_page()
    address = launch(page, "127.0.0.1", None, None, NAMES)
    port = int(address.rstrip("/").rpartition(":")[2])
    try:

        def ask(**headers: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert ask()[0] == 200
        assert ask(Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200
        assert ask(Host="evil.example")[0] == 403
        status, text = ask(Origin="http://evil.example")
        assert status == 403
        assert b"--public-host" in text
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}"):
            launch(build_empty_page(), "127.0.0.1", port, None, NAMES)
    finally:
        page.close(verbose=False)


def test_without_gradio_the_error_names_the_extra(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    monkeypatch.delitem(__import__("sys").modules, "brainseg.demo.page", raising=False)
    assert demo.main([str(model_file), "--device", "cpu"]) == 2
    assert 'in the checkout, pip install -e ".[demo]"' in capsys.readouterr().err
