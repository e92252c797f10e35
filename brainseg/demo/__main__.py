"""The demo command: serves a page on which users try trained models."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from brainseg.cli import (
    FINISHED,
    add_allow_code,
    build_parser,
    local_path,
    location,
    run_command,
    say,
    whole_number,
)
from brainseg.errors import ConfigError

PASSWORD = "BRAINSEG_DEMO_PASSWORD"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _serve(_parser().parse_args(argv)))


def check_host(host: str, password: str | None) -> None:
    """Check that the page is shown to other machines only with a password.

    Args:
        host: The address to listen on.
        password: The password, or None.

    Raises:
        ConfigError: If another machine could see the page without a password.
    """
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not password:
        raise ConfigError(
            f"--host {host} shows the page to other machines: set {PASSWORD} to a password first"
        )


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.demo", "Try trained models on a page of this machine.", _EPILOG
    )
    parser.add_argument(
        "source",
        type=local_path,
        nargs="?",
        metavar="MODEL|STUDY",
        help="a model file or a study's folder (default: the newest study in results)",
    )
    parser.add_argument(
        "--data",
        type=location,
        metavar="DIR",
        help="take the example slices from this dataset (default: $BRAINSEG_DATA, else "
        "./data/kaggle_3m, else generated phantoms)",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--host",
        type=_host,
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=whole_number(1, 65_535),
        metavar="N",
        help="port to listen on (default: 7860 or the next free one)",
    )
    parser.add_argument(
        "--public-host",
        type=_host,
        action="append",
        default=[],
        metavar="HOST",
        help="a name under which a proxy shows the page; may be given again",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="such as cpu or cuda (default: a GPU if there is one)",
    )
    return parser


def _host(text: str) -> str:
    """Return a name or an address of a machine, without a port."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]{2,45}", text):
        raise argparse.ArgumentTypeError(
            f"{text:.40} is not a name or address of a machine: give it without a port or "
            "brackets, such as localhost or 10.0.0.5"
        )
    return text


def _serve(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help does not need it.
    from brainseg.data.slice_store import open_default
    from brainseg.demo.catalog import find_models, write_examples
    from brainseg.demo.handlers import Handlers
    from brainseg.model.device import Compute

    password = os.environ.get(PASSWORD) or None
    check_host(args.host, password)
    compute = Compute(args.device)
    compute.torch_device()
    models = find_models(args.source)
    with tempfile.TemporaryDirectory(prefix="brainseg-demo-") as folder:
        # Uploads are removed while the page runs; the examples are in a folder of their own.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        try:
            from brainseg.demo.page import build_empty_page, build_page, launch
        except ImportError as error:
            raise ConfigError(
                f'the page needs Gradio ({error}): in the checkout, pip install -e ".[demo]"'
            ) from error
        if models:
            data = open_default(args.data)
            examples = write_examples(data, models[0].header, Path(folder) / "examples")
            page = build_page(Handlers(models, compute, allow_code=args.allow_code), examples)
        else:
            page = build_empty_page()
        names = {"localhost", "127.0.0.1", "::1", args.host, *args.public_host}
        address = launch(page, args.host, args.port, password, names)
        shown = ", ".join(model.name for model in models) or "how to train a model"
        say(f"{address} shows {shown}; Ctrl-C ends it")
        _wait()
        page.close(verbose=False)
    return FINISHED


def _wait() -> None:
    """Wait for Ctrl-C or SIGTERM; then uploads are removed."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


_EPILOG = f"""\
examples:
  python -m brainseg.demo                          the models of the newest study
  python -m brainseg.demo results/baseline --data data/kaggle_3m
  python -m brainseg.demo model.safetensors --port 8000

The page is shown on this machine only. To show it to other machines, set the environment variable
{PASSWORD} and give --host 0.0.0.0; the user name is brainseg. Requests that name
another host are refused, so that no other page in a browser can read this one. Behind a proxy,
give the name in the address bar as --public-host. The command needs, in the checkout,
  pip install -e ".[demo]"

exit codes:
  0  ended by Ctrl-C or SIGTERM
  1  a model file or dataset is missing or cannot be used
  2  a flag or value is wrong, or a package is missing
"""

if __name__ == "__main__":
    sys.exit(main())
