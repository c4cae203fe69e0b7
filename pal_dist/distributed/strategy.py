"""How parameters, gradients and optimizer state are spread over processes: read from one accelerate yaml.

The engine runs what is read here and the memory planner counts it: both read the very same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from pal_dist.config.schema import OptimizerConfig
from pal_dist.core.errors import UserError
from pal_dist.core.suggest import did_you_mean

PACKAGE = Path(__file__).parents[1]

ALL_OPTIMIZERS: tuple[str, ...] = get_args(get_type_hints(OptimizerConfig)["optimizer"])

RUN_OWNED = ("gradient_clipping", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
"""Keys of a DeepSpeed json whose values are the run's: the file leaves them "auto", or out."""

FORBIDDEN = {
    "optimizer": "--optimizer and --learning_rate choose it",
    "scheduler": "the learning rate is a function of the step (--warmup)",
    "fp16": "--precision chooses the number format",
    "bf16": "--precision chooses the number format",
    "torch_autocast": "--precision chooses the number format",
}
"""Blocks of a DeepSpeed json that would overrule the run, each with what says it instead."""


@dataclass(frozen=True)
class Strategy:
    """One way to spread a model over processes."""

    name: str
    kind: str = "replicated"
    """replicated: every process holds everything (one process, or DDP). zero: DeepSpeed. fsdp2: torch's fully_shard."""
    stage: int = 0
    """Of ZeRO."""
    offload: bool = False
    """The optimizer's state and update are on the host (under stage 3 the parameters too)."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The json, as it is in the file."""

    @property
    def shares_parameters(self) -> bool:
        """A layer's parameters are gathered from all processes when it runs, so micro-batches wait for each other."""
        return self.stage == 3 or self.kind == "fsdp2"

    @property
    def optimizers(self) -> tuple[str, ...]:
        """What --optimizer may be: anything where every process holds everything, else AdamW alone.

        ZeRO lays parameters one behind the other in a flat buffer that it cuts evenly over the ranks
        (deepspeed/runtime/zero/stage_1_and_2.py, stage3.py), FSDP2 cuts each parameter by rows. So the blocks of 256
        elements whose 8-bit state has one scale (bitsandbytes) would straddle parameters or end at a rank's border,
        and embeddings, which are kept in 32 bits by being the module's own weight, would not be known any more.
        """
        return ALL_OPTIMIZERS if self.kind == "replicated" else ("adamw",)

    def is_like(self, other: Strategy) -> bool:
        """Whether both share out the same things, whatever their files say beside that."""
        return (self.kind, self.stage, self.offload) == (other.kind, other.stage, other.offload)

    @property
    def bucket(self) -> int:
        """Elements of a ZeRO bucket."""
        return int(self.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", 0))

    def deepspeed_config(self, *, max_norm: float) -> dict[str, Any]:
        """The json with the run's values put in. Clipping is always written: DeepSpeed's own default clips at 1."""
        run = {"gradient_clipping": max_norm, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        return {**{key: value for key, value in self.deepspeed.items() if value != "auto"}, **run}


REPLICATED = Strategy("ddp")


def folder_of(name: str) -> Path:
    """`accelerate_configs` or `ds_configs`, in a checkout or in an installed wheel."""
    beside = PACKAGE / name
    return beside if beside.is_dir() else PACKAGE.parent / name


def strategy_names() -> list[str]:
    return sorted(path.stem for path in folder_of("accelerate_configs").glob("*.yaml"))


def packaged_name(strategy: Strategy) -> str:
    """The packaged strategy that is planned for this one: itself, or for a file of one's own its like."""
    if strategy.kind == "replicated":
        return REPLICATED.name
    if strategy.name in strategy_names():
        return strategy.name
    return (
        strategy.kind if strategy.kind == "fsdp2" else f"zero{strategy.stage}{'_offload' if strategy.offload else ''}"
    )


def read_strategy(name: str) -> Strategy:
    """The strategy of a packaged yaml (`zero2`) or of a file (`mine.yaml`). Raises UserError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = folder_of("accelerate_configs") / f"{name}.yaml"
        if not path.is_file():
            names = strategy_names()
            hint = did_you_mean(name, names, otherwise=f"known: {', '.join(names)}, or a yaml's path")
            raise UserError(f"--strategy {name}: there is no such strategy; {hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--strategy {name}: {path} is not readable: {error}") from None
    kind = values.get("distributed_type") if isinstance(values, dict) else None
    if kind == "DEEPSPEED":
        file = (values.get("deepspeed_config") or {}).get("deepspeed_config_file")
        if not file:
            raise UserError(f"{path}: expected deepspeed_config with a deepspeed_config_file, found none")
        return from_json(path.stem, Path(file), beside=path.parent)
    if kind == "FSDP":
        version = (values.get("fsdp_config") or {}).get("fsdp_version", 1)
        if version != 2:
            raise UserError(f"{path}: FSDP {version} is not supported; write fsdp_version: 2")
        return Strategy(path.stem, "fsdp2")
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU", None) and isinstance(values, dict):
        return Strategy(path.stem)
    raise UserError(f"{path}: distributed_type is {kind!r}; known are NO, MULTI_GPU, DEEPSPEED and FSDP")


def from_json(name: str, file: Path, *, beside: Path | None = None) -> Strategy:
    """The strategy of a DeepSpeed json; a relative path is looked for here, beside the yaml, and among the packaged
    ones. Raises UserError where it is missing, is no json, or says what is the run's to say."""
    places = [file, *([] if beside is None else [beside / file, beside.parent / file])]
    places.append(folder_of("ds_configs") / file.name)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"strategy {name}: there is no {file} (looked in {', '.join(str(p.parent) for p in places)})")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected json: {error}") from None
    problems = [f"`{key}` is not for this file: {cure}" for key, cure in FORBIDDEN.items() if key in values]
    problems += [
        f'`{key}` is the run\'s: write "auto" or leave it out, found {values[key]!r}'
        for key in RUN_OWNED
        if values.get(key, "auto") != "auto"
    ]
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        problems.append(f"`zero_optimization.stage` is 1, 2 or 3; found {stage!r}")
    devices = [zero.get(part, {}).get("device", "none") for part in ("offload_optimizer", "offload_param")]
    if any(device not in ("none", "cpu") for device in devices):
        problems.append("offload is to `cpu` or `none`; NVMe is not supported")
    if values.get("zero_force_ds_cpu_optimizer", True) and devices[0] == "cpu":
        problems.append("`zero_force_ds_cpu_optimizer` must be false: else AdamW becomes an Adam with coupled decay")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return Strategy(name, "zero", stage, "cpu" in devices, values)


def from_launcher(environment: Mapping[str, str]) -> Strategy | None:
    """What `accelerate launch --config_file` asked for, as its environment says; None: nothing but processes."""
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        if not file or file == "none":
            raise UserError("the launcher asks for DeepSpeed without a deepspeed_config_file; see accelerate_configs/")
        return from_json(Path(file).stem, Path(file))
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if environment.get("FSDP_VERSION", "1") != "2":
            raise UserError("the launcher asks for FSDP 1; write fsdp_version: 2")
        return Strategy("fsdp2", "fsdp2")
    return None


def choose_strategy(asked: str, environment: Mapping[str, str]) -> Strategy:
    """`asked` by --strategy, else what the launcher says, else every process holds everything.

    Raises UserError where the two contradict each other.
    """
    launched = from_launcher(environment)
    if asked == "auto":
        return launched or REPLICATED
    chosen = read_strategy(asked)
    if launched is not None and not chosen.is_like(launched):
        raise UserError(f"--strategy {asked}, but the launcher's config asks for {launched.name}: give one of them")
    return chosen
