"""cluster.yaml and its variants pass Ray's checks, EC2's service model, bash and our own rules."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
TOKEN = "~/.ray/auth_token"


def _variant(name: str) -> str:
    """Make a variant with the command that the file names for it."""
    command = re.search(rf"^# +(sed .*) > {name}\.yaml$", AWS, re.MULTILINE)
    assert command, f"cluster.yaml does not say how {name}.yaml is made"
    made = subprocess.run(
        ["bash", "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return made.stdout


def _problems(text: str) -> list[str]:
    """Return what is wrong with a cluster's file, in sentences."""
    try:
        validate_config(prepare_config(yaml.safe_load(text)))
    except Exception as error:  # Ray raises all kinds, click's among them
        return [f"Ray refuses it: {error or type(error).__name__}"]
    config = prepare_config(yaml.safe_load(text))
    rules = (_commands, _versions, _mounts, _ports, _head, _token, _cost, _ec2)
    return [problem for rule in rules for problem in rule(config)]


def _command_lists(config: dict[str, Any]) -> dict[str, list[str]]:
    return {key: value for key, value in config.items() if key.endswith("_commands")}


def _node_configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node["node_config"] for name, node in config["available_node_types"].items()}


def _commands(config: dict[str, Any]) -> Iterator[str]:
    commands = [command for group in _command_lists(config).values() for command in group]
    scripts = [node.get("UserData", "") for node in _node_configs(config).values()]
    for command in [*commands, *scripts]:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
        if done.returncode or done.stderr:
            yield f"no shell understands {command}"


def _versions(config: dict[str, Any]) -> Iterator[str]:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    for key in ("head_image", "worker_image"):
        image = re.fullmatch(
            r"rayproject/ray:([\d.]+)-py3(\d+)(-gpu)?", config["docker"].get(key, "")
        )
        if image is None:
            yield f"{key} is pinned to no version"
        elif image[1] != pinned["ray"]:
            yield f"{key} has Ray {image[1]}, constraints.txt {pinned['ray']}"
        elif not SpecifierSet(ours["requires-python"]).contains(f"3.{image[2]}"):
            yield f"{key} has a Python that the project does not support"
    if not any("--constraint constraints.txt" in line for line in config["setup_commands"]):
        yield "nodes do not install the versions of constraints.txt"


def _mounts(config: dict[str, Any]) -> Iterator[str]:
    sources = [source for source in config["file_mounts"].values() if source != TOKEN]
    for source in sources:
        if not (ROOT / source).exists():
            yield f"{source} is sent to nodes, but does not exist"
        elif (ROOT / source).resolve() in (ROOT, *ROOT.parents):
            yield f"data, results and secrets are sent to nodes: all of {source}"
    missing = {"brainseg", "study", "pyproject.toml", "constraints.txt", "README.md"} - {*sources}
    if missing:
        yield f"not sent to nodes: {', '.join(sorted(missing))}"
    if any("pem" in pattern for pattern in config["rsync_exclude"]):
        yield "Ray's own key would not reach the head"


def _ports(config: dict[str, Any]) -> Iterator[str]:
    whole = yaml.safe_dump(config)
    if re.search(r"0\.0\.0\.0|::/0|dashboard-host=(?!127\.0\.0\.1\b)", whole):
        yield "a port is open to the world"
    if "--dashboard-host=127.0.0.1" not in " ".join(config["head_start_ray_commands"]):
        yield "the dashboard's address is left to Ray"
    if re.search(r"(^|\s)(-p|--publish)\b", " ".join(config["docker"]["run_options"])):
        yield "the container publishes a port"
    if config["provider"]["type"] == "aws":
        for name, node in _node_configs(config).items():
            if not node.get("SecurityGroupIds"):
                yield f"{name}: Ray would make a group whose port 22 is open to the world"


def _head(config: dict[str, Any]) -> Iterator[str]:
    start = " ".join(config["head_start_ray_commands"])
    if "--num-cpus=0" not in start or "--num-gpus=0" not in start:
        yield "the head takes trials"
    if config["provider"]["type"] == "local":
        return
    head = config["available_node_types"][config["head_node_type"]]
    if head["resources"] != {"CPU": 0, "GPU": 0} or head["max_workers"] != 0:
        yield "the head's type takes trials"
    if "spot" in yaml.safe_dump(head).lower():
        yield "the head may be lost to the spot market"


def _token(config: dict[str, Any]) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = " ".join(config[key])
        if "export RAY_AUTH_MODE=token" not in start:
            yield f"{key}: no token is asked for"
        if f"chmod 600 {TOKEN}" not in start:
            yield f"{key}: others may read the token"
        if "--disable-usage-stats" not in start:
            yield f"{key}: usage is reported"
    options = config["docker"]["run_options"]
    if not {"-e RAY_AUTH_MODE=token", "-e RAY_USAGE_STATS_ENABLED=0"} <= set(options):
        yield "the container's programs do not know about the token or the reports"
    if config["file_mounts"].get(TOKEN) != TOKEN:
        yield "nodes get no token"
    if re.search(r"AKIA[0-9A-Z]{16}|aws_secret|AWS_SECRET", yaml.safe_dump(config)):
        yield "a key is in the file"


def _cost(config: dict[str, Any]) -> Iterator[str]:
    if not 0 < config["idle_timeout_minutes"] <= 10:
        yield "idle workers stay"
    if config["provider"]["type"] == "local":
        return
    if config["max_workers"] > 16:
        yield "more than 16 workers unasked"
    for name, node in config["available_node_types"].items():
        text = yaml.safe_dump(node["node_config"])
        if node["min_workers"] or node["max_workers"] > config["max_workers"]:
            yield f"{name}: machines without work"
        if not re.search(r"shutdown -P \+\d+|maxRunDuration", text):
            yield f"{name}: never ends by itself"
        if name != config["head_node_type"] and "spot" not in text.lower():
            yield f"{name}: at the full price"
    if config["provider"]["type"] == "aws" and config["provider"].get("cache_stopped_nodes", True):
        yield "stopped machines keep their disks"


def _ec2(config: dict[str, Any]) -> Iterator[str]:
    """Check what Ray sends to EC2 against EC2's own description of it."""
    if config["provider"]["type"] != "aws":
        return
    operation = Session().get_service_model("ec2").operation_model("RunInstances")
    shape = operation.input_shape
    for name, node in _node_configs(config).items():
        asked = {**node, "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, shape)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
            continue
        for path, value in _unknown_values(asked, shape, name):
            yield f"{path}: EC2 knows no {value}"
        if node.get("InstanceInitiatedShutdownBehavior") != "terminate":
            yield f"{name}: never ends by itself, it only stops"


def _unknown_values(value: Any, shape: Any, path: str) -> Iterator[tuple[str, Any]]:
    if shape.type_name == "structure":
        for key, inner in value.items():
            yield from _unknown_values(inner, shape.members[key], f"{path}.{key}")
    elif shape.type_name == "list":
        for inner in value:
            yield from _unknown_values(inner, shape.member, path)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield path, value


@pytest.mark.parametrize("variant", ["aws", "gcp", "own"])
def test_the_file_and_its_variants_pass_ray_and_every_rule(variant: str) -> None:
    assert _problems(AWS if variant == "aws" else _variant(variant)) == []


WRONG = {
    "a name that Ray does not know": ("idle_timeout_minutes", "idle_minutes", "Ray refuses"),
    "a head of no type": ("head_node_type: head\n", "head_node_type: boss\n", "Ray refuses"),
    "a field that EC2 does not know": ("InstanceType: m5", "InstanceTyp: m5", "Unknown parameter"),
    "a value of the wrong type": ("VolumeSize: 160", "VolumeSize: big", "Invalid type"),
    "a machine that EC2 does not know": ("m5.large", "m5.lage", "EC2 knows no m5.lage"),
    "a market that EC2 does not know": ("MarketType: spot", "MarketType: spto", "knows no spto"),
    "another Ray": ("ray:2.60.0-py311-gpu", "ray:2.59.0-py311-gpu", "has Ray 2.59.0"),
    "the latest Ray": ("ray:2.60.0-py311\n", "ray:latest\n", "pinned to no version"),
    "another Python": ("2.60.0-py311\n", "2.60.0-py310\n", "does not support"),
    "other versions": ("--constraint constraints.txt ", "", "do not install the versions"),
    "a folder that is not there": ("configs: configs\n", "configs: nowhere\n", "does not exist"),
    "the whole checkout": ("configs: configs\n", "configs: .\n", "all of ."),
    "half of the code": ("    ~/brainseg/study: study\n", "", "not sent to nodes: study"),
    "keys kept from the head": ("[__pycache__]", '[__pycache__, "*.pem"]', "Ray's own key"),
    "a quote never closed": ("chmod 700 ~/.ray", "chmod 700 '~/.ray", "no shell understands"),
    "a dashboard for all": ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "open to"),
    "a dashboard by name": ("--dashboard-host=127.0.0.1", "--dashboard-host=::", "open to the"),
    "a dashboard left to Ray": (" --dashboard-host=127.0.0.1", "", "left to Ray"),
    "ports of the container": ("- -e BRAIN", "- -p 8265:8265\n        - -e BRAIN", "publishes"),
    "Ray's own group": ("SecurityGroupIds: [sg-FILL-IN]", "EbsOptimized: false", "port 22"),
    "trials on the head": ("--num-cpus=0 ", "", "the head takes trials"),
    "trials on the head's type": ('{"CPU": 0, "GPU": 0}', "{}", "type takes trials"),
    "a head that may be lost": ("m5.large", "m5.large\n" + " " * 12 + "KeyName: spot", "lost to"),
    "no token asked for": ("export RAY_AUTH_MODE=token", "true", "no token is asked for"),
    "no token inside": ("- -e RAY_AUTH_MODE=token", "- -e A=b", "do not know about the token"),
    "no token sent": (f"{TOKEN}: {TOKEN}\n", "~/empty: configs\n", "nodes get no token"),
    "a token for all to read": (f"chmod 600 {TOKEN}; ", "", "others may read the token"),
    "usage reported": (" --disable-usage-stats", "", "usage is reported"),
    "a key in the file": ("- -e BRAINSEG", "- -e AWS_SECRET_ACCESS_KEY=x -e BRAINSEG", "a key is"),
    "idle for an hour": ("idle_timeout_minutes: 5", "idle_timeout_minutes: 60", "idle workers"),
    "a hundred workers": ("max_workers: 8 ", "max_workers: 100 ", "more than 16 workers"),
    "workers without work": ("min_workers: 0", "min_workers: 1", "machines without work"),
    "machines for ever": ("shutdown -P +1440", "true", "gpu-small: never ends by itself"),
    "machines that only stop": ("Behavior: terminate\n", "Behavior: stop\n", "it only stops"),
    "workers at the full price": ("InstanceMarketOptions:", "X:", "gpu-small"),
    "stopped machines kept": ("    cache_stopped_nodes: false", "#", "stopped machines keep"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_every_mistake_in_the_file_is_found(wrong: str) -> None:
    right, instead, found = WRONG[wrong]
    assert right in AWS
    problems = _problems(AWS.replace(right, instead))
    assert any(found in problem for problem in problems), problems


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A simulated EC2; Ray keeps its ssh key below a home of its own."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.resource("ec2", region_name="us-west-2")


def _bootstrap(text: str) -> dict[str, Any]:
    """Let Ray prepare its launch: keys, subnets, groups, images."""
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.utils import resource_cache

    for cached in (resource_cache, aws._get_subnets_or_die):
        cached.cache_clear()
    bootstrapped: dict[str, Any] = aws.bootstrap_aws(prepare_config(yaml.safe_load(text)))
    return bootstrapped


@pytest.mark.slow
def _open_to_the_world(ec2: Any) -> list[str]:
    return [
        f"{group.group_name}: {rule['FromPort']}"
        for group in ec2.security_groups.all()
        for rule in group.ip_permissions
        if {"0.0.0.0/0"} & {allowed["CidrIp"] for allowed in rule["IpRanges"]}
    ]


def test_what_ray_launches_from_it_is_spot_and_opens_no_port(ec2: Any) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    vpc = next(iter(ec2.vpcs.all()))
    group = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc.id)
    config = _bootstrap(AWS.replace("sg-FILL-IN", group.id))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        node["node_config"].pop("IamInstanceProfile")  # moto has none of these names
        provider.create_node(node["node_config"], {"ray-user-node-type": name}, 1)
    machines = {
        next(tag["Value"] for tag in one.tags if tag["Key"] == "ray-user-node-type"): one
        for one in ec2.instances.all()
    }
    spot = {name for name, one in machines.items() if one.instance_lifecycle == "spot"}
    assert set(machines) == {"head", "gpu-small", "gpu-large"}
    assert spot == {"gpu-small", "gpu-large"}
    assert all(
        [one["GroupId"] for one in m.security_groups] == [group.id] for m in machines.values()
    )
    assert _open_to_the_world(ec2) == []


def test_a_group_of_rays_own_would_be_open_whatever_rules_are_given(ec2: Any) -> None:
    """This is why the file names a group; it also shows that the test above finds an open port."""
    rule = "{FromPort: 22, ToPort: 22, IpProtocol: tcp, IpRanges: [{CidrIp: 192.0.2.1/32}]}"
    given = (
        f"    security_group: {{GroupName: narrow, IpPermissions: [{rule}]}}\n    cache_stopped"
    )
    without = AWS.replace("SecurityGroupIds: [sg-FILL-IN]", "EbsOptimized: false")
    _bootstrap(without.replace("    cache_stopped", given))
    assert _open_to_the_world(ec2) == ["narrow: 22"]


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync, which `ray up` needs too")
def test_only_the_code_is_copied_to_nodes(tmp_path: Path) -> None:
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    config = yaml.safe_load(AWS)
    stay = [".env", ".git/config", "data/a.tif", "results/x/scores.csv", "study/__pycache__/a.pyc"]
    travel = ["study/run.py", "brainseg/document.html.j2", "configs/search.yaml"]
    travel += ["constraints.txt", "pyproject.toml", "README.md"]
    for name in [*stay, *travel]:
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    options = SSHCommandRunner._create_rsync_filter_args(None, config)
    for target, source in config["file_mounts"].items():
        here = tmp_path / "here" / source
        there = tmp_path / "there" / target.removeprefix("~/brainseg/")
        if source != TOKEN:
            there.parent.mkdir(parents=True, exist_ok=True)
            paths = [f"{here}/", f"{there}/"] if here.is_dir() else [str(here), str(there)]
            subprocess.run(["rsync", "-az", *options, *paths], check=True)
    files = [path for path in tmp_path.glob("there/**/*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "there")) for path in files} == {*travel}
