"""The cluster of `ray up`: checked by Ray's own validation, launched against moto, a mock of AWS."""

import copy
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

AWS = Path(__file__).parents[2] / "cluster" / "aws"
CLUSTER = (AWS / "cluster.yaml").read_text()
ACCOUNT = (AWS / "account.yaml").read_text()
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter", "cluster_synced_files",
)  # fmt: skip
NEEDS_ANY_RESOURCE = {"ec2:DescribeInstances"}  # AWS knows no narrower one for it
VALUES = {
    "ClusterName": "melanoma",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::AccountId": "123456789012",
    "WorkerRole.Arn": "arn:aws:iam::123456789012:role/melanoma-worker",
    "WorkerProfile.Arn": "arn:aws:iam::123456789012:instance-profile/melanoma-worker",
}
OF_WORKERS = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}


# --- the file of `ray up` ---------------------------------------------------------------------------------------------


def prepared(text: str) -> dict[str, Any]:
    """What Ray makes of the file; raises where Ray refuses it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def faults_of_cluster(text: str) -> list[str]:
    """What is wrong with the file: what Ray refuses, and what it takes and should not."""
    try:
        config = prepared(text)
    except Exception as error:
        return [f"Ray refuses it: {error}"]
    own = yaml.safe_load(text)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    faults = [f"{name} is missing" for name in LISTS if name not in own]
    faults += [f"{name} installs something" for name in LISTS[:4] if own.get(name)]
    for name, node in types.items():
        machine, workers = node["node_config"], (node["min_workers"], node["max_workers"])
        needed = ("ImageId", "InstanceType", "IamInstanceProfile", "SecurityGroupIds", "SubnetIds", "MetadataOptions")
        faults += [f"{name} has no {key}" for key in needed if not machine.get(key)]
        if workers[0] != 0 or workers[1] > config["max_workers"]:
            faults.append(f"{name} begins with {workers[0]} and ends with {workers[1]}")
        if (node is head) != (machine.get("IamInstanceProfile") == {"Name": "melanoma-head"}):
            faults.append(f"{name} has the role of another")
        if (node is head) == ("InstanceMarketOptions" in machine):
            faults.append(f"{name} is of the wrong market")
    if head["resources"] != {"CPU": 0}:
        faults.append("the head works")
    if config["provider"].get("cache_stopped_nodes") is not False:
        faults.append("stopped instances are kept, and paid for")
    if config["provider"].get("module") != "spot_or_on_demand.SpotOrOnDemand":
        faults.append("there is no way from spot to on demand")
    start = " ".join(config["head_start_ray_commands"])
    faults += [
        f"the head starts without {word}"
        for word in ("--dashboard-host=127.0.0.1", "$HOME/provider")
        if word not in start
    ]
    if "-e RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        faults.append("no token is asked for")
    if "~/.ray/auth_token" not in config["file_mounts"]:
        faults.append("the nodes get no token")
    return faults


def test_the_file_is_right() -> None:
    assert faults_of_cluster(CLUSTER) == []


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("idle_timeout_minutes: 5", "idle_timeout_minuts: 5", "Ray refuses it"),
        ("  container_name: melanoma\n", "", "Ray refuses it"),
        ("resources: {CPU: 16}", "resources: {CPU: 15.5}", "Ray refuses it"),
        ("max_workers: 10", "max_workers: 4", "cpu begins with 0 and ends with 8"),
        ("resources: {CPU: 0}", "resources: {CPU: 2}", "the head works"),
        ("setup_commands: []\nhead_setup", "setup_commands: [pip install ray]\nhead_setup", "installs something"),
        ("head_setup_commands: []\n", "", "Ray refuses it"),
        ("worker_setup_commands: []\n", "", "Ray refuses it"),
        ("rsync_filter: []\n", "", "rsync_filter is missing"),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: true", "stopped instances"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "the head starts without"),
        ("      IamInstanceProfile: {Name: melanoma-worker}\n", "", "cpu has the role of another"),
        ("      SecurityGroupIds: *security_groups\n", "", "head has no SecurityGroupIds"),
        ("      InstanceMarketOptions: {MarketType: spot}\n", "", "cpu is of the wrong market"),
        (
            "      SubnetIds: *subnets\n",
            "      InstanceMarketOptions: {MarketType: spot}\n",
            "head is of the wrong market",
        ),
        ("    - -e RAY_AUTH_MODE=token\n", "", "no token is asked for"),
        ("  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "the nodes get no token"),
        ("type: external\n  module: spot_or_on_demand.SpotOrOnDemand", "type: aws", "no way from spot"),
    ],
)
def test_a_mistake_in_the_file_is_found(was: str, becomes: str, said: str) -> None:
    assert was in CLUSTER
    assert said in "; ".join(faults_of_cluster(CLUSTER.replace(was, becomes, 1)))


def test_what_is_copied_to_the_nodes_is_here() -> None:
    mounts = yaml.safe_load(CLUSTER)["file_mounts"]
    assert (AWS.parents[1] / mounts["~/provider"] / "spot_or_on_demand.py").is_file()


# --- against a mock of AWS --------------------------------------------------------------------------------------------


def known_types(region: str, credentials: Any = None) -> Any:
    """What the mocked AWS says of the types of the file: it takes ten seconds to tell of all that there are."""
    import boto3

    types = yaml.safe_load(CLUSTER)["available_node_types"].values()
    names = sorted({node["node_config"]["InstanceType"] for node in types})
    return boto3.client("ec2", region_name=region).describe_instance_types(InstanceTypes=names)["InstanceTypes"]


def make_roles() -> None:
    """The roles and profiles of account.yaml, in the mocked account, which refuses policies of a wrong form."""
    import boto3

    client = boto3.client("iam")
    resources = resolved(yaml.load(ACCOUNT, _Template))["Resources"]
    for each in (each["Properties"] for each in resources.values() if each["Type"] == "AWS::IAM::Role"):
        client.create_role(
            RoleName=each["RoleName"], AssumeRolePolicyDocument=json.dumps(each["AssumeRolePolicyDocument"])
        )
        for policy in each["Policies"]:
            document = json.dumps(policy["PolicyDocument"])
            client.put_role_policy(RoleName=each["RoleName"], PolicyName=policy["PolicyName"], PolicyDocument=document)
    for each in (each["Properties"] for each in resources.values() if each["Type"] == "AWS::IAM::InstanceProfile"):
        name = each["InstanceProfileName"]
        client.create_instance_profile(InstanceProfileName=name)
        client.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of our provider, in an account that is mocked."""
    moto = pytest.importorskip("moto", reason="moto, a mock of AWS, is not installed")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_EC2"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "mocked")
    from ray.autoscaler._private.aws import config, node_provider, utils

    monkeypatch.syspath_prepend(str(AWS))
    caches = (utils.client_cache, utils.resource_cache, config._get_subnets_or_die)
    with moto.mock_aws():
        for cache in caches:
            cache.cache_clear()
        monkeypatch.setattr(node_provider, "list_ec2_instances", known_types)
        make_roles()
        yield importlib.import_module("spot_or_on_demand")
    for cache in caches:
        cache.cache_clear()
    sys.modules.pop("spot_or_on_demand")


def in_account(provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool = True) -> dict[str, Any]:
    """The configuration as `ray up` has it before it launches, with the network and image of the mocked account."""
    import boto3

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair there
    config = prepared(CLUSTER)
    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    zones = config["provider"]["availability_zone"].split(",")
    subnets = [
        ec2.create_subnet(VpcId=network, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for number, zone in enumerate(zones)
    ]
    group = ec2.create_security_group(GroupName="made-before", Description="closed", VpcId=network)["GroupId"]
    image = ec2.register_image(Name="with-docker", Architecture="x86_64")["ImageId"]
    for node in config["available_node_types"].values():
        node["node_config"].update(ImageId=image, SubnetIds=subnets, SecurityGroupIds=[group])
        if not closed:
            del node["node_config"]["SecurityGroupIds"]
    resolved = provider.fillout_available_node_types_resources(config)
    whole: dict[str, Any] = provider.bootstrap_config(resolved)
    return whole


class Requests:
    """Records the calls of RunInstances, and refuses those that `refuses` is true of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str, refuses: Any) -> None:
        from botocore.client import BaseClient
        from botocore.exceptions import ClientError

        self.seen: list[dict[str, Any]] = []
        self.actions: set[str] = set()
        whole = BaseClient._make_api_call

        def call(client: Any, operation: str, values: dict[str, Any]) -> Any:
            self.actions.add(f"{client.meta.service_model.service_name}:{operation}")
            if operation == "RunInstances":
                self.seen.append(copy.deepcopy(values))
                if refuses(values):
                    raise ClientError({"Error": {"Code": code, "Message": "refused"}}, operation)
            return whole(client, operation, values)

        monkeypatch.setattr(BaseClient, "_make_api_call", call)


def launch(aws: Any, config: dict[str, Any], node_type: str) -> dict[str, Any]:
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    provider = aws.SpotOrOnDemand(config["provider"], config["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: node_type}
    launched: dict[str, Any] = provider.create_node(config["available_node_types"][node_type]["node_config"], tags, 2)
    assert sorted(provider.non_terminated_nodes({})) == sorted(launched)
    return launched


def test_ray_finds_the_provider(aws: Any) -> None:
    from ray.autoscaler._private.providers import _get_node_provider_cls

    assert _get_node_provider_cls(prepared(CLUSTER)["provider"]) is aws.SpotOrOnDemand


def test_spot_comes_first(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_account(aws.SpotOrOnDemand, tmp_path, monkeypatch)
    requests = Requests(monkeypatch, "none", lambda values: False)
    assert launch(aws, config, "cpu")
    (request,) = requests.seen
    assert request["MaxCount"] == 2
    assert request["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert request["IamInstanceProfile"] == {"Name": "melanoma-worker"}
    assert request["MetadataOptions"]["HttpTokens"] == "required"
    assert {"Key": "ray-cluster-name", "Value": "melanoma"} in request["TagSpecifications"][0]["Tags"]
    assert (
        config["available_node_types"]["gpu"]["resources"].items()
        >= {"CPU": 16, "GPU": 1, "accelerator_type:L4": 1}.items()
    )


def test_the_head_may_do_what_the_autoscaler_does(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_account(aws.SpotOrOnDemand, tmp_path, monkeypatch)
    requests = Requests(monkeypatch, "none", lambda values: False)
    launched = sorted(launch(aws, config, "cpu"))
    provider = aws.SpotOrOnDemand(config["provider"], config["cluster_name"])
    assert sorted(provider.non_terminated_nodes({})) == launched
    provider.set_node_tags(launched[0], {"ray-node-status": "up-to-date"})
    assert provider.is_running(launched[0])
    assert provider.internal_ip(launched[0])
    provider.terminate_nodes(launched)
    assert provider.non_terminated_nodes({}) == []
    allowed = allowed_to("HeadRole")
    assert requests.actions >= {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags"}
    assert requests.actions <= allowed
    assert {action for action in allowed if action.startswith("ec2:")} == requests.actions


@pytest.mark.parametrize("node_type", ["cpu", "gpu"])
def test_refused_spot_becomes_on_demand(
    node_type: str, aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_account(aws.SpotOrOnDemand, tmp_path, monkeypatch)
    before = copy.deepcopy(config)
    requests = Requests(monkeypatch, "InsufficientInstanceCapacity", lambda values: "InstanceMarketOptions" in values)
    assert launch(aws, config, node_type)
    *spot, last = requests.seen
    assert {request["SubnetId"] for request in spot} == set(last_subnets(before, node_type)), "not all zones were asked"
    assert all(request["InstanceMarketOptions"] == {"MarketType": "spot"} for request in spot)
    assert "InstanceMarketOptions" not in last
    same = ("InstanceType", "ImageId", "IamInstanceProfile", "SecurityGroupIds", "MetadataOptions")
    assert {key: last[key] for key in same} == {key: spot[0][key] for key in same}
    assert config == before, "the next launch would not be spot"


def last_subnets(config: dict[str, Any], node_type: str) -> list[str]:
    subnets: list[str] = config["available_node_types"][node_type]["node_config"]["SubnetIds"]
    return subnets


@pytest.mark.parametrize(
    ("code", "everything"), [("UnauthorizedOperation", False), ("InsufficientInstanceCapacity", True)]
)
def test_other_refusals_are_raised(
    code: str, everything: bool, aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    config = in_account(aws.SpotOrOnDemand, tmp_path, monkeypatch)
    requests = Requests(monkeypatch, code, lambda values: True)
    with pytest.raises(NodeLaunchException, match=code):
        launch(aws, config, "cpu")
    assert any("InstanceMarketOptions" not in request for request in requests.seen) == everything


def test_without_our_provider_on_demand_is_never_asked_for(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    config = in_account(AWSNodeProvider, tmp_path, monkeypatch)
    monkeypatch.setattr(aws, "SpotOrOnDemand", AWSNodeProvider)
    Requests(monkeypatch, "InsufficientInstanceCapacity", lambda values: "InstanceMarketOptions" in values)
    with pytest.raises(NodeLaunchException):
        launch(aws, config, "cpu")


@pytest.mark.parametrize("closed", [True, False])
def test_no_port_is_open_to_the_world(closed: bool, aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a group of its own Ray opens port 22 to everybody, whatever its configuration says."""
    import boto3

    config = in_account(aws.SpotOrOnDemand, tmp_path, monkeypatch, closed)
    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    groups = [node["node_config"]["SecurityGroupIds"] for node in config["available_node_types"].values()]
    found = ec2.describe_security_groups(GroupIds=sorted({group for named in groups for group in named}))[
        "SecurityGroups"
    ]
    ranges = [place["CidrIp"] for group in found for rule in group["IpPermissions"] for place in rule["IpRanges"]]
    assert ("0.0.0.0/0" in ranges) != closed


# --- what the account allows ------------------------------------------------------------------------------------------


class _Template(yaml.SafeLoader):
    """YAML of CloudFormation: `!Sub x` becomes `{"Sub": "x"}`."""


_Template.add_multi_constructor("!", lambda loader, tag, node: {f"!{tag}": loader.construct_scalar(node)})


def resolved(value: Any) -> Any:
    """The template as CloudFormation fills it in."""
    if isinstance(value, dict) and value.keys() <= {"!Sub", "!Ref", "!GetAtt"} and value:
        text = value.get("!Sub") or "${" + next(iter(value.values())) + "}"
        return re.sub(r"\$\{([\w.:]+)\}", lambda name: VALUES.get(name[1], "filled-in"), text)
    if isinstance(value, dict):
        return {key: resolved(each) for key, each in value.items()}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def plain(value: Any) -> str:
    """A value with `!Sub`, `!Ref` or `!GetAtt` as one string."""
    return value if isinstance(value, str) else next(f"{tag} {text}" for tag, text in value.items())


def statements(resources: dict[str, Any], role: str) -> list[dict[str, Any]]:
    found = [
        each for policy in resources[role]["Properties"]["Policies"] for each in policy["PolicyDocument"]["Statement"]
    ]
    for each in found:
        named = each["Resource"] if isinstance(each["Resource"], list) else [each["Resource"]]
        each["Resource"] = [plain(name) for name in named]
        each["Action"] = [each["Action"]] if isinstance(each["Action"], str) else each["Action"]
    return found


def allowed_to(role: str) -> set[str]:
    resources = yaml.load(ACCOUNT, _Template)["Resources"]
    return {action for each in statements(resources, role) for action in each["Action"]}


def faults_of_statement(role: str, each: dict[str, Any]) -> list[str]:
    where, condition = f"{role}.{each['Sid']}", str(each.get("Condition", ""))
    faults = [f"{where} allows {action}" for action in each["Action"] if "*" in action]
    for resource in each["Resource"]:
        if resource == "*" and not set(each["Action"]) <= NEEDS_ANY_RESOURCE:
            faults.append(f"{where} is for everything")
        if resource.endswith(":instance/*") and "ray-cluster-name" not in condition and "CreateAction" not in condition:
            faults.append(f"{where} is for instances of others")
        if "ArchiveBucket" in resource and not set(each["Action"]) <= {"s3:GetObject", "s3:ListBucket"}:
            faults.append(f"{where} writes the archive")
        if "iam:PassRole" in each["Action"] and resource != "!GetAtt WorkerRole.Arn":
            faults.append(f"{where} passes {resource}")
    if "iam:PassRole" in each["Action"] and "iam:PassedToService" not in condition:
        faults.append(f"{where} passes the role to any service")
    if role == "WorkerRole" and not set(each["Action"]) <= OF_WORKERS:
        faults.append(f"{where} does more than a worker")
    return faults


def faults_of_account(text: str) -> list[str]:
    """What is wrong with the roles and the security group."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        return ["CloudFormation takes no aliases"]
    template = yaml.load(text, _Template)
    resources = template["Resources"]
    roles = [name for name, each in resources.items() if each["Type"] == "AWS::IAM::Role"]
    faults = [f for role in roles for each in statements(resources, role) for f in faults_of_statement(role, each)]
    for role in roles:
        trusted = resources[role]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        if [each["Principal"] for each in trusted] != [{"Service": "ec2.amazonaws.com"}]:
            faults.append(f"{role} can be taken by others")
    for rule in resources["SecurityGroup"]["Properties"]["SecurityGroupIngress"]:
        if rule["CidrIp"] != {"!Ref": "Administrators"} or (rule["FromPort"], rule["ToPort"]) != (22, 22):
            faults.append(f"the group opens {rule}")
    profiles = {
        plain(each["Properties"]["InstanceProfileName"]) for each in resources.values() if "Profile" in each["Type"]
    }
    name = template["Parameters"]["ClusterName"]["Default"]
    config = yaml.safe_load(CLUSTER)
    if name != config["cluster_name"]:
        faults.append("the cluster has another name")
    named = {node["node_config"]["IamInstanceProfile"]["Name"] for node in config["available_node_types"].values()}
    if {profile.removeprefix("!Sub ").replace("${ClusterName}", name) for profile in profiles} != named:
        faults.append("the profiles have other names")
    return faults


def test_the_roles_allow_what_is_needed_and_no_more() -> None:
    assert faults_of_account(ACCOUNT) == []


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ('Action: ["ec2:RunInstances"]', 'Action: ["ec2:*"]', "allows ec2:*"),
        ('Action: ["ec2:DescribeInstances"]', 'Action: ["ec2:TerminateInstances"]', "is for everything"),
        ("Resource: !GetAtt WorkerRole.Arn", 'Resource: "*"', "passes *"),
        ("Resource: !GetAtt WorkerRole.Arn", "Resource: !GetAtt HeadRole.Arn", "passes !GetAtt HeadRole.Arn"),
        ('"iam:PassedToService"', '"aws:RequestTag/x"', "to any service"),
        ('"aws:ResourceTag/ray-cluster-name"', '"aws:ResourceTag/x"', "is for instances of others"),
        ("s3:::${ResultsBucket}/*", "s3:::${ArchiveBucket}/*", "writes the archive"),
        ("Principal: {Service: ec2.amazonaws.com}", 'Principal: {AWS: "*"}', "can be taken by others"),
        ("CidrIp: !Ref Administrators", "CidrIp: 0.0.0.0/0", "the group opens"),
        ("ToPort: 22", "ToPort: 65535", "the group opens"),
        (
            'InstanceProfileName: !Sub "${ClusterName}-worker"',
            "InstanceProfileName: worker",
            "the profiles have other names",
        ),
        ("Default: melanoma", "Default: skin", "the cluster has another name"),
        ("Roles: [!Ref HeadRole]", "Roles: &head [!Ref HeadRole], Path: *head", "no aliases"),
    ],
)
def test_a_mistake_in_the_account_is_found(was: str, becomes: str, said: str) -> None:
    assert was in ACCOUNT
    assert said in "; ".join(faults_of_account(ACCOUNT.replace(was, becomes, 1)))


def test_a_worker_that_does_more_is_found() -> None:
    worker = ACCOUNT.index("  WorkerRole:")
    more = ACCOUNT[:worker] + ACCOUNT[worker:].replace('"s3:PutObject"]', '"s3:PutObject", "ec2:RunInstances"]', 1)
    assert "does more than a worker" in "; ".join(faults_of_account(more))


def test_both_may_do_with_objects_what_the_program_does() -> None:
    """All requests to S3 are made in one module. HEAD is a GET for IAM."""
    source = (AWS.parents[1] / "melanoma" / "s3.py").read_text()
    asked = set(re.findall(r'\.ask\(\s*"(\w+)"', source))
    names = {"list_objects_v2": "s3:ListBucket", "get_object": "s3:GetObject", "head_object": "s3:GetObject",
             "put_object": "s3:PutObject", "delete_object": "s3:DeleteObject"}  # fmt: skip
    assert asked == names.keys()
    assert allowed_to("WorkerRole") == set(names.values())
    assert allowed_to("HeadRole") >= set(names.values())
