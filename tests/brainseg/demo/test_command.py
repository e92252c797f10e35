from __future__ import annotations

from pathlib import Path

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


def test_without_gradio_the_error_names_the_extra(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    monkeypatch.delitem(__import__("sys").modules, "brainseg.demo.page", raising=False)
    assert demo.main([str(model_file), "--device", "cpu"]) == 2
    assert 'pip install "brainseg[demo]"' in capsys.readouterr().err
