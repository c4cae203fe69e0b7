"""The rules that a run's values must keep among themselves; each that is broken is told with its cure.

What a strategy, a device or a model adds to them is checked where those are known: distributed/compatibility.py,
distributed/precision.py, models/multi_task.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pal_dist.config.schema import RunConfig


def problems_of(config: RunConfig) -> Iterator[str]:
    """Every rule that the values break, each with its cure."""
    for rule in RULES:
        yield from rule(config)


def _least_values(config: RunConfig) -> Iterator[str]:
    data, model, batch, train = config.data, config.model, config.batch, config.train
    at_least_one = {
        "max_length": data.max_length - 2,  # [CLS] and [SEP] leave one place
        "max_characters": data.max_characters,
        "batch_size": batch.batch_size,
        "adapter_heads": model.adapter_heads,
        "adapter_bottleneck": model.adapter_bottleneck,
        "epochs": train.epochs,
        "window_batches": batch.window_batches,
        "log_every": train.log_every,
        "keep_checkpoints": train.keep_checkpoints,
    }
    for name, value in at_least_one.items():
        if value < 1:
            yield f"--{name} is too small: it must be at least {3 if name == 'max_length' else 1}"
    at_least_one_or_none = {
        "max_steps": train.max_steps,
        "patience": train.patience,
        "adapter_hidden": model.adapter_hidden,
        "steps_per_epoch": batch.steps_per_epoch,
    }
    for name, maybe in at_least_one_or_none.items():
        if maybe is not None and maybe < 1:
            yield f"--{name} must be at least 1, or none; found {maybe}"


def _not_negative(config: RunConfig) -> Iterator[str]:
    amounts = {
        "weight_decay": config.optimizer.weight_decay,
        "max_gradient_norm": config.optimizer.max_gradient_norm,
        "head_layers": config.model.head_layers,
        "seed": config.train.seed,
    }
    for name, amount in amounts.items():
        if not amount >= 0:
            yield f"--{name} must not be negative; found {amount}"


def _shares(config: RunConfig) -> Iterator[str]:
    for name, probability in {"dropout": config.model.dropout, "head_dropout": config.model.head_dropout}.items():
        if probability is not None and not 0 <= probability < 1:
            yield f"--{name} is a probability, from 0 up to but not including 1; found {probability}"
    if not 0 <= config.optimizer.warmup <= 1:
        yield f"--warmup is a share of all steps, from 0 to 1; found {config.optimizer.warmup}"


def _above_zero(config: RunConfig) -> Iterator[str]:
    rate = config.optimizer.learning_rate
    if rate is not None and not rate > 0:
        yield f"--learning_rate must be above 0; found {rate}"
    if not config.train.hang_minutes > 0:
        yield f"--hang_minutes must be above 0; found {config.train.hang_minutes}"


def _gradient_conflict(config: RunConfig) -> Iterator[str]:
    if config.balance.conflict == "none":
        return
    reasons = {
        "--step_tasks one serves one task a step: use --step_tasks all": config.batch.step_tasks == "one",
        "--mode pretrain trains no parameter that tasks share: use --mode finetune": config.train.mode == "pretrain",
        f"--tasks names {len(config.data.tasks)}: name two at least": len(config.data.tasks) < 2,
    }
    for reason, broken in reasons.items():
        if broken:
            yield f"--conflict {config.balance.conflict} needs several tasks' gradients of one encoder, but {reason}"


def _tasks(config: RunConfig) -> Iterator[str]:
    if not config.data.tasks:
        yield "--tasks is empty: name at least one task (`pal-dist tasks` lists them)"


def _memory(config: RunConfig) -> Iterator[str]:
    tokens, layers = config.memory.tokens_per_micro_batch, config.memory.checkpoint_layers
    if tokens is not None and tokens < config.data.max_length:
        yield (
            f"--tokens_per_micro_batch {tokens} cannot hold one sequence of --max_length {config.data.max_length}: "
            f"raise the first or lower the second"
        )
    if layers is not None and layers < 0:
        yield f"--checkpoint_layers is 0 (none), 1 (all) or more; found {layers}"


def _evaluation_and_saving(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.evaluate_every not in ("epoch", "none") and not _is_count(train.evaluate_every):
        yield f"--evaluate_every takes a number of steps, `epoch` or `none`; found {train.evaluate_every!r}"
    if train.save_every != "evaluation" and not _is_count(train.save_every.removesuffix("m")):
        yield f"--save_every takes a number of steps, minutes (15m), or `evaluation`; found {train.save_every!r}"
    if train.keep_best == "parts" and train.mode != "pretrain":
        yield (
            "--keep_best parts needs --mode pretrain: where the encoder is trained, parts of different steps do not "
            "belong together; use --keep_best each"
        )
    if train.patience is not None and train.evaluate_every == "none":
        yield "--patience counts evaluations, and --evaluate_every none makes none: drop one of them"


def _is_count(text: str) -> bool:
    return text.isdigit() and int(text) > 0


RULES: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _least_values,
    _gradient_conflict,
    _tasks,
    _shares,
    _above_zero,
    _not_negative,
    _memory,
    _evaluation_and_saving,
)
