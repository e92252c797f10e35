"""URLs: malformed ones are told in a sentence; what is secret in one is never shown nor kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_cases import Answer, Case

from brainseg.cli import KNOWN_ERROR, USAGE, clean
from brainseg.errors import ConfigError
from brainseg.storage.remote import RemoteFolder
from brainseg.storage.urls import redact
from study.spec.request import load_base
from study.spec.study_spec import StudySpec
from study.storage.study_folder import write_study

SECRET = "hunter2"
KEYS = (
    *("session_token", "sas_token", "access_token", "secret", "sig", "key", "password", "token"),
    *("access_key", "secret_key", "X-Amz-Signature", "X-Amz-Credential", "AWSAccessKeyId"),
    *("account_key", "client_secret", "Authorization", "kerb_ticket", "code", "session%5Ftoken"),
)
SECRETS = (
    f"s3://AKIA:{SECRET}@bucket/x",
    f"s3://AKIA:{SECRET}/with/slashes@bucket/x",
    f"s3://AKIA:with/slashes/{SECRET}@bucket/x",
    f"s3://AKIA:a?{SECRET}@bucket/x",
    f"s3://AKIA:a#{SECRET}@bucket/x",
    f"s3://AKIA:a@{SECRET}@bucket/x",
    f"s3://{SECRET}@bucket/x",
    f"s3://:{SECRET}@bucket/x",
    f"s3://[AKIA:{SECRET}@bucket/x",
    f"s3://AKIA:{SECRET}@[bucket/x",
    f"s3://AKIA:{SECRET}@",
    f"S3://AKIA:{SECRET}@bucket/x",
    f"gs://user:{SECRET}@bucket/x",
    f"gs://{SECRET}@bucket/x",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/x",
    f"hdfs://user:{SECRET}@host/x",
    f"http://user:{SECRET}@host/x",
    f"://AKIA:{SECRET}@bucket",
    f"a.b+c://AKIA:{SECRET}@bucket",
    f"s3://bucket/x?{SECRET}",
    f"s3://bucket/x?={SECRET}",
    f"s3://bucket/x?region=eu-west-1%26token={SECRET}",
    f"s3://bucket/x#access_token={SECRET}",
    f"s3://bucket/x?region=eu#{SECRET}",
    f"s3://bucket/x?region=eu?{SECRET}",
    *(f"s3://bucket/x?{key}={SECRET}" for key in KEYS),
    *(f"https://host/x?region=eu&{key}={SECRET}" for key in KEYS),
    *(f"gs://bucket/x?region=eu;{key}={SECRET}" for key in KEYS[:4]),
)
MALFORMED = {
    "an open bracket": "s3://[x",
    "no bucket": "s3://",
    "no bucket, but a path": "s3:///x",
    "a store's port": "s3://b/x?endpoint_override=host:99999&scheme=http",
    "a store's port in letters": "s3://b/x?endpoint_override=host:http",
    "a store's bracket": "s3://b/x?endpoint_override=[x",
    "a store's scheme": "s3://b/x?scheme=ftp&region=eu",
    "an unknown scheme": "nosuch://x",
    "a web page": "https://host/x",
    "capitals": "S3://bucket/x",
    "no scheme": "://bucket/x",
    "a path upwards": "s3://bucket/../x",
    "a path that is upwards": "s3://bucket/..",
    "a port of the host": "gs://bucket:99999/x",
    "a control character": "s3://bucket/\x1b[2Jx",
    "a line break": "s3://buck\net/x",
    "an unknown key": "s3://bucket/x?regoin=eu",
    "a key of another store": "s3://bucket/x?project_id=1",
    "a file of a host": "file://host/x",
    "nothing": "file://",
}
COMMANDS = {
    "fetch": ["study.fetch", "URL", "out"],
    "compare": ["study.compare", "URL", "nowhere"],
    "storage": ["study.run", "--grid", "lite", "--storage", "URL", "--report-only"],
    "data": ["study.run", "--grid", "lite", "--plan", "--data", "URL"],
    "explore": ["brainseg.explore.__main__", "--data", "URL"],
}

FLAGS = {"fetch": "argument URL", "compare": "argument A", "explore": "--data"}
"""A command -> what it calls its URL, where that is not its own name."""


@pytest.mark.parametrize("url", SECRETS)
def test_no_secret_of_a_url_is_shown(url: str) -> None:
    for text in (url, f"cannot open {url}: it is gone", f"['--data', '{url}']", f'"{url}"'):
        assert SECRET not in redact(text)
        assert SECRET not in clean(text)
    with pytest.raises(ConfigError) as caught:
        RemoteFolder(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/some/path@2/x",
        "s3://bucket/x?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http",
        "gs://anonymous@bucket/x?scheme=http&endpoint_override=127.0.0.1:9",
        "abfs://container@account.dfs.core.windows.net/x",
        "hdfs://host:8020/x?replication=2",
        "file:///data/kaggle_3m",
        "phantom://",
        "no URL: mail@example.org, a:b@c, 10:30 // and so on?",
    ],
)
def test_what_is_no_secret_stays(url: str) -> None:
    assert redact(url) == url
    assert redact(f"cannot open {url}, sorry") == f"cannot open {url}, sorry"


def _cases(urls: dict[str, str]) -> Iterator[Case]:
    for command, argv in COMMANDS.items():
        for name, url in urls.items():
            typed = [url if part == "URL" else part for part in argv]
            named = FLAGS.get(command, f"--{command}")
            yield Case(f"{command}: {name}", typed, USAGE, [named], secrets=[SECRET])


@pytest.mark.parametrize(
    "case",
    [*_cases(MALFORMED), *_cases({url: url for url in SECRETS[::6]})],
    ids=lambda case: case.name,
)
def test_a_url_that_cannot_be_used_is_a_sentence(case: Case, answer: Answer) -> None:
    answer(case)


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999", "http", "", "7860.0", "²", "1e3"])
def test_a_port_that_is_none_is_a_sentence(port: str, answer: Answer) -> None:
    argv = ["brainseg.demo.__main__", f"--port={port}"]
    case = Case(port, argv, USAGE, ["--port", "is not a whole number from 1 to 65535"], seconds=2)
    answer(case)


def test_a_study_keeps_no_secret_and_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    code, split = home / "mine.py", home / "split.yaml"
    code.write_text("")
    split.write_text("")
    shown = {"model.architecture": "~/mine.py:build", "model.encoder_weights": "none"}
    from study.cli import parse_options
    from study.spec.request import build_spec

    arguments = ["--grid", "baseline", "--set", f"model.architecture={code}:build"]
    arguments += ["--set", "model.encoder_weights=none", "--split", str(split)]
    args = parse_options(arguments)
    monkeypatch.setattr(
        "sys.argv", ["run", *arguments, "--storage", f"s3://A:{SECRET}@b/x?sig={SECRET}"]
    )
    spec = build_spec(args, load_base(args, synthetic=True))
    (tmp_path / "study").mkdir()
    write_study(tmp_path / "study", spec, {"versions": {}})
    for name in ("study.json", "experiment.yaml"):
        text = (tmp_path / "study" / name).read_text()
        assert str(home) not in text
        assert SECRET not in text
    kept = StudySpec.model_validate_json((tmp_path / "study" / "study.json").read_text())
    assert {key: kept.experiment.value(key) for key in shown} == shown
    assert kept.experiment.data.split == "~/split.yaml"
    assert set(kept.files) == {"~/mine.py:build", "~/split.yaml"}
    again = build_spec(args, load_base(args, synthetic=True))
    assert kept.differences(again) == []
    full = json.loads(kept.model_dump_json().replace("~/", f"{home}/"))
    assert StudySpec.model_validate(full).differences(again) == [], "one of an older version"


def test_a_model_file_keeps_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path
) -> None:
    from brainseg.model.model_file import load_model, save_model

    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    weights, header = load_model(model_file)
    changes = {"preprocess.filters": [f"{tmp_path}/alice/mine.py:sharpen"]}
    own = header.model_copy(update={"experiment": header.experiment.replaced(changes)})
    save_model(tmp_path / "m.safetensors", weights, own)
    assert str(tmp_path).encode() not in (tmp_path / "m.safetensors").read_bytes()
    found = load_model(tmp_path / "m.safetensors")[1].experiment.preprocess.filters
    assert found == ("~/mine.py:sharpen",)


def test_a_home_is_replaced_where_it_is_a_path_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from brainseg.storage.files import hide_home

    monkeypatch.setenv("HOME", "/home/al")
    assert hide_home("run --data /home/al/x '/home/al' a=/home/al/y") == "run --data ~/x '~' a=~/y"
    for text in ("/home/alice/x", "/data/home/al/x", "file:///home/al.old"):
        assert hide_home(text) == text
    monkeypatch.setenv("HOME", "/")
    assert hide_home("/data/x") == "/data/x"


def test_studies_that_cannot_be_compared_are_told(
    small: Path, tmp_path: Path, answer: Answer
) -> None:
    case = Case(
        "one study twice as a URL that is not there",
        ["study.compare", str(small), f"file://{tmp_path}/absent"],
        KNOWN_ERROR,
        ["is not a study"],
    )
    answer(case)
