"""The models at hand on a page of this machine: `python -m brainseg.demo [MODEL|STUDY]`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from brainseg.cli import FINISHED, build_parser, run_command
from brainseg.data.slice_store import open_default
from brainseg.demo.catalog import describe_source, find_models, write_patient, write_samples
from brainseg.demo.handlers import Desk
from brainseg.errors import ConfigError
from brainseg.model.device import Compute
from brainseg.storage.urls import to_location

PASSWORD = "BRAINSEG_DEMO_PASSWORD"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _serve(args))


def check_host(host: str, password: str | None) -> None:
    """Refuse to show the page to other machines without a password.

    Raises:
        ConfigError: If that is asked for.
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
        "brainseg.demo", "Try the models of a study on a page of this machine.", _EPILOG
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="MODEL|STUDY",
        help="a model file or a study's folder (default: the newest study in results)",
    )
    parser.add_argument(
        "--data",
        type=to_location,
        metavar="DIR",
        help="take the example slices from this dataset (default: $BRAINSEG_DATA, else "
        "./data/kaggle_3m, else generated phantoms)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDR",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="to listen on (default: 7860 or the next one that is free)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or the like (default: a GPU where there is one)",
    )
    return parser


def _serve(args: argparse.Namespace) -> int:
    password = os.environ.get(PASSWORD) or None
    check_host(args.host, password)
    compute = Compute(args.device)
    compute.torch_device()
    models = find_models(args.source)
    with tempfile.TemporaryDirectory(prefix="brainseg-demo-") as folder:
        # Uploads; examples lie apart from them, since uploads are removed while the page runs.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        try:
            from brainseg.demo import page as webpage
        except ImportError as error:
            raise ConfigError(
                f'the page needs Gradio ({error}): pip install "brainseg[demo]"'
            ) from error
        if models:
            data, place = open_default(args.data), Path(folder) / "examples"
            samples = write_samples(data, models[0].header, place)
            patient = write_patient(data, models[0].header, place / "patient")
            about = describe_source(data, models[0].header)
            examples = webpage.Examples(about, samples, patient)
            page = webpage.build_page(Desk(models, compute), examples)
        else:
            page = webpage.build_empty_page()
        address = webpage.launch(page, args.host, args.port, password)
        names = ", ".join(model.name for model in models) or "no model yet: the page says how"
        print(f"{address} shows {names}; Ctrl-C ends it", flush=True)
        _wait()
        page.close(verbose=False)
    return FINISHED


def _wait() -> None:
    """Until Ctrl-C or SIGTERM, after which uploads are removed."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


_EPILOG = f"""\
examples:
  python -m brainseg.demo                          the best model of the newest study
  python -m brainseg.demo results/baseline --data data/kaggle_3m
  python -m brainseg.demo model.safetensors --port 8000

The page is for this machine alone. For other machines set {PASSWORD}, then give
--host 0.0.0.0; the user's name is brainseg. It needs pip install "brainseg[demo]".

exit codes:
  0  ended by Ctrl-C      1  a known error, in a line      2  usage
"""

if __name__ == "__main__":
    sys.exit(main())
