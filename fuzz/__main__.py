"""Fuzzes a reader: `python -m fuzz TARGET`, which needs `pip install atheris`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from brainseg.cli import FINISHED, build_parser

_TARGETS = ("images", "models", "tables", "volumes")
_READERS = ["brainseg", "PIL", "nibabel", "safetensors"]
_EXAMPLES = """\
examples:
  python -m fuzz images --seconds 180
  python -m fuzz tables --reproduce crash-0123abcd

exit codes:
  0  every answer was a result or a BrainsegError      77  another one: the file is named
  2  usage                                             70  it took too long; 71 too much memory
"""


def main() -> int:
    """Run the command line and return its exit code, unless libFuzzer ends the process."""
    args = _parser().parse_args()
    if args.reproduce:
        from fuzz.targets import check

        check(args.target, args.reproduce.read_bytes())
        return FINISHED
    import atheris

    with atheris.instrument_imports(include=_READERS):
        from fuzz.targets import CORPUS, check

    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as folder:
        found = shutil.copytree(CORPUS / args.target, Path(folder) / "found")
        options = {
            "max_total_time": args.seconds,
            "timeout": args.input_seconds,
            "rss_limit_mb": args.memory,
            "max_len": args.max_bytes,
        }
        flags = [f"-{name}={value}" for name, value in options.items()]
        atheris.Setup(
            [sys.argv[0], *flags, "-print_final_stats=1", str(found)],
            lambda content: check(args.target, content),
        )
        atheris.Fuzz()
    return FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "fuzz", "Hand damaged files to a reader; stop at a wrong answer.", _EXAMPLES
    )
    parser.add_argument("target", choices=_TARGETS, help="which reader")
    parser.add_argument("--seconds", type=int, default=180, help="in all (default: 180)")
    parser.add_argument("--input-seconds", type=int, default=10, help="for one file (default: 10)")
    parser.add_argument(
        "--memory", type=int, default=3000, metavar="MB", help="of the process (default: 3000)"
    )
    parser.add_argument("--max-bytes", type=int, default=8192, help="of a file (default: 8192)")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="hand over this file only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
