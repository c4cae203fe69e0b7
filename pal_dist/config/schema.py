"""Everything a run can be told, in one frozen tree, with every problem reported at once and its cure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pal_dist.core.errors import UserError

UNPLANNED_TOKENS = 4096
"""Tokens of a micro-batch where nobody plans."""


@dataclass(frozen=True)
class DataConfig:
    data_dir: str = "builtin"
    """Folder with the tasks' files; `builtin` writes a small synthetic corpus for sst, para and sts."""

    tasks: tuple[str, ...] = ("sst", "para", "sts")
    """Tasks, separated by commas: names that `pal-dist tasks` lists, or paths of task yamls."""

    max_length: int = 128
    """Longest sequence in word pieces, special tokens included; longer texts are cut, counted and reported."""

    max_characters: int = 20_000
    """Longest text in characters; a longer one is a bad row (most often an unclosed quote that swallowed the file)."""

    bad_rows: Literal["damaged", "skip", "stop"] = "damaged"
    """What a bad row does. damaged: skip rows with missing fields or empty values, stop at rows that contradict the
    task (label out of range, text too long). skip: skip all of them. stop: stop at the first. Always named, counted."""

    cache_dir: str | None = None
    """Where tokenised corpora are kept; None: `$XDG_CACHE_HOME/pal_dist` or `~/.cache/pal_dist`."""


@dataclass(frozen=True)
class ModelConfig:
    model: str = "minilm"
    """Encoder: `minilm` (comes with the `offline` extra), a name on the model hub, or a folder."""

    adapter: str = "pal"
    """Kind of the per-task adapter in the shared layers: `pal`, `progressive_pal` (PALs wake from the top layer down
    during the first half of the run), `low_rank`, `houlsby`, `houlsby_parallel`, `houlsby_plus_pal`, `top_attention`,
    `lhuc`, `lora`, or `none`."""

    adapter_hidden: int | None = None
    """Width of the adapter. None: the authors', for a PAL 204 (192, 12 heads of 16, suits tensor cores better)."""

    adapter_heads: int = 12
    """Attention heads of a PAL or of attention on top: 12 as in the paper; the authors' program has 6."""

    adapter_bottleneck: int = 50
    """Width of the bottleneck that `houlsby_plus_pal` has beside its PAL."""

    adapter_layers: tuple[int, ...] | None = None
    """Encoder layers that carry adapters, from 0; None: all."""

    pooling: Literal["pooler", "first", "mean"] | None = None
    """What the heads read. pooler: tanh(dense(first token)); first: the first token; mean: the mean over all tokens.
    None: pooler, BERT's own way."""

    head_layers: int = 0
    """Hidden layers (dropout, linear, ReLU) of each task's head before its output layer."""

    dropout: float | None = None
    """Probability of dropout everywhere in the model; None: the checkpoint's own (0.1 for BERT)."""

    head_dropout: float | None = None
    """Probability of dropout in the heads; None: as `dropout`."""


@dataclass(frozen=True)
class BatchConfig:
    batch_size: int = 32
    """Examples of one task in one optimizer step, over all ranks."""

    sampling: Literal["round_robin", "random", "proportional", "sqrt", "annealed"] = "round_robin"
    """How often tasks are served: alike in turn, alike at random, or with chances proportional to
    (number of examples) ** alpha, where alpha is 1, 0.5, or falls from 1 to 0.2 over the epochs."""

    step_tasks: Literal["all", "one"] = "all"
    """all: every optimizer step serves every task (task-complete). one: one task per optimizer step."""

    steps_per_epoch: int | None = None
    """Optimizer steps that make an epoch. None: as many as serve the number of examples that all files have."""

    window_batches: int = 64
    """Examples are shuffled, then sorted by length within windows of this many batches, whose batches are shuffled."""


@dataclass(frozen=True)
class BalanceConfig:
    weighting: Literal["examples", "equal", "scale", "uncertainty"] = "examples"
    """What a task's loss counts in a step. examples: as its number of them. equal: all tasks alike. scale: alike, each
    loss in units of the best constant prediction's on the training labels. uncertainty: alike, divided by variances
    that are learned with the model (Kendall et al. 2018)."""

    conflict: Literal["none", "watch", "pcgrad", "gradvac"] = "none"
    """What is done where two tasks' gradients of the shared encoder point against each other. none: they are summed.
    pcgrad (Yu et al. 2020) and gradvac (Wang et al. 2020) turn them; watch only logs their cosines. All three keep one
    gradient of the encoder for each task."""


@dataclass(frozen=True)
class MemoryConfig:
    memory: Literal["auto", "plan_only", "off"] = "auto"
    """auto: plan before the run, prove the plan with the worst batch of each task, survive the rest. plan_only: plan
    without the proof. off: neither (steps that run out of memory are still run again in smaller micro-batches)."""

    tokens_per_micro_batch: int | None = None
    """Most tokens, padding included, that go through the model at once on one rank. Sets memory, never the gradient.
    None: the most that the plan finds room for; 4096 with `memory: off`."""

    checkpoint_layers: int | None = None
    """Gradient checkpointing: every how many encoder layers one is computed again in backward instead of kept. 1: all,
    2: every other, 0: none. None: as the plan needs it; 0 with `memory: off`. Never changes the gradient."""


@dataclass(frozen=True)
class OptimizerConfig:
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw: PyTorch's fused AdamW. The 8-bit ones are bitsandbytes'; embeddings and small tensors stay in 32 bits."""

    learning_rate: float | None = None
    """Peak learning rate. None: 1e-3 in pretrain; in finetune the paper's 1e-5 for encoders of BERT-base width or more,
    and 2e-4 for narrower ones, where it was better than 1e-4 (BENCHMARKS.md)."""

    weight_decay: float = 0.01
    """Decoupled weight decay of weight matrices; biases and LayerNorms have none."""

    warmup: float = 0.1
    """Share of all steps over which the learning rate rises linearly from 0."""

    schedule: Literal["linear", "constant"] = "linear"
    """The learning rate after that. linear: it falls to 0 at the last step. constant: it stays at its peak."""

    max_gradient_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0: never."""


def default_learning_rate(mode: str, encoder_hidden: int) -> float:
    """The peak rate where none is given.

    pretrain and BERT-base: the paper's (section 5.2). Narrower encoders: measured on MiniLM (BENCHMARKS.md).
    """
    if mode == "pretrain":
        return 1e-3
    return 1e-5 if encoder_hidden >= 768 else 2e-4


@dataclass(frozen=True)
class TrainConfig:
    output_dir: str | None = None
    """Folder of the run; None: `runs/NUMBER`, the next free number."""

    mode: Literal["finetune", "pretrain"] = "finetune"
    """finetune: everything is trained. pretrain: the encoder is frozen; adapters and heads are trained."""

    features: Literal["auto", "off"] = "auto"
    """auto: where nothing below the heads is trained (pretrain without adapters), what they read is computed once, as
    in evaluation (the encoder's dropout is off), and kept in `cache_dir`. off: the encoder runs in every step, with
    dropout."""

    epochs: int = 3
    """Passes; what an epoch is under the chosen sampling is printed before step 1."""

    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever `epochs` says; None: no such limit."""

    strategy: str = "auto"
    """How the model is spread over processes: a name from accelerate_configs (ddp, zero1, zero2, zero3, zero2_offload,
    zero3_offload, fsdp2, ...) or a yaml's path. auto: as the launcher's config says, else every process has all."""

    hang_minutes: float = 30.0
    """Several processes: minutes without progress after which every one of them ends and says where each one stood."""

    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: bf16 on GPUs of capability 8.0 and above, fp16 below (a T4 only emulates bf16), fp32 on a CPU."""

    seed: int = 0
    """Seed of initial weights, dropout, sampling and shuffling."""

    evaluate_every: str = "epoch"
    """Optimizer steps between evaluations on the dev split, or `epoch`, or `none` (only at the end)."""

    patience: int | None = None
    """Stop after this many evaluations without a better mean; None: never."""

    save_every: str = "evaluation"
    """When checkpoints are written: a number of optimizer steps, minutes such as `15m`, or `evaluation`. Each
    evaluation writes one in any case."""

    keep_checkpoints: int = 2
    """Checkpoints kept, the newest ones. The best model is kept beside them, under `model`."""

    keep_best: Literal["mean", "each", "parts"] = "mean"
    """mean: keep the model with the best mean of headline metrics. each: also keep each task's best model. parts
    (pretrain): keep one model in which each task has its adapter and head as they were at that task's own best."""

    log_every: int = 10
    """Optimizer steps between log entries."""

    resume: Literal["auto", "no"] = "auto"
    """auto: go on from the last checkpoint in `output_dir`, if it is of the same run. no: `output_dir` must be new."""


@dataclass(frozen=True)
class RunConfig:
    """The whole run. Sections only group the fields: names are unique, so a flag is a field's name."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise UserError("\n".join(problems))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return asdict(self)


def _problems(run: RunConfig) -> Iterator[str]:
    """Every rule that the values break, each with its cure."""
    data, model, batch, optimizer, train = run.data, run.model, run.batch, run.optimizer, run.train
    tokens = run.memory.tokens_per_micro_batch
    positive = {
        "max_length": data.max_length - 2, "max_characters": data.max_characters, "batch_size": batch.batch_size,
        "adapter_heads": model.adapter_heads, "adapter_bottleneck": model.adapter_bottleneck, "epochs": train.epochs,
        "window_batches": batch.window_batches, "log_every": train.log_every,
        "keep_checkpoints": train.keep_checkpoints,
    }  # fmt: skip
    for name, value in positive.items():
        if value < 1:
            yield f"--{name} is too small: it must be at least {3 if name == 'max_length' else 1}"
    for name, maybe in {
        "max_steps": train.max_steps,
        "patience": train.patience,
        "adapter_hidden": model.adapter_hidden,
        "steps_per_epoch": batch.steps_per_epoch,
    }.items():
        if maybe is not None and maybe < 1:
            yield f"--{name} must be at least 1, or none; found {maybe}"
    if run.balance.conflict != "none":
        together = {
            "--step_tasks one serves one task a step: use --step_tasks all": batch.step_tasks == "one",
            "--mode pretrain trains no parameter that tasks share: use --mode finetune": train.mode == "pretrain",
            f"--tasks names {len(data.tasks)}: name two at least": len(data.tasks) < 2,
        }
        for reason, broken in together.items():
            if broken:
                yield f"--conflict {run.balance.conflict} needs several tasks' gradients of one encoder, but {reason}"
    if not data.tasks:
        yield "--tasks is empty: name at least one task (`pal-dist tasks` lists them)"
    for name, share in {"dropout": model.dropout, "head_dropout": model.head_dropout}.items():
        if share is not None and not 0 <= share < 1:
            yield f"--{name} is a probability, from 0 up to but not including 1; found {share}"
    if not 0 <= optimizer.warmup <= 1:
        yield f"--warmup is a share of all steps, from 0 to 1; found {optimizer.warmup}"
    if optimizer.learning_rate is not None and not optimizer.learning_rate > 0:
        yield f"--learning_rate must be above 0; found {optimizer.learning_rate}"
    for name, amount in {
        "weight_decay": optimizer.weight_decay,
        "max_gradient_norm": optimizer.max_gradient_norm,
        "head_layers": model.head_layers,
        "seed": train.seed,
    }.items():
        if not amount >= 0:
            yield f"--{name} must not be negative; found {amount}"
    if tokens is not None and tokens < data.max_length:
        yield (
            f"--tokens_per_micro_batch {tokens} cannot hold one sequence of --max_length {data.max_length}: raise the "
            f"first or lower the second"
        )
    if run.memory.checkpoint_layers is not None and run.memory.checkpoint_layers < 0:
        yield f"--checkpoint_layers is 0 (none), 1 (all) or more; found {run.memory.checkpoint_layers}"
    every = train.evaluate_every
    if every not in ("epoch", "none") and not (every.isdigit() and int(every) > 0):
        yield f"--evaluate_every takes a number of steps, `epoch` or `none`; found {every!r}"
    saves = train.save_every.removesuffix("m")
    if train.save_every != "evaluation" and not (saves.isdigit() and int(saves) > 0):
        yield f"--save_every takes a number of steps, minutes (15m), or `evaluation`; found {train.save_every!r}"
    if train.keep_best == "parts" and train.mode != "pretrain":
        yield (
            "--keep_best parts needs --mode pretrain: where the encoder is trained, parts of different steps do not "
            "belong together; use --keep_best each"
        )
    if not train.hang_minutes > 0:
        yield f"--hang_minutes must be above 0; found {train.hang_minutes}"
    if train.patience is not None and every == "none":
        yield "--patience counts evaluations, and --evaluate_every none makes none: drop one of them"
