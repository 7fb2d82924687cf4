"""cluster.yaml is what Ray and AWS accept, and keeps its promises: an idle head, spot workers, a token, no keys.

Nothing here calls AWS. Ray checks its own part of the file; what it lets pass (keys of the provider, parameters of
EC2) is held against what Ray reads and against botocore's description of RunInstances. Every guard is shown to fail.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()

PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "security_group",
    "key_pair",
    "cloudwatch",
}
SECRETS = {
    "an AWS key id": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN",
    "a key of the provider": r"aws_credentials|aws_secret_access_key|aws_session_token",
    "a secret in a variable": r"(?i)(SECRET|PASSWORD|RAY_AUTH_TOKEN)\w*\s*[=:]\s*\S",
    "a token": r"\b[0-9a-f]{32,}\b|(?<![\w/.-])[A-Za-z0-9+/]{40,}(?![\w/.-])",
}


TOKEN_MODE = "export RAY_AUTH_MODE=token; ulimit -n 65536;\n    "

# What is changed in the file, into what, and what the guard then says.
FAULTS = {
    "a typo at the top": ("idle_timeout_minutes:", "idle_timeout_minute:", "'idle_timeout_minute' was unexpected"),
    "a typo in a node type": ("min_workers: 0", "min_worker: 0", "'min_worker' was unexpected"),
    "a typo under provider": ("cache_stopped_nodes:", "cache_stoped_nodes:", "{'cache_stoped_nodes'}"),
    "a typo in EC2's parameters": ("IamInstanceProfile:", "IamProfile:", 'Unknown parameter in input: "IamProfile"'),
    "a value of the wrong type": ("VolumeSize: 100", "VolumeSize: big", "Invalid type for parameter BlockDevice"),
    "a smaller disk": ("VolumeSize: 100", "VolumeSize: 8", "100 GB"),
    "a head type that is not there": ("head_node_type: head", "head_node_type: main", "must be one of"),
    "a head that works": ("resources: {CPU: 0}", "resources: {CPU: 2}", "the head does no work"),
    "a head whose CPUs Ray looks up": ("resources: {CPU: 0}", "resources: {}", "the head does no work"),
    "a spot head": (
        "ImageId: &image",
        "InstanceMarketOptions: {MarketType: spot}\n      ImageId: &image",
        "taken away",
    ),
    "workers on demand": ("        MarketType: spot", "        SpotOptions: {}", "spot"),
    "workers that stay": ("min_workers: 0", "min_workers: 1", "no worker stays"),
    "workers that idle for an hour": ("idle_timeout_minutes: 5", "idle_timeout_minutes: 60", "five minutes"),
    "workers without a profile": ("      IamInstanceProfile: {Name: drivetrain-worker}\n", "", "profile of its own"),
    "one profile for both": ("{Name: drivetrain-worker}", "{Name: drivetrain-head}", "profile of its own"),
    "a policy for another role": ("role/drivetrain-worker", "role/admin", "the workers' role and no other"),
    "a policy for another cluster": ("cluster_name: drivetrain", "cluster_name: nights", "nodes of this cluster"),
    "a policy that allows everything": ('"ec2:DescribeInstances"', '"ec2:*"', "ec2:*"),
    "a policy for every bucket": ('"arn:aws:s3:::MY-ROOT/*"}]}', '"*"}]}', "reading only"),
    "a policy that is no JSON": ('"Action": "iam:PassRole",', '"Action": "iam:PassRole"', "Expecting ',' delimiter"),
    "another Ray": ("ray[default]==2.60.0", "ray[default]==2.59.0", "the nodes install another Ray"),
    "any Ray": ("ray[default]==2.60.0", "ray[default]", "the nodes install another Ray"),
    "another Ray at home": (
        '`pip install "ray[default]==2.60.0"',
        '`pip install "ray[default]==2.9"',
        "of the comments",
    ),
    "another Python": ("--python 3.11 ", "--python 3.12 ", "Python that wrote it"),
    "a file that is not there": (
        "constraints.txt: constraints.txt",
        "constraints.txt: constraint.txt",
        "constraint.txt",
    ),
    "a dashboard for everyone": ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "only the head itself"),
    "a dashboard by default": ("--dashboard-host=127.0.0.1 ", "", "only the head itself"),
    "a head without a token": (f"{TOKEN_MODE}ray start --head", "ray start --head", "starts without a token"),
    "workers without a token": (f"{TOKEN_MODE}ray start --address", "ray start --address", "starts without a token"),
    "a job without a token": ("export RAY_AUTH_MODE=token RAY_API", "export RAY_API", "submitted with a token"),
    "no token to begin with": ("ray get-auth-token --generate", "ray get-auth-token", "a token is made first"),
    "a token that stays at home": ("  /home/ubuntu/.ray/auth_token: ~/.ray/auth_token\n", "", "the token must travel"),
    "a token in the file": ("export RAY_AUTH_MODE=token;", "export RAY_AUTH_TOKEN=5e1f;", "without a token"),
    "a token beside the mode": ("RAY_AUTH_MODE=token;", "RAY_AUTH_MODE=token; RAY_AUTH_TOKEN=5e1f;", "in a variable"),
    "a bare token": ("cluster_name:", f"metadata: {{note: {'5e1f' * 16}}}\ncluster_name:", "a token: "),
    "a key in a comment": ("cluster_name:", f"# AKIA{'ABCD' * 4}\ncluster_name:", "an AWS key id"),
    "a key of the provider": ("  type: aws", "  type: aws\n  aws_credentials: {}", "{'aws_credentials'}"),
    "a key file": ("cluster_name:", "# -----BEGIN RSA PRIVATE KEY-----\ncluster_name:", "a private key"),
    "a command that is no shell": ("test -x ~/.local/bin/uv ||", "if test -x ~/.local/bin/uv ||", "syntax error"),
}


def test_the_file_keeps_every_promise() -> None:
    check(TEXT)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_guard_can_fail(fault: str) -> None:
    old, new, words = FAULTS[fault]
    assert old in TEXT, f"the file has changed, and the test no longer plants {fault}"
    with pytest.raises((AssertionError, ValidationError, ValueError), match=re.escape(words)):
        check(TEXT.replace(old, new))


def test_the_known_keys_of_the_provider_are_read_by_ray() -> None:
    folder = Path(ray.autoscaler.__file__).parent
    source = "".join(path.read_text() for path in (folder / "_private").rglob("*.py"))
    assert {key for key in PROVIDER_KEYS if f'"{key}"' not in source} == set()


def check(text: str) -> None:
    """Raise an error that says which promise of the file is broken."""
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    (worker,) = (node for name, node in types.items() if name != config["head_node_type"])
    check_keys(config, [head, worker])
    check_costs(config, head, worker)
    check_rights(config, text, head, worker)
    check_installation(config, text)
    check_doors(config)
    check_submission(text)
    check_no_secrets(text)


def check_keys(config: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    unknown = set(config["provider"]) - PROVIDER_KEYS
    assert not unknown, f"Ray does not read these keys of the provider: {unknown}"
    operation = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    for node in nodes:
        # Ray adds the counts and takes SubnetIds, which EC2 does not know, away.
        asked = {key: value for key, value in node["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate(asked | {"MinCount": 1, "MaxCount": 1}, operation.input_shape)
        assert not report.has_errors(), report.generate_report()
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100, "the dependencies want 100 GB"
    for command in commands(config):
        parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert parsed.returncode == 0, f"{command}: {parsed.stderr}"


def check_costs(config: dict[str, Any], head: dict[str, Any], worker: dict[str, Any]) -> None:
    assert head["resources"].get("CPU") == 0, "the head does no work; left out, Ray would fill in its CPUs"
    assert "InstanceMarketOptions" not in head["node_config"], "the head must not be taken away in the night"
    assert worker["node_config"]["InstanceMarketOptions"].get("MarketType") == "spot", "workers are spot"
    assert worker["resources"]["CPU"] > 0, "the autoscaler must know what a worker brings"
    assert worker["min_workers"] == 0, "no worker stays when there is no work"
    assert worker["max_workers"] == config["max_workers"] > 0, "two numbers for one limit"
    assert config["idle_timeout_minutes"] == 5, "an idle worker is paid for five minutes"
    assert config["provider"]["cache_stopped_nodes"] is False, "a stopped head keeps its disk, and its bill"


def check_rights(config: dict[str, Any], text: str, head: dict[str, Any], worker: dict[str, Any]) -> None:
    profiles = [node["node_config"].get("IamInstanceProfile", {}).get("Name") for node in (head, worker)]
    assert all(profiles) and len(set(profiles)) == 2, f"each node type names a profile of its own: {profiles}"
    buckets, nodes = policies(text)
    for statement in [*buckets, *nodes]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions), f"more than is needed: {actions}"
        if statement["Resource"] == "*":
            assert all(re.fullmatch(r"ec2:Describe\w+", action) for action in actions), (
                f"reading only, on everything: {actions}"
            )
    conditions = [statement.get("Condition", {}).get("StringEquals", {}) for statement in nodes]
    named = {value for each in conditions for key, value in each.items() if key.endswith("/ray-cluster-name")}
    assert named == {config["cluster_name"]}, "the head may only touch the nodes of this cluster"
    (role,) = (statement["Resource"] for statement in nodes if statement["Action"] == "iam:PassRole")
    assert role.endswith(f":role/{profiles[1]}"), "the head may hand out the workers' role and no other"


def check_installation(config: dict[str, Any], text: str) -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert any(f"ray[default]=={pinned}" in command for command in commands(config)), "the nodes install another Ray"
    named = set(re.findall(r"\bray\[default\]([^\"\s]*)", text))
    assert named == {f"=={pinned}"}, f"the Ray of the comments is not that of constraints.txt: {named}"
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (version,) = re.findall(r"uv venv --python (\S+)", " ".join(config["setup_commands"]))
    assert f">={version}," in python, "an export.pkl loads under the Python that wrote it"
    # dist is made by the user; the token lies at home; the rest is in the repository.
    ours = [local for local in config["file_mounts"].values() if local != "dist" and not local.startswith("~/")]
    missing = [local for local in ours if not (ROOT / local).exists()]
    assert not missing, f"not in the repository: {missing}"


def check_doors(config: dict[str, Any]) -> None:
    assert config["file_mounts"].get("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token", "the token must travel"
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2, "one for the head, one for the workers"
    for start in starts:
        assert start.startswith("export RAY_AUTH_MODE=token;"), f"starts without a token: {start}"
        assert "--metrics-export-port=8080" in start, "Prometheus finds every node's numbers at one port"
    (head,) = (start for start in starts if "--head" in start)
    assert "--dashboard-host=127.0.0.1 " in head, "only the head itself reaches its dashboard"


def check_submission(text: str) -> None:
    shown = re.search(r"^#   export (.*)\n#   drivetrain submit --wait ", text, re.MULTILINE)
    assert shown and "RAY_AUTH_MODE=token" in shown[1].split(), "jobs are submitted with a token"
    assert re.search(r"^#.*RAY_AUTH_MODE=token ray get-auth-token --generate && chmod 600", text, re.MULTILINE), (
        "a token is made first"
    )


def check_no_secrets(text: str) -> None:
    for what, pattern in SECRETS.items():
        found = re.search(pattern, text)
        assert not found, f"{what}: {found}"


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command that a node runs, each once."""
    names = ("initialization_commands", "head_setup_commands", "worker_setup_commands")
    found = [command for name in names for command in config[name]]
    found += config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return list(dict.fromkeys(found))


def policies(text: str) -> list[list[dict[str, Any]]]:
    """The statements of each policy that stands in the file's comments."""
    comment = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    decoder = json.JSONDecoder()
    starts = [found.start() for found in re.finditer(r'\{"Version"', comment)]
    assert len(starts) == 2, "one for both roles, one for the head besides"
    return [decoder.raw_decode(comment, start)[0]["Statement"] for start in starts]
