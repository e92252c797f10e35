"""The commands of docs/cluster.md, docs/slurm.sbatch and docs/rayjob.yaml parse and are valid."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.scripts.scripts import cli

from brainseg.config import Experiment
from study.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NODES = Path(__file__).parents[1] / "nodes"
SCHEMA = yaml.safe_load((Path(__file__).parents[1] / "rayjob.schema.yaml").read_text())
RAYJOB = (DOCS / "rayjob.yaml").read_text(encoding="utf-8")
SBATCH = (DOCS / "slurm.sbatch").read_text(encoding="utf-8")


def _blocks() -> list[str]:
    return re.findall(
        r"^```\n(.*?)^```", (DOCS / "cluster.md").read_text(), re.DOTALL | re.MULTILINE
    )


def _unknown_flags(text: str) -> list[str]:
    """Return the flags in a text that `ray` or `study.run` does not have."""
    unknown = []
    for call in re.findall(
        r"\bray ((?:[a-z][a-z-]* )+)((?:[^\n|&;]*?))(?= -- |[\n&|;\"]|$)", text
    ):
        command: click.Command = cli
        for word in call[0].split():
            if isinstance(command, click.Group):
                command = command.commands[word]
        known = {flag for option in command.params for flag in option.opts}
        unknown += [flag for flag in re.findall(r"(?<!\S)--[a-z-]+", call[1]) if flag not in known]
    study = {flag for action in build_parser()._actions for flag in action.option_strings}
    for call in re.findall(r"python -m study\.run ([^\n\"]*)", text):
        unknown += [flag for flag in re.findall(r"(?<!\S)--[a-z-]+", call) if flag not in study]
    return unknown


def test_every_command_of_the_page_parses_and_has_the_flags_it_uses() -> None:
    blocks = _blocks()
    assert len(blocks) >= 6
    for block in blocks:
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, check=False)
        assert not done.returncode and not done.stderr, block
        assert _unknown_flags(block) == []


@pytest.mark.parametrize(
    "wrong",
    ["ray up cluster.yaml --dry-run", "ray job logs --tail first", "python -m study.run --gpu 1"],
)
def test_a_flag_that_does_not_exist_would_be_found(wrong: str) -> None:
    assert len(_unknown_flags(wrong)) == 1


def _problems(text: str) -> list[str]:
    document = yaml.safe_load(text)
    errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(document)
    return [error.message for error in errors] or _pod_problems(document["spec"]["rayClusterSpec"])


def _pod_problems(cluster: dict[str, Any]) -> list[str]:
    problems = []
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is None or cluster["rayVersion"] != pinned[1]:
        problems.append("another Ray than in constraints.txt")
    if cluster.get("authOptions") != {"mode": "token"}:
        problems.append("no token")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    if groups[0]["rayStartParams"].get("num-cpus") != "0":
        problems.append("the head takes trials")
    for group in groups:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        if mounted != {volume["name"] for volume in pod["volumes"]}:
            problems.append("volumes and mounts differ")
    return problems


def test_the_job_for_kubernetes_is_valid_for_its_operator() -> None:
    assert _problems(RAYJOB) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("backoffLimit: 3", "backofLimit: 3"),
        ("activeDeadlineSeconds: 172800", "activeDeadlineSeconds: two days"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ('num-cpus: "0"', 'num-cpus: "2"'),
        ("memory: 14Gi", "memory: 14GiB"),
        ("mode: token", "mode: tokens"),
        ("mode: token", "mode: disabled"),
        ("serviceType: ClusterIP", "serviceType: Open"),
        ('rayVersion: "2.60.0"', 'rayVersion: "2.59.0"'),
        ("groupName: gpu", "name: gpu"),
        ("- {name: cache, mountPath: /cache}", "- {name: cash, mountPath: /cache}"),
        ("image: FILL-IN/brainseg:0.1.0", "imagee: FILL-IN/brainseg:0.1.0"),
    ],
)
def test_a_job_that_its_operator_would_refuse_is_found(right: str, wrong: str) -> None:
    assert right in RAYJOB
    assert _problems(RAYJOB.replace(right, wrong))


def test_the_job_for_slurm_parses_and_knows_its_flags() -> None:
    done = subprocess.run(["bash", "-n", "-c", SBATCH], capture_output=True, check=False)
    assert not done.returncode and not done.stderr
    joined = SBATCH.replace("\\\n", " ")
    assert " ".join(shlex.split(joined, comments=True)).count("ray symmetric-run") == 1
    assert _unknown_flags(re.sub(r"^#.*", "", joined, flags=re.MULTILINE)) == []


def _can_have_nodes() -> bool:
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "ip", "link"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not _can_have_nodes(), reason="needs root, unshare and ip: nodes in namespaces"
)
def test_slurms_job_trains_a_study_over_two_nodes(
    phantom_root: Path, tiny: Experiment, tmp_path: Path
) -> None:
    """Only srun and scontrol are stand-ins: two addresses, Ray's symmetric run, a real study."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, module in (("python", ""), ("ray", "-m ray.scripts.scripts")):
        (binaries / name).write_text(f'#!/bin/bash\nexec {sys.executable} {module} "$@"\n')
        (binaries / name).chmod(0o755)
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    space = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    job = [*space, str(NODES / "two_nodes"), "bash", str(DOCS / "slurm.sbatch"), "--grid", "lite"]
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--data", str(phantom_root)]
    done = subprocess.run(
        [*job, *flags, "--storage", str(tmp_path / "results")],
        env={
            **{key: value for key, value in os.environ.items() if key[:9] != "RAY_AUTH_"},
            "HOME": str(tmp_path),
            "PATH": f"{binaries}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 at once, more as nodes join, each with 1 CPU" in done.stdout
    with (tmp_path / "results/lite-synthetic/trials.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "finished"]
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o077 == 0
