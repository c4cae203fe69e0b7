"""A run put together from its config: files, corpora, model, engine, trainer; and saved models opened again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pal_dist import __version__
from pal_dist.config.resolve import run_from_dict
from pal_dist.config.schema import UNPLANNED_TOKENS, ModelConfig, RunConfig, default_learning_rate
from pal_dist.core.atomic_io import write_json
from pal_dist.core.errors import StoppedError, UserError
from pal_dist.data.batching import Schedule
from pal_dist.data.sampling import Sampling
from pal_dist.data.token_cache import Corpus, load_tokenizer
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.strategy import Strategy
from pal_dist.models.adapters import Adapter
from pal_dist.models.export import export_model, kept_parts
from pal_dist.models.multi_task import MultiTaskBert, build_model, check_model_options, load_model
from pal_dist.models.pretrained import read_model_config
from pal_dist.monitoring.report import Report, RunReport
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.optim.task_weighting import LEARNED_VARIANCES, LearnedVariances
from pal_dist.tasks.registry import Task, resolve_tasks
from pal_dist.training.checkpoint import load_moments, load_state, load_values
from pal_dist.training.feature_cache import FeatureCache
from pal_dist.training.fit_memory import apply_plan, plan_memory, prove, use_one_micro_batch_per_task
from pal_dist.training.inputs import InputPaths, load_corpora, locate
from pal_dist.training.run_folder import open_folder
from pal_dist.training.run_state import RunState
from pal_dist.training.summary import collect_results, start_lines, summary
from pal_dist.training.trainer import Trainer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train(run: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> dict[str, Any]:
    """The whole of `pal-dist train`; returns the results, on every rank. Raises UserError."""
    trainer = set_up(run, origins, cache_dir=cache_dir)
    try:
        with trainer.preemption, trainer.report.recorded():
            trainer.fit()
            results = collect_results(trainer)
            if trainer.engine.is_main:
                write_json(trainer.folder / "results.json", results)
                trainer.report.state("finished", trainer.state.step)
                trainer.report.lines("", *summary(results, trainer))
        trainer.report.close()
        trainer.engine.close()
    except StoppedError:  # all ranks have agreed on it: none of them is lost to the others
        trainer.engine.close()
        raise
    finally:
        trainer.engine.release()
    return results


def set_up(run: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> Trainer:
    """Everything a run needs, ready for its next step; what is about to happen has been said. Raises UserError."""
    tasks = resolve_tasks(run.data.tasks)
    sources = locate(run, cache_dir)
    encoder = read_model_config(sources.model_dir)
    check_model_options(sources.model_dir.name, encoder, run.model, run.data.max_length)
    tokenizer = load_tokenizer(sources.model_dir)
    engine = Engine(precision=run.train.precision, strategy=run.train.strategy)
    check_compatible(run, engine.strategy)
    engine.group.use_all_nodes()
    engine.group.watch(60 * run.train.hang_minutes)
    corpora = load_corpora(run, tasks, "train", sources, tokenizer, progress=engine.is_main)
    dev = load_corpora(run, tasks, "dev", sources, tokenizer, optional=True, progress=engine.is_main)
    torch.manual_seed(run.train.seed)
    model = build_model(sources.model_dir, tasks, run.model, run.data.max_length).to(engine.device)
    if run.balance.weighting == LEARNED_VARIANCES:
        model.add_module(LEARNED_VARIANCES, LearnedVariances(tasks).to(engine.device))
    if run.train.mode == "pretrain":
        model.freeze_encoder()
    rate = run.optimizer.learning_rate or default_learning_rate(run.train.mode, model.config.hidden_size)
    schedule, total = plan_steps(run, list(corpora.values()))
    counts = model.parameter_counts()  # now, while every parameter is whole
    padding_id, cached = model.config.pad_token_id or 0, run.train.features == "auto" and model.trains_heads_only
    planned = None if cached else plan_memory(run, model, engine, schedule)
    content = {f"train/{task}": found.key for task, found in corpora.items()}
    content |= {f"dev/{task}": found.key for task, found in dev.items()}
    check_same_run(run, content, engine)
    # Only now is the folder claimed: a start that failed above leaves nothing behind.
    folder, last = open_folder(run, origins, content, engine)
    state = RunState(**load_state(last, engine)) if last else RunState()
    if last:
        load_values(last, model)
    features = None
    if cached:  # before the engine may share out the model
        budget = run.memory.tokens_per_micro_batch or UNPLANNED_TOKENS
        features = FeatureCache(model, engine, sources.cache_dir, budget=budget, padding_id=padding_id)
        corpora, dev = features.all_of(tasks, corpora), features.all_of(tasks, dev)
    engine.prepare(model, build_optimizer(model, run.optimizer, rate))
    if last:
        load_moments(last, engine)
    apply_plan(state, run, planned, engine)
    if features:
        use_one_micro_batch_per_task(state, engine, schedule)

    def save(name: str, metrics: dict[str, dict[str, float]], kept: Sequence[str] = ()) -> None:
        values = {name: value for name, value in engine.values().items() if not name.startswith(LEARNED_VARIANCES)}
        if engine.is_main:
            values |= kept_parts(folder / name, kept)
            card = {
                "encoder": run.model.model, "adapter": run.model.adapter, "mode": run.train.mode, "step": state.step,
                "learning_rate": rate, "batch_size": run.batch.batch_size, "sampling": run.batch.sampling,
                "seed": run.train.seed, "synthetic": sources.synthetic, "pal-dist": __version__,
            }  # fmt: skip
            export_model(
                model, folder / name, values=values, source=sources.model_dir, card=card, counts=counts, metrics=metrics
            )

    report = Report()
    if engine.is_main:
        report = RunReport(folder, step=state.step, total_steps=total, job=engine.group.job)
    trainer = Trainer(
        run, engine, tasks, list(corpora.values()), dev, schedule=schedule, total_steps=total, peak_rate=rate,
        folder=folder, report=report, save=save, state=state,
        padding_id=padding_id, parameters=counts,
    )  # fmt: skip
    with report.recorded():
        proof = features.lines() if features else prove(trainer, planned)
    if features and engine.is_main:
        features.record(folder / "memory.json")
    report.lines(*start_lines(trainer, model, resumed=last, memory=proof))
    return trainer


def check_compatible(run: RunConfig, strategy: Strategy) -> None:
    """Raises UserError for combinations known to be wrong, with what to do instead."""
    problems = []
    if strategy.kind != "replicated":
        if run.batch.step_tasks == "one":
            problems.append(
                f"--step_tasks one under {strategy.name}: it feeds zeros to the tasks that a step does not serve, so "
                f"AdamW's momentum and decay still move them; use --step_tasks all, or --strategy ddp"
            )
        if Adapter.registry[run.model.adapter].wakes:
            problems.append(
                f"--adapter {run.model.adapter} under {strategy.name}: it feeds zeros to what is still asleep, so "
                f"weight decay moves it and its moments start with a wrong count; use --strategy ddp"
            )
        if run.optimizer.optimizer != "adamw":
            problems.append(
                f"--optimizer {run.optimizer.optimizer} under {strategy.name}: its 8-bit blocks would straddle "
                f"parameters and embeddings would lose their 32 bits; use --optimizer adamw, or --strategy ddp"
            )
    if problems:
        raise UserError("\n".join(problems))


def check_same_run(run: RunConfig, content: dict[str, str], engine: Engine) -> None:
    """Raises UserError, on every rank, where ranks were given different settings or see different data (law 9)."""
    mine = {name: value for section in run.to_dict().values() for name, value in section.items()} | content
    for local in ("cache_dir", "data_dir", "output_dir"):  # paths may differ from node to node
        mine.pop(local)
    fingerprint = zlib.crc32(json.dumps(mine, sort_keys=True, default=str).encode())
    if len(set(engine.gather(fingerprint))) > 1:
        everyone = engine.gather(mine)
        lines = [
            f"  {name}: " + ", ".join(f"rank {rank} has {found.get(name)!r}" for rank, found in enumerate(everyone))
            for name in everyone[0]
            if any(found.get(name) != everyone[0][name] for found in everyone)
        ]
        raise UserError("the ranks were not given the same run:\n" + "\n".join(lines))


def plan_steps(run: RunConfig, corpora: list[Corpus]) -> tuple[Schedule, int]:
    """The schedule of examples and the number of optimizer steps."""
    sampling = Sampling(
        kind=run.batch.sampling,
        sizes=tuple(map(len, corpora)),
        batch_size=run.batch.batch_size,
        step_tasks=run.batch.step_tasks,
        epochs=run.train.epochs,
        seed=run.train.seed,
        epoch_steps=run.batch.steps_per_epoch,
    )
    total = run.train.epochs * sampling.steps_per_epoch
    if run.train.max_steps is not None:
        total = min(total, run.train.max_steps)
    return Schedule(sampling, [corpus.lengths for corpus in corpora], window=run.batch.window_batches), total


@dataclass(frozen=True)
class SavedModel:
    """A saved model ready to answer."""

    model: MultiTaskBert
    tokenizer: Tokenizer
    engine: Engine
    run: RunConfig
    sources: InputPaths
    tasks: dict[str, Task]
    folder: Path


def open_model(path: Path, overrides: dict[str, Any], *, cache_dir: Path) -> SavedModel:
    """A run's folder or a model's own folder; `overrides` are settings given for this call (data_dir, max_length...).

    Raises UserError where there is no saved model.
    """
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    if not folder.is_dir():
        raise UserError(f"{path}: there is no such run or model folder")
    if not (folder / "config.json").is_file() or (folder == path and (path / "checkpoints").is_dir()):
        raise UserError(f"{path}: expected a run's folder or a saved model, found neither (no model/config.json)")
    saved = path / "config.json" if folder != path else None
    values = json.loads(saved.read_text(encoding="utf-8"))["values"] if saved else {}
    flat = {name: value for section in values.values() for name, value in section.items()}
    model = load_model(folder)
    flat.setdefault("max_length", model.config.trained_length)
    run = run_from_dict({"all": {**flat, **overrides, "model": str(folder)}})
    sources = locate(run, cache_dir)
    engine = Engine(precision=run.train.precision)
    engine.model = model.to(engine.device)
    check_model_options(folder.name, read_model_config(folder), ModelConfig(), run.data.max_length)
    return SavedModel(model, load_tokenizer(folder), engine, run, sources, model.config.task_table(), path)
