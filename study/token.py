"""Whether a cluster lets us in: Ray's token, held up before Ray itself tries for 20 seconds."""

from __future__ import annotations

import os

import grpc
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    get_authentication_mode,
)

from brainseg.errors import StudyError

_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what a driver asks a head node first
_SECONDS = 5.0


def require_token(address: str) -> None:
    """Make sure that the cluster lets this process in.

    Args:
        address: HOST:PORT of the head node, where something answers. Of `auto` only that a token
            is there can be told.

    Raises:
        StudyError: If the cluster asks for a token, and there is none or another one.
    """
    if get_authentication_mode() == AuthenticationMode.TOKEN:
        if path := _unreadable_path():
            raise StudyError(f"RAY_AUTH_TOKEN_PATH is {path}, which is no file with a token in it")
        loader = AuthenticationTokenLoader.instance()
        if not loader.has_token(ignore_auth_mode=True):
            raise StudyError(
                f"RAY_AUTH_MODE is token, but {_source()} holds none: put the cluster's there, "
                "which is in ~/.ray/auth_token on its head node"
            )
        if address != "auto" and _is_refused(address, loader.get_token_for_http_header()):
            raise StudyError(
                f"the cluster at {address} does not accept the token in {_source()}: put "
                "that of its head node there, which is in ~/.ray/auth_token"
            )
    elif address != "auto" and _is_refused(address, {}):
        raise StudyError(
            f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token, with the token "
            f"of its head node in {_source()}"
        )


def _is_refused(address: str, headers: dict[str, str]) -> bool:
    """Return whether the head node says that the token is what is wrong, nothing else."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CALL)(b"", timeout=_SECONDS, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def _source() -> str:
    """Return where Ray takes its token from."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return "$RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")


def _unreadable_path() -> str | None:
    """Return the path that Ray would end the whole process for."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN" in os.environ:
        return None
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path that may be anything
            return None if file.read().strip() else path
    except OSError:
        return path
