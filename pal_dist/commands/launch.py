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

from pal_dist.commands.help import LAUNCH_OPTIONS
from pal_dist.commands.manifests import jobset, skypilot
from pal_dist.config.resolve import from_command_line
from pal_dist.core.console import say
from pal_dist.core.errors import DoesNotFitError, UserError
from pal_dist.distributed.strategy import folder_of, read_strategy

PLACES = ("slurm", "local", "kubernetes", "skypilot")
VERBS = ("train", "profile", "doctor", "evaluate")
SCRIPTS = {"slurm": "slurm/train.sbatch", "local": "local.sh"}
TOOLS = {"slurm": "sbatch", "kubernetes": "kubectl", "skypilot": "sky", "local": "bash"}


@dataclass(frozen=True)
class Launch:
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
    def own(self) -> list[str]:
        """Options of the launch scripts."""
        words = [self.verb, "--strategy", self.strategy]
        if self.processes is not None:
            words += ["--processes", str(self.processes)]
        return [*words, *(["--cpu"] if self.gpus_per_node == 0 else []), *self.settings]


def read_launch(words: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """`[--nodes N ...] -- train [settings]` as typed. Raises UserError."""
    at = words.index("--") if "--" in words else len(words)
    own, rest = list(words[:at]), list(words[at + 1 :])
    if not rest or rest[0] not in VERBS:
        raise UserError(
            f"use: pal-dist launch [--nodes N ...] -- train [settings of train] (or {', '.join(VERBS[1:])})"
        )
    values: dict[str, str] = {}
    while own:
        word = own.pop(0)
        name, given, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in LAUNCH_OPTIONS or not word.startswith("--"):
            known = ", ".join(f"--{each}" for each in LAUNCH_OPTIONS)
            raise UserError(
                f"unknown setting {word} of launch: known are {known}; what the verb takes goes after `-- {rest[0]}`"
            )
        if name == "dry_run":
            values[name] = value or "true"
        elif not given and not own:
            raise UserError(f"{word} needs a value")
        else:
            values[name] = value if given else own.pop(0)
    return _checked(values, rest, environment)


def _checked(values: dict[str, str], rest: list[str], environment: Mapping[str, str]) -> Launch:
    for name in ("nodes", "gpus_per_node", "processes"):
        if name in values and (not values[name].isdigit() or (name != "gpus_per_node" and values[name] == "0")):
            raise UserError(f"--{name} takes a whole number; found {values[name]!r}")
    on = values.get("on", "slurm" if shutil.which("sbatch") else "local")
    if on not in PLACES:
        raise UserError(f"--on is one of {', '.join(PLACES)}; found {on!r}")
    nodes = int(values.get("nodes", "1"))
    if on == "local" and nodes > 1:
        raise UserError(f"--nodes {nodes} on this one machine: name the scheduler, --on slurm, kubernetes or skypilot")
    gpus = int(values["gpus_per_node"]) if "gpus_per_node" in values else None if on == "local" else 1
    if on == "skypilot" and gpus and "gpu" not in values:
        raise UserError("--on skypilot needs --gpu KIND, the GPU to rent")
    strategy = values.get("strategy", "ddp")
    read_strategy(strategy)
    return Launch(
        on, rest[0], rest[1:], nodes, gpus, int(values["processes"]) if "processes" in values else None, strategy,
        values.get("gpu"), values.get("plan", "auto") != "off", shlex.split(values.get("extra", "")),
        values.get("name", "pal-dist"), values.get("image"), values.get("claim"),
        values.get("dry_run", "false").lower() == "true", environment,
    )  # fmt: skip


def fits(launch: Launch, cache_dir: Path) -> None:
    """Raises DoesNotFitError, with the plan, before anything is submitted. Says why where it cannot be known."""
    if launch.verb != "train" or not launch.plan or launch.on == "local":  # local runs plan for the device they see
        return
    if launch.gpus_per_node == 0:
        say("memory: on processors it is planned on the nodes themselves, before the first step")
        return
    if launch.gpu is None:
        raise UserError(
            "which GPU have the nodes? Name its kind, --gpu t4, and it is said now whether the run fits (--plan off: "
            "submit without)"
        )
    flags = {**_pairs(launch.settings), "strategy": launch.strategy}
    run, origins = from_command_line(flags)
    if launch.on != "slurm":
        origins = {**origins, "data_dir": "default"}  # the data is where the job will run
    from pal_dist.commands.plan import ask  # PyTorch, which only planning needs

    asked = {"gpu": launch.gpu, "gpus": str(launch.gpus_per_node or 1), "nodes": str(launch.nodes)}
    found = ask(run, origins, asked, cache_dir=cache_dir)
    if not found.planned.fits:
        raise DoesNotFitError(f"not submitted.\n{found.text()}")
    say("\n".join(found.text().split("\n\n")[:2]))


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """`--name value` and `--name=value` as typed. Raises UserError."""
    left, found = list(words), {}
    while left:
        word = left.pop(0)
        name, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (not given and not left):
            raise UserError(f"expected settings as --name value; found {word}")
        found[name] = value if given else left.pop(0)
    return found


def command_of(launch: Launch) -> list[str]:
    """What starts it: one of the scripts, or the scheduler's own command with one."""
    if launch.on == "local":
        return ["bash", str(launch.scripts / SCRIPTS["local"]), *launch.own]
    if launch.on == "slurm":
        return [
            "sbatch", f"--nodes={launch.nodes}", f"--gpus-per-node={launch.gpus_per_node}", *launch.extra,
            str(launch.scripts / SCRIPTS["slurm"]), *launch.own,
        ]  # fmt: skip
    if launch.on == "kubernetes":
        return ["kubectl", "apply", *launch.extra, "--filename", "-"]
    return ["sky", "jobs", "launch", "--yes", "--name", launch.name, *launch.extra]


def manifest_of(launch: Launch) -> str:
    """The filled manifest of Kubernetes or SkyPilot; empty for the others."""
    gpus, processes = launch.gpus_per_node or 0, launch.processes or launch.gpus_per_node or 1
    if launch.on == "kubernetes":
        text = (launch.scripts / "kubernetes" / "jobset.yaml").read_text(encoding="utf-8")
        return jobset(text, name=launch.name, nodes=launch.nodes, gpus=gpus, processes=processes,
                      strategy=launch.strategy, verb=launch.verb, arguments=launch.settings, image=launch.image,
                      claim=launch.claim)  # fmt: skip
    if launch.on == "skypilot":
        text = (launch.scripts / "skypilot.yaml").read_text(encoding="utf-8")
        return skypilot(text, nodes=launch.nodes, gpu=launch.gpu or "", gpus=gpus, processes=processes,
                        strategy=launch.strategy, verb=launch.verb, arguments=launch.settings)  # fmt: skip
    return ""


def preview(launch: Launch) -> str:
    """What would be submitted, and what each node would run."""
    command, manifest = command_of(launch), manifest_of(launch)
    if manifest:
        return f"{shlex.join(command)}\n\n{manifest.rstrip()}"
    script = command[command.index(str(launch.scripts / SCRIPTS[launch.on])) :]
    told = {}
    if launch.on == "slurm":
        told = {"SLURM_JOB_NUM_NODES": str(launch.nodes), "SLURM_GPUS_ON_NODE": str(launch.gpus_per_node)}
    outside = {name: value for name, value in launch.environment.items() if not name.startswith("SLURM_")}
    ended = subprocess.run(["bash", *script, "--dry-run"], capture_output=True, text=True, env={**outside, **told})
    if ended.returncode:
        raise UserError(ended.stderr.strip().removeprefix("launch: "))
    return f"{shlex.join(command)}\n\n{ended.stdout.rstrip()}"


def start(launch: Launch) -> tuple[int, str]:
    """Submit it, or run it here: (exit code, what the person should know)."""
    command, manifest = command_of(launch), manifest_of(launch)
    tool = TOOLS[launch.on]
    if shutil.which(tool) is None:
        raise UserError(f"--on {launch.on}: there is no `{tool}` here; --dry_run shows what would be submitted")
    environment = dict(launch.environment)
    if launch.on == "local":
        return subprocess.run(command, env=environment).returncode, ""
    if launch.on == "skypilot":
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
            file.write(manifest)
        command.append(file.name)
    ended = subprocess.run(command, input=manifest or None, text=True, env=environment, stdout=subprocess.PIPE)
    said = ended.stdout.strip()
    if launch.on == "slurm" and ended.returncode == 0:
        job = said.split()[-1]
        settings = list(launch.settings)
        folder = settings[settings.index("--output_dir") + 1] if "--output_dir" in settings else f"runs/{job}"
        said += f"\noutput   pal_dist-{job}.out\nwatch    pal-dist status {folder}\nend it   scancel {job}"
    return ended.returncode, said
