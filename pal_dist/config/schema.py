"""Everything a run can be told, in one frozen tree, with every problem reported at once and its cure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pal_dist.config.checks import problems_of
from pal_dist.core.errors import UserError

DEFAULT_TOKEN_BUDGET = 4096
"""Most tokens of a micro-batch where nobody asks or plans: ask `MemoryConfig.token_budget`."""


@dataclass(frozen=True)
class SettingUse:
    """What a setting is good for, beside being a run's: the metadata of its field."""

    resumable: bool = False
    """May differ when a run is resumed: it changes nothing that a step computes."""
    same_group: bool = False
    """Runs that differ in it alone are still one group of a comparison."""
    per_node: bool = False
    """May differ from node to node, as paths do."""
    for_saved_model: bool = False
    """May be given anew when a saved model is evaluated or asked."""
    makes_corpus: bool = False
    """Decides, with the file, the task and the tokenizer, which tokens a corpus has."""


def setting(default: Any, **use: bool) -> Any:
    """A field with this default that is good for the named uses (see `SettingUse`)."""
    return field(default=default, metadata={"use": SettingUse(**use)})


@dataclass(frozen=True)
class DataConfig:
    data_dir: str = setting("builtin", same_group=True, per_node=True, for_saved_model=True)
    """Folder with the tasks' files; `builtin` writes a small synthetic corpus for sst, para and sts."""

    tasks: tuple[str, ...] = ("sst", "para", "sts")
    """Tasks, separated by commas: names that `pal-dist tasks` lists, or paths of task yamls."""

    max_length: int = setting(128, for_saved_model=True, makes_corpus=True)
    """Longest sequence in word pieces, special tokens included; longer texts are cut, counted and reported."""

    max_characters: int = setting(20_000, for_saved_model=True, makes_corpus=True)
    """Longest text in characters; a longer one is a bad row (most often an unclosed quote that swallowed the file)."""

    bad_rows: Literal["damaged", "skip", "stop"] = setting("damaged", for_saved_model=True, makes_corpus=True)
    """What a bad row does. damaged: skip rows with missing fields or empty values, stop at rows that contradict the
    task (label out of range, text too long). skip: skip all of them. stop: stop at the first. Always named, counted."""

    cache_dir: str | None = setting(None, resumable=True, same_group=True, per_node=True, for_saved_model=True)
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

    attention: Literal["auto", "flash", "efficient", "padded", "plain"] = setting("auto", resumable=True)
    """Attention's kernel. flash: packed rows in 16 bits, from capability 8.0. efficient: packed rows, any GPU. padded:
    rows padded to the longest, by whichever kernel PyTorch has for it. plain: matrix products that keep every score.
    auto: on a GPU the quicker of flash and efficient for the run's rows, measured once; on a CPU plain."""

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
    """Examples are shuffled, then made into batches within windows of this many batches, whose order is random."""

    batch_lengths: Literal["auto", "alike", "even"] = "auto"
    """Which examples of a window make a batch. alike: those of like length. even: of all lengths, each batch with
    nearly as many tokens, so that steps have few sizes (`cuda_graphs`). auto: even on a GPU, alike on a CPU, whose
    attention goes by length; a run goes on as it began."""


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
    memory: Literal["auto", "plan_only", "off"] = setting("auto", resumable=True)
    """auto: plan before the run, prove the plan with the largest micro-batch, survive the rest. plan_only: plan
    without the proof. off: neither (steps that run out of memory are still run again in smaller micro-batches)."""

    tokens_per_micro_batch: int | None = setting(None, resumable=True, for_saved_model=True)
    """Most tokens that go through the model at once on one rank. Sets memory, never the gradient.
    None: the most that the plan finds room for; 4096 with `memory: off`."""

    checkpoint_layers: int | None = setting(None, resumable=True)
    """Gradient checkpointing: every how many encoder layers one is computed again in backward instead of kept. 1: all,
    2: every other, 0: none. None: as the plan needs it; 0 with `memory: off`. Never changes the gradient."""

    @property
    def token_budget(self) -> int:
        """Most tokens of a micro-batch where nobody plans: as asked, else the default."""
        return self.tokens_per_micro_batch or DEFAULT_TOKEN_BUDGET


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
    output_dir: str | None = setting(None, resumable=True, same_group=True, per_node=True)
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

    strategy: str = setting("auto", resumable=True)
    """How the model is spread over processes: a name from accelerate_configs (ddp, zero1, zero2, zero3, zero2_offload,
    zero3_offload, fsdp2, ...) or a yaml's path. auto: as the launcher's config says, else every process has all."""

    cuda_graphs: Literal["auto", "off", "static"] = setting("auto", resumable=True, same_group=True)
    """Whether micro-batches are replayed as CUDA graphs, so that a GPU never waits for the host to start its kernels.
    auto: on a GPU, where the plan finds that it pays and fits. static: the same fixed sizes and buffers, but each
    kernel started as usual, on any device (to tell a graph's fault from its sizes')."""

    compile: Literal["auto", "on", "off"] = setting("auto", resumable=True, same_group=True)
    """Whether parts of the layers are compiled to fewer kernels. auto: on a GPU, where the run's steps are estimated to
    repay the time that it takes, which is said."""

    hang_minutes: float = setting(30.0, resumable=True, same_group=True)
    """Several processes: minutes without progress after which every one of them ends and says where each one stood."""

    precision: Literal["auto", "fp32", "fp16", "bf16"] = setting("auto", for_saved_model=True)
    """auto: bf16 on GPUs of capability 8.0 and above, fp16 below (a T4 only emulates bf16), fp32 on a CPU."""

    seed: int = setting(0, same_group=True)
    """Seed of initial weights, dropout, sampling and shuffling."""

    evaluate_every: str = setting("epoch", resumable=True)
    """Optimizer steps between evaluations on the dev split, or `epoch`, or `none` (only at the end)."""

    patience: int | None = setting(None, resumable=True)
    """Stop after this many evaluations without a better mean; None: never."""

    save_every: str = setting("evaluation", resumable=True, same_group=True)
    """When checkpoints are written: a number of optimizer steps, minutes such as `15m`, or `evaluation`. Each
    evaluation writes one in any case."""

    keep_checkpoints: int = setting(2, resumable=True, same_group=True)
    """Checkpoints kept, the newest ones. The best model is kept beside them, under `model`."""

    keep_best: Literal["mean", "each", "parts"] = "mean"
    """mean: keep the model with the best mean of headline metrics. each: also keep each task's best model. parts
    (pretrain): keep one model in which each task has its adapter and head as they were at that task's own best."""

    log_every: int = setting(10, resumable=True, same_group=True)
    """Optimizer steps between log entries."""

    resume: Literal["auto", "no"] = setting("auto", resumable=True, same_group=True)
    """auto: resume from the last checkpoint in `output_dir`, if it is of the same run. no: `output_dir` must be new."""

    def steps_between_evaluations(self, steps_per_epoch: int) -> int:
        """`evaluate_every` in optimizer steps; 0: there is no evaluation but the last."""
        if self.evaluate_every == "epoch":
            return steps_per_epoch
        return 0 if self.evaluate_every == "none" else int(self.evaluate_every)


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
        problems = list(problems_of(self))
        if problems:
            raise UserError("\n".join(problems))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every value by section and name, such as JSON can hold; `resolve.run_from_dict` is the inverse."""
        return {
            section: {name: json_value(value) for name, value in values.items()}
            for section, values in asdict(self).items()
        }


def json_value(value: Any) -> Any:
    """A setting's value; a number without bound, which JSON does not have, as text: `inf`."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value
