"""Download a study from its URL: `python -m study.fetch s3://BUCKET/STUDIES/NAME DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brainseg.cli import FINISHED, build_parser, result_folder, run_command, say, store_url
from brainseg.errors import ConfigError, StudyError
from brainseg.storage.files import retry_storage, write_text
from brainseg.storage.remote import RemoteFolder, local_files, pull
from study.storage.sync import is_report_file

_STOPPED = "stopped; the same command fetches the rest"
_MARKER = ".fetched-from"
_EXAMPLES = """\
Downloads the report, its figures, the tables, the exported models and the live curves, without
checkpoints and without the models of single trials.

examples:
  python -m study.fetch s3://BUCKET/studies/lite results/lite
      then open results/lite/report.html, or tensorboard --logdir results/lite
  python -m study.fetch s3://BUCKET/studies/lite results/lite
      again, while the study runs: only what has changed
  python -m study.fetch "s3://BUCKET/lite?endpoint_override=HOST:9000&scheme=http" results/lite
      from a store that is not Amazon's

Credentials are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws, and with
this machine's role.

exit codes:
  0  everything is here
  1  the URL holds no study, the store does not answer, or the disk refuses
  2  usage: a flag or the URL is wrong, or DIR is there and holds something else
  130  stopped by Ctrl-C or SIGTERM; the same command continues
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _fetch(_parser().parse_args(argv)), stopped=_STOPPED)


def _parser() -> argparse.ArgumentParser:
    parser = build_parser("study.fetch", "Download a study from its URL.", _EXAMPLES)
    parser.add_argument(
        "url", type=store_url, metavar="URL", help="URL of the study, which ends in its name"
    )
    parser.add_argument(
        "folder",
        type=result_folder,
        metavar="DIR",
        help="folder to write, created if it does not exist",
    )
    return parser


def _fetch(args: argparse.Namespace) -> int:
    url, folder = args.url, args.folder
    _check_folder(url, folder)
    remote = RemoteFolder(url)
    remote.require()
    if remote.entry("study.json") is None:
        raise StudyError(f"{url} holds no study.json, so it is not a study: correct the URL")
    folder.mkdir(parents=True, exist_ok=True)
    fetched = {name for name in remote.list() if is_report_file(name)}
    marker = _read_marker(folder)
    # The marker once held the URL alone; the folder was the copy then.
    fetched |= set(local_files(folder) if len(marker) == 1 else marker[1:])
    write_text(folder / _MARKER, "\n".join([url, *sorted(fetched)]) + "\n")
    before = _times(folder)
    # If a running study changes a file between listing and download, both are repeated.
    retry_storage(
        lambda: pull(
            remote, folder, is_report_file, fetched.__contains__, what="fetching the study"
        ),
        f"the copy of {url}",
    )
    after = _times(folder)
    changed = sum(before.get(path) != time for path, time in after.items())
    say(f"{changed} of {len(after)} files were new; report: {folder / 'report.html'}")
    if not (folder / "report.html").exists():
        say("there is no report yet: the study is still running, or was interrupted")
    return FINISHED


def _check_folder(url: str, folder: Path) -> None:
    """Refuse a folder that was not made by this command for the same study."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = next(iter(_read_marker(folder)), "")
    if found.partition("?")[0] != url.partition("?")[0]:
        what = f"was fetched from {found}" if found else "was not made by this command"
        raise ConfigError(f"DIR: {folder} is there already and {what}: name another folder")


def _read_marker(folder: Path) -> list[str]:
    """Return the URL from which a folder was fetched, then the names of the files that were."""
    marker = folder / _MARKER
    return marker.read_text(encoding="utf-8").strip().split("\n") if marker.is_file() else []


def _times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _MARKER)
    return {path: path.stat().st_mtime_ns for path in files}


if __name__ == "__main__":
    sys.exit(main())
