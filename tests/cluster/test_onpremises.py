"""The units of systemd: their form, their commands, their variables; and systemd's own opinion where it is there."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from melanoma import cli

FOLDER = Path(__file__).parents[2] / "cluster" / "onpremises"
UNITS = {path.name: path.read_text() for path in sorted(FOLDER.glob("melanoma-*")) if path.suffix != ".example"}
VALUES = (FOLDER / "melanoma.env.example").read_text()
PROGRAM = "/opt/melanoma/bin"
NODES = ("melanoma-head.service", "melanoma-worker.service")
HARDENED = (
    "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes",
    "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "User=melanoma", "UMask=0077",
)  # fmt: skip


def settings(text: str) -> dict[str, list[str]]:
    """The values of each key, in their order: a key may be there several times."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)\s*(s|min|h|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "": 1, "min": 60, "h": 3600}[unit]


def words(line: str) -> list[str]:
    """The words of a command as systemd runs it, those of `sh -c` included, without `exec`."""
    split = shlex.split(line.replace("$$", "$").replace("%%", "%"))
    return shlex.split(split[2].removeprefix("exec ")) if split[:2] == ["/bin/sh", "-c"] else split


def fault_of_command(line: str) -> str | None:
    """What is wrong with the command of a unit, which has to exist with its options."""
    program, *arguments = words(line)
    options = {word.split("=")[0] for word in arguments if word.startswith("--")}
    command: Any
    if program == f"{PROGRAM}/ray":
        from ray.scripts.scripts import cli as ray

        command = ray
    elif program == f"{PROGRAM}/melanoma":
        command = typer.main.get_command(cli.app)
    else:
        return None if program in ("/usr/bin/curl", "/usr/bin/test") else f"{program} is none of ours"
    while hasattr(command, "commands"):  # a command of a group, and of a group within
        name = arguments.pop(0)
        if name not in command.commands:
            return f"{name} is no command"
        command = command.commands[name]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return f"{command.name} has no {sorted(options - known)}" if options - known else None


def faults_of_node(name: str, found: dict[str, list[str]]) -> list[str]:
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    faults = []
    if seconds(found["TimeoutStopSec"][0]) < RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S + 15:
        faults.append(f"{name} is killed while it drains")
    for line in ("KillSignal=SIGTERM", "KillMode=mixed", "OOMPolicy=continue", "Restart=always"):
        key, value = line.split("=")
        if found.get(key) != [value]:
            faults.append(f"{name} lacks {line}")
    if not any("--block" in line for line in found["ExecStart"]):
        faults.append(f"{name} goes into the background")
    if not any("RAY_AUTH_TOKEN" in line for line in found.get("ExecStartPre", [])):
        faults.append(f"{name} starts without a token")
    return faults


def tells(found: dict[str, list[str]]) -> bool:
    """Whether the notifying unit is started: what restarts for ever never counts as failed."""
    if found.get("Restart") == ["always"]:
        return any("melanoma-notify@%n" in line for line in found.get("ExecStopPost", []))
    return found.get("OnFailure") == ["melanoma-notify@%n.service"]


def faults_of_units(units: dict[str, str], values: str) -> list[str]:
    """What is wrong with the units, by themselves and together."""
    known = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", values, re.MULTILINE))
    faults = []
    for name, text in units.items():
        found = settings(text)
        if not text.startswith("# systemctl ") or "It costs" not in text[:400]:
            faults.append(f"{name} does not begin with its command and what it costs")
        faults += [f"{name}: {fault}" for line in found.get("ExecStart", []) if (fault := fault_of_command(line))]
        used = set(
            re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", "".join("".join(each) for each in found.values()).replace("$$", ""))
        )
        faults += [f"{name} uses {variable}, which no site sets" for variable in sorted(used - known)]
        if name.endswith(".service"):
            missing = [line for line in HARDENED if line.split("=")[1] not in found.get(line.split("=")[0], [])]
            faults += [f"{name} lacks {line}" for line in missing]
            if found.get("EnvironmentFile") != ["/etc/melanoma/melanoma.env"]:
                faults.append(f"{name} reads other values")
            if "notify" not in name and not tells(found):
                faults.append(f"{name} fails in silence")
        if name in NODES:
            faults += faults_of_node(name, found)
    night, timer = settings(units["melanoma-night.service"]), settings(units["melanoma-night.timer"])
    if night["Type"] != ["oneshot"] or "--wait" not in night["ExecStart"][0]:
        faults.append("nights may overlap")
    if night.get("RestartPreventExitStatus") != ["2"] or "SuccessExitStatus" in night:
        faults.append("the exit code of the night is not heeded")
    if timer.get("Persistent") != ["yes"] or not seconds(timer.get("RandomizedDelaySec", ["0"])[0]):
        faults.append("the timer misses nights or starts with all others")
    if timer["Unit"][0] not in units:
        faults.append("the timer starts nothing")
    return faults


def test_the_units_are_right() -> None:
    assert faults_of_units(UNITS, VALUES) == []


@pytest.mark.parametrize(
    ("name", "was", "becomes", "said"),
    [
        ("head.service", "TimeoutStopSec=60", "TimeoutStopSec=30", "killed while it drains"),
        ("head.service", "KillMode=mixed\n", "", "lacks KillMode"),
        ("head.service", "--dashboard-host=", "--dashbord-host=", "start has no"),
        ("head.service", "ray start", "ray strat", "strat is no command"),
        ("head.service", "--block ", "", "goes into the background"),
        ("worker.service", "OOMPolicy=continue\n", "", "lacks OOMPolicy"),
        ("worker.service", "ExecStartPre=", "#ExecStartPre=", "starts without a token"),
        ("worker.service", "${MELANOMA_HEAD}", "${MELANOMA_HAED}", "MELANOMA_HAED, which no site sets"),
        ("worker.service", "ProtectSystem=strict", "ProtectSystem=no", "lacks ProtectSystem"),
        ("serve.service", "melanoma serve --port", "melanoma serve --prot", "serve has no"),
        ("serve.service", "melanoma serve", "melanoma sreve", "sreve is no command"),
        ("serve.service", "User=melanoma\n", "", "lacks User"),
        ("serve.service", "EnvironmentFile=/etc", "EnvironmentFile=-/etc", "reads other values"),
        ("night.service", "OnFailure=", "OnSuccess=", "fails in silence"),
        ("status.service", "ExecStopPost=", "ExecStopPre=", "fails in silence"),
        ("night.service", "Type=oneshot", "Type=exec", "nights may overlap"),
        ("night.service", " --wait'", "'", "nights may overlap"),
        ("night.service", "RestartPreventExitStatus=2", "RestartPreventExitStatus=3", "is not heeded"),
        ("night.service", "# systemctl start", "# start", "does not begin with its command"),
        ("night.timer", "Persistent=yes\n", "", "misses nights"),
        ("night.timer", "RandomizedDelaySec=10min\n", "", "starts with all others"),
        ("night.timer", "Unit=melanoma-night", "Unit=melanoma-nihgt", "starts nothing"),
    ],
)
def test_a_mistake_in_a_unit_is_found(name: str, was: str, becomes: str, said: str) -> None:
    text = UNITS[f"melanoma-{name}"]
    assert was in text
    assert said in "; ".join(faults_of_units({**UNITS, f"melanoma-{name}": text.replace(was, becomes, 1)}, VALUES))


def test_the_values_hold_no_secret_and_nothing_is_set_for_nobody() -> None:
    lines = [line.lstrip("#").split("=", 1) for line in VALUES.splitlines() if re.match(r"#?[A-Z][A-Z0-9_]+=", line)]
    assert {value for name, value in lines if re.search("TOKEN|SECRET|_KEY", name)} == {""}
    used = "".join(UNITS.values()) + "".join(
        path.read_text() for path in (FOLDER.parents[1] / "melanoma").rglob("*.py")
    )
    others = {name for name, _ in lines if not name.startswith(("RAY_", "AWS_", "TF_"))}
    assert {name for name in others if name not in used} == set()


def test_the_line_of_the_night_gives_each_try_a_name_and_keeps_its_exit_code(tmp_path: Path) -> None:
    """The shell line as systemd passes it on, with a program that writes down what it is called with."""
    program = tmp_path / "melanoma"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    program.chmod(0o755)
    (line,) = settings(UNITS["melanoma-night.service"])["ExecStart"]
    split = shlex.split(line.replace(PROGRAM, str(tmp_path)).replace("$$", "$").replace("%%", "%"))
    ended = subprocess.run(split, capture_output=True, text=True, check=False)
    assert ended.returncode == 7, ended.stderr
    *before, name, wait = ended.stdout.split()
    assert before == ["submit", "nightly", "--config", "/etc/melanoma/nightly.yaml", "--submission-id"]
    assert re.fullmatch(r"night-\d{4}-\d\d-\d\d-\d{6}", name)
    assert wait == "--wait"


def test_what_is_told_is_json() -> None:
    (line,) = settings(UNITS["melanoma-notify@.service"])["ExecStart"]
    split = shlex.split(line.replace("%i", "melanoma-night.service").replace("%H", "head"))
    said = json.loads(split[split.index("--data") + 1])
    assert list(said) == ["text"]
    assert said["text"].startswith("melanoma-night.service has failed or ended on head.")
    assert split[-1] == "${MELANOMA_NOTIFY_URL}"


@pytest.mark.parametrize(("result", "told"), [("success", []), ("exit-code", ["start", "--no-block"])])
def test_a_node_that_ends_badly_is_told_of(result: str, told: list[str], tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (line,) = settings(UNITS["melanoma-worker.service"])["ExecStopPost"]
    split = shlex.split(line.removeprefix("+").replace("$$", "$").replace("%n", "melanoma-worker.service"))
    environment = {"SERVICE_RESULT": result, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run(split, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == told + (["melanoma-notify@melanoma-worker.service"] if told else [])


# --- systemd's own opinion --------------------------------------------------------------------------------------------

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def verified(folder: Path, units: dict[str, str]) -> str:
    """What `systemd-analyze verify` has to say, with programs that only exist."""
    for program in ("ray", "melanoma", "curl", "test"):
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)
    for name, text in units.items():
        moved = text.replace(PROGRAM, str(folder)).replace("/usr/bin/curl", f"{folder}/curl")
        (folder / name).write_text(moved.replace("/usr/bin/test", f"{folder}/test"))
    paths = [str(folder / name) for name in units]
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    return ended.stdout + ended.stderr


@needs_systemd
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    said = verified(tmp_path, UNITS)
    assert not [line for line in said.splitlines() if "melanoma" in line], said


@needs_systemd
@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("melanoma-head.service", "KillMode=mixed", "KilMode=mixed"),
        ("melanoma-head.service", f"{PROGRAM}/ray", "/opt/melanoma/sbin/ray"),
        ("melanoma-night.service", "Restart=on-failure", "Restart=always"),
        ("melanoma-night.timer", "OnCalendar=*-*-* 02:00:00", "OnCalendar=*-*-* 26:00:00"),
    ],
)
def test_systemd_finds_a_mistake(name: str, was: str, becomes: str, tmp_path: Path) -> None:
    assert was in UNITS[name]
    said = verified(tmp_path, {**UNITS, name: UNITS[name].replace(was, becomes)})
    assert [line for line in said.splitlines() if name in line], said


@needs_systemd
@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
@pytest.mark.parametrize("hardened", [True, False])
def test_systemd_thinks_that_a_service_may_do_little(name: str, hardened: bool, tmp_path: Path) -> None:
    text = (
        UNITS[name] if hardened else re.sub(r"^(Protect|Restrict|Capability).*\n", "", UNITS[name], flags=re.MULTILINE)
    )
    (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", str(tmp_path / name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) == hardened, ended.stdout + ended.stderr
