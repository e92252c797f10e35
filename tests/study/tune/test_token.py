"""A stand-in for a head node that asks for a token; clients in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

TOKEN = "0123456789abcdef" * 4
CODE = """
import sys
from brainseg.errors import StudyError
from study.tune.cluster import require_token
try:
    require_token(sys.argv[1])
except StudyError as error:
    sys.exit(str(error))
"""


class _Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    def intercept_service(self, continuation: Any, call: Any) -> Any:
        if dict(call.invocation_metadata).get("authorization") == f"Bearer {TOKEN}":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "token")
        )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[_Guard()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, ""),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
            "does not accept the token in $RAY",
        ),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "nowhere"},
            "no file with a token in it",
        ),
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE is token, but ~/.ray/auth_token holds none"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token: set RAY_AUTH_MODE=token"),
        ({}, "asks for a token: set RAY_AUTH_MODE=token"),
    ],
    ids=["right", "wrong", "no file", "none", "off", "unset"],
)
def test_a_client_is_let_in_or_told_what_it_lacks(
    settings: dict[str, str], told: str, address: str, tmp_path: Path
) -> None:
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, address],
        env={**quiet, "HOME": str(tmp_path), **settings},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(told), done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == bool(told)
