"""The verb `launch`: one command for a machine, a Slurm cluster, Kubernetes and SkyPilot, through the files of launch/.

Nothing is composed here that those scripts would not do by themselves: this only chooses one and fills in its options.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pal_dist.commands.manifests import jobset, skypilot
from pal_dist.commands.options import LAUNCH_OPTIONS
from pal_dist.config.resolve import from_command_line
from pal_dist.core.console import say
from pal_dist.core.errors import DoesNotFitError, UserError
from pal_dist.distributed.strategy import folder_of, read_strategy

PLACES = ("slurm", "local", "kubernetes", "skypilot")
VERBS = ("train", "profile", "doctor", "evaluate")
SCRIPTS = {"slurm": "slurm/train.sbatch", "local": "local.sh"}
TOOLS = {"slurm": "sbatch", "kubernetes": "kubectl", "skypilot": "sky", "local": "bash"}


@dataclass(frozen=True)
class LaunchRequest:
    """What shall run where."""

    on: str
    verb: str = "train"
    settings: Sequence[str] = ()
    """Of the verb, as typed."""
    nodes: int = 1
    gpus_per_node: int | None = None
    """0: processors. None: one; on this machine all it has."""
    processes: int | None = None
    """On each node; None: one per GPU."""
    strategy: str = "ddp"
    gpu: str | None = None
    """Kind of GPU that is planned for."""
    plan: bool = True
    extra: Sequence[str] = ()
    """Words for sbatch, kubectl or sky."""
    name: str = "pal-dist"
    image: str | None = None
    claim: str | None = None
    dry_run: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def scripts(self) -> Path:
        return folder_of("launch")

    @property
    def script_arguments(self) -> list[str]:
        """What the scripts of launch/ are given."""
        arguments = [self.verb, "--strategy", self.strategy]
        if self.processes is not None:
            arguments += ["--processes", str(self.processes)]
        return [*arguments, *(["--cpu"] if self.gpus_per_node == 0 else []), *self.settings]


def read_launch(arguments: Sequence[str], environment: Mapping[str, str]) -> LaunchRequest:
    """`[--nodes N ...] -- train [settings]` as typed. Raises UserError."""
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    remaining, command = list(arguments[:separator]), list(arguments[separator + 1 :])
    if not command or command[0] not in VERBS:
        raise UserError(
            f"use: pal-dist launch [--nodes N ...] -- train [settings of train] (or {', '.join(VERBS[1:])})"
        )
    options: dict[str, str] = {}
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in LAUNCH_OPTIONS or not argument.startswith("--"):
            names = ", ".join(f"--{each}" for each in LAUNCH_OPTIONS)
            raise UserError(
                f"unknown setting {argument} of launch: known are {names}; what the verb takes goes after "
                f"`-- {command[0]}`"
            )
        if name == "dry_run":
            options[name] = value or "true"
        elif not equals and not remaining:
            raise UserError(f"{argument} needs a value")
        else:
            options[name] = value if equals else remaining.pop(0)
    return _request(options, command, environment)


def _request(options: Mapping[str, str], command: list[str], environment: Mapping[str, str]) -> LaunchRequest:
    """Raises UserError for a value that an option does not take, and for options that do not go together."""
    for name in ("nodes", "gpus_per_node", "processes"):
        if name in options and (not options[name].isdigit() or (name != "gpus_per_node" and options[name] == "0")):
            raise UserError(f"--{name} takes a whole number; found {options[name]!r}")
    on = options.get("on", "slurm" if shutil.which("sbatch") else "local")
    if on not in PLACES:
        raise UserError(f"--on is one of {', '.join(PLACES)}; found {on!r}")
    nodes = int(options.get("nodes", "1"))
    if on == "local" and nodes > 1:
        raise UserError(f"--nodes {nodes} on this one machine: name the scheduler, --on slurm, kubernetes or skypilot")
    gpus = int(options["gpus_per_node"]) if "gpus_per_node" in options else None if on == "local" else 1
    if on == "skypilot" and gpus and "gpu" not in options:
        raise UserError("--on skypilot needs --gpu KIND, the GPU to rent")
    strategy = options.get("strategy", "ddp")
    read_strategy(strategy)
    return LaunchRequest(
        on,
        verb=command[0],
        settings=command[1:],
        nodes=nodes,
        gpus_per_node=gpus,
        processes=int(options["processes"]) if "processes" in options else None,
        strategy=strategy,
        gpu=options.get("gpu"),
        plan=options.get("plan", "auto") != "off",
        extra=shlex.split(options.get("extra", "")),
        name=options.get("name", "pal-dist"),
        image=options.get("image"),
        claim=options.get("claim"),
        dry_run=options.get("dry_run", "false").lower() == "true",
        environment=environment,
    )


def check_fits(request: LaunchRequest, cache_dir: Path) -> None:
    """Raises DoesNotFitError, with the plan, before anything is submitted. Says why where it cannot be known.

    Args:
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.
    """
    if request.verb != "train" or not request.plan or request.on == "local":  # local runs plan for the device they see
        return
    if request.gpus_per_node == 0:
        say("memory: on processors it is planned on the nodes themselves, before the first step")
        return
    if request.gpu is None:
        raise UserError(
            "which GPU have the nodes? Name its kind, --gpu t4, and it is said now whether the run fits (--plan off: "
            "submit without)"
        )
    run, origins = from_command_line({**_flags(request.settings), "strategy": request.strategy})
    if request.on != "slurm":
        origins = {**origins, "data_dir": "default"}  # the data is where the job will run
    from pal_dist.commands.plan import plan_from_flags  # PyTorch, which only planning needs
    from pal_dist.commands.plan_text import plan_text

    machine = {"gpu": request.gpu, "gpus": str(request.gpus_per_node or 1), "nodes": str(request.nodes)}
    report = plan_from_flags(run, origins, machine, cache_dir=cache_dir)
    text = plan_text(report)
    if not report.fits:
        raise DoesNotFitError(f"not submitted.\n{text}")
    say("\n".join(text.split("\n\n")[:2]))


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """`--name value` and `--name=value` as typed. Raises UserError."""
    remaining, flags = list(arguments), {}
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or (not equals and not remaining):
            raise UserError(f"expected settings as --name value; found {argument}")
        flags[name] = value if equals else remaining.pop(0)
    return flags


def command_of(request: LaunchRequest) -> list[str]:
    """What starts it: one of the scripts, or the scheduler's own command with one."""
    if request.on == "local":
        return ["bash", str(request.scripts / SCRIPTS["local"]), *request.script_arguments]
    if request.on == "slurm":
        size = [f"--nodes={request.nodes}", f"--gpus-per-node={request.gpus_per_node}"]
        return ["sbatch", *size, *request.extra, str(request.scripts / SCRIPTS["slurm"]), *request.script_arguments]
    if request.on == "kubernetes":
        return ["kubectl", "apply", *request.extra, "--filename", "-"]
    return ["sky", "jobs", "launch", "--yes", "--name", request.name, *request.extra]


def manifest_of(request: LaunchRequest) -> str:
    """The filled manifest of Kubernetes or SkyPilot; empty for the others."""
    gpus, processes = request.gpus_per_node or 0, request.processes or request.gpus_per_node or 1
    if request.on == "kubernetes":
        return jobset(
            (request.scripts / "kubernetes" / "jobset.yaml").read_text(encoding="utf-8"),
            name=request.name,
            nodes=request.nodes,
            gpus=gpus,
            processes=processes,
            strategy=request.strategy,
            verb=request.verb,
            arguments=request.settings,
            image=request.image,
            claim=request.claim,
        )
    if request.on == "skypilot":
        return skypilot(
            (request.scripts / "skypilot.yaml").read_text(encoding="utf-8"),
            nodes=request.nodes,
            gpu=request.gpu or "",
            gpus=gpus,
            processes=processes,
            strategy=request.strategy,
            verb=request.verb,
            arguments=request.settings,
        )
    return ""


def preview(request: LaunchRequest) -> str:
    """What would be submitted, and what each node would run. Raises UserError for what the script does not accept."""
    command, manifest = command_of(request), manifest_of(request)
    if manifest:
        return f"{shlex.join(command)}\n\n{manifest.rstrip()}"
    script = command[command.index(str(request.scripts / SCRIPTS[request.on])) :]
    environment = {name: value for name, value in request.environment.items() if not name.startswith("SLURM_")}
    if request.on == "slurm":  # as Slurm tells a job's first node
        environment["SLURM_JOB_NUM_NODES"] = str(request.nodes)
        environment["SLURM_GPUS_ON_NODE"] = str(request.gpus_per_node)
    completed = subprocess.run(["bash", *script, "--dry-run"], capture_output=True, text=True, env=environment)
    if completed.returncode:
        raise UserError(completed.stderr.strip().removeprefix("launch: "))
    return f"{shlex.join(command)}\n\n{completed.stdout.rstrip()}"


def start(request: LaunchRequest) -> tuple[int, str]:
    """Submit it, or run it here: (exit code, what the person should know). Raises UserError without the tool for it."""
    command, manifest = command_of(request), manifest_of(request)
    tool = TOOLS[request.on]
    if shutil.which(tool) is None:
        raise UserError(f"--on {request.on}: there is no `{tool}` here; --dry_run shows what would be submitted")
    environment = dict(request.environment)
    if request.on == "local":
        return subprocess.run(command, env=environment).returncode, ""
    if request.on == "skypilot":
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
            file.write(manifest)
        command.append(file.name)
    completed = subprocess.run(command, input=manifest or None, text=True, env=environment, stdout=subprocess.PIPE)
    text = completed.stdout.strip()
    if request.on == "slurm" and completed.returncode == 0:
        job = text.split()[-1]
        settings = list(request.settings)
        folder = settings[settings.index("--output_dir") + 1] if "--output_dir" in settings else f"runs/{job}"
        text += f"\noutput   pal_dist-{job}.out\nwatch    pal-dist status {folder}\nend it   scancel {job}"
    return completed.returncode, text
