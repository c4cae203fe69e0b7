"""A run put together from its config: files, corpora, model, engine, trainer; and saved models opened again."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pal_dist import __version__
from pal_dist.batching import Schedule, micro_batches
from pal_dist.checkpoint import checkpoints, load_checkpoint
from pal_dist.config import RunConfig, run_from_dict
from pal_dist.corpus import built_in_corpus
from pal_dist.data import Corpus, load_corpus, load_tokenizer
from pal_dist.engine import Engine
from pal_dist.errors import UserError
from pal_dist.export import export_model
from pal_dist.files import full_disk_is_told, write_json
from pal_dist.model import MultiTaskBert, build_model, load_model
from pal_dist.optim import build_optimizer, default_learning_rate
from pal_dist.pretrained import find_model
from pal_dist.report import Report, RunReport, duration, table
from pal_dist.sampling import Sampling
from pal_dist.tasks import Task, resolve_tasks
from pal_dist.trainer import RunState, Trainer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FREE_TO_CHANGE = {"output_dir", "resume", "log_every", "cache_dir", "tokens_per_micro_batch", "evaluate_every", "patience"}
"""Settings that may differ when a run goes on: none of them changes what a step computes."""


@dataclass(frozen=True)
class Sources:
    """Where a run's inputs are on this machine."""

    data_dir: Path
    cache_dir: Path
    model_dir: Path
    synthetic: bool


def locate(run: RunConfig, cache_dir: Path) -> Sources:
    """Raises UserError for a data folder or a model that is not there."""
    synthetic = run.data.data_dir == "builtin"
    data_dir = built_in_corpus(cache_dir) if synthetic else Path(run.data.data_dir).expanduser()
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir}: there is no such folder")
    return Sources(data_dir, cache_dir, find_model(run.model.model), synthetic)


def load_corpora(
    run: RunConfig, tasks: tuple[Task, ...], split: str, sources: Sources, tokenizer: Tokenizer, *, labelled: bool = True,
    optional: bool = False, progress: bool = True,
) -> dict[str, Corpus]:  # fmt: skip
    """The split of every task; `optional`: tasks without such a file are left out."""
    return {
        task.name: load_corpus(
            task, split, data_dir=sources.data_dir, cache_dir=sources.cache_dir, tokenizer=tokenizer,
            max_length=run.data.max_length, max_characters=run.data.max_characters, bad_rows=run.data.bad_rows,
            labelled=labelled, progress=progress,
        )
        for task in tasks
        if task.file(split) is not None or not optional
    }  # fmt: skip


def train(run: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> dict[str, Any]:
    """The whole of `pal-dist train`; returns the results, on every rank. Raises UserError."""
    begun = time.perf_counter()
    tasks = resolve_tasks(run.data.tasks)
    sources = locate(run, cache_dir)
    tokenizer = load_tokenizer(sources.model_dir)
    engine = Engine(precision=run.train.precision)
    corpora = load_corpora(run, tasks, "train", sources, tokenizer, progress=engine.is_main)
    dev = load_corpora(run, tasks, "dev", sources, tokenizer, optional=True, progress=engine.is_main)
    folder, last = open_folder(run, origins, engine)

    torch.manual_seed(run.train.seed)
    model = build_model(sources.model_dir, tasks, run.model).to(engine.device)
    check_length(run.data.max_length, model, sources.model_dir)
    if run.train.mode == "pretrain":
        model.freeze_encoder()
    rate = run.optimizer.learning_rate or default_learning_rate(run.train.mode, model.config.hidden_size)
    engine.prepare(model, build_optimizer(model, run.optimizer, rate))
    torch.manual_seed(run.train.seed + 1 + engine.rank)  # ranks draw different dropout

    schedule, total = plan_steps(run, list(corpora.values()))
    report = RunReport(folder) if engine.is_main else Report()
    state = RunState(**_fields_of(RunState, load_checkpoint(last, engine))) if last else RunState()

    def save(name: str, metrics: dict[str, dict[str, float]]) -> None:
        if engine.is_main:
            card = {
                "encoder": run.model.model, "adapter": run.model.adapter, "mode": run.train.mode,
                "step": trainer.state.step, "learning_rate": rate, "batch_size": run.batch.batch_size,
                "sampling": run.batch.sampling, "seed": run.train.seed, "synthetic": sources.synthetic,
                "pal-dist": __version__,
            }  # fmt: skip
            export_model(model, folder / name, source=sources.model_dir, card=card, metrics=metrics)

    trainer = Trainer(
        run, engine, tasks, list(corpora.values()), dev, schedule=schedule, total_steps=total, peak_rate=rate,
        folder=folder, report=report, save=save, state=state, padding_id=model.config.pad_token_id or 0,
    )  # fmt: skip
    report.lines(*before_first_step(run, trainer, model, sources, folder, {**corpora}, dev))
    report.lines(f"ready after {time.perf_counter() - begun:.1f} s" + (f"; going on after {last.name}" if last else ""))
    trainer.fit()
    results = results_of(trainer, model, begun)
    if engine.is_main:
        write_json(folder / "results.json", results)
        report.lines("", *summary(results, tasks, folder, synthetic=sources.synthetic))
    report.close()
    engine.close()
    return results


def plan_steps(run: RunConfig, corpora: list[Corpus]) -> tuple[Schedule, int]:
    """The schedule of examples and the number of optimizer steps."""
    sampling = Sampling(
        kind=run.batch.sampling,
        sizes=tuple(map(len, corpora)),
        batch_size=run.batch.batch_size,
        step_tasks=run.batch.step_tasks,
        epochs=run.train.epochs,
        seed=run.train.seed,
    )
    total = run.train.epochs * sampling.steps_per_epoch
    if run.train.max_steps is not None:
        total = min(total, run.train.max_steps)
    return Schedule(sampling, [corpus.lengths for corpus in corpora], window=run.batch.window_batches), total


def check_length(max_length: int, model: MultiTaskBert, folder: Path) -> None:
    positions = model.config.max_position_embeddings
    if max_length > positions:
        raise UserError(f"--max_length {max_length}: {folder.name} has {positions} positions; choose at most that")


def open_folder(run: RunConfig, origins: dict[str, str], engine: Engine) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to go on from. Rank 0 looks and writes; all ranks get the same answer.

    Raises UserError, on every rank, where the folder holds something else.
    """
    answer: Any = None
    if engine.is_main:
        try:
            answer = _open_folder(run, origins)
        except UserError as error:
            answer = error
    answer = engine.gather(answer)[0]
    if isinstance(answer, UserError):
        raise answer
    folder, last = answer
    return folder, last


def _open_folder(run: RunConfig, origins: dict[str, str]) -> tuple[Path, Path | None]:
    if run.train.output_dir is None:
        taken = [int(path.name) for path in Path("runs").glob("*") if path.name.isdigit()]
        folder = Path("runs") / str(max(taken, default=0) + 1)
    else:
        folder = Path(run.train.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: expected a folder, found a file")
    last = None
    if folder.is_dir() and any(folder.iterdir()):
        if run.train.resume == "no":
            raise UserError(f"--output_dir {folder} is not empty, and --resume no starts anew: choose a new folder")
        if not (folder / "config.json").is_file():
            raise UserError(f"--output_dir {folder} holds files that are no run of pal-dist: choose a new folder")
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))["values"]
        now = json.loads(json.dumps(run.to_dict()))
        differing = [
            f"--{name} was {before[section].get(name)!r}, is {value!r}"
            for section, values in now.items()
            for name, value in values.items()
            if name not in FREE_TO_CHANGE and before.get(section, {}).get(name) != value
        ]
        if differing:
            raise UserError(
                f"--output_dir {folder} holds another run: {'; '.join(differing)}. Choose a new folder, or give the "
                f"settings of that run to go on with it"
            )
        last = next(iter(checkpoints(folder / "checkpoints")[::-1]), None)
    with full_disk_is_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"pal_dist": __version__, "values": run.to_dict(), "origins": origins})
    return folder, last


def before_first_step(
    run: RunConfig, trainer: Trainer, model: MultiTaskBert, sources: Sources, folder: Path,
    corpora: dict[str, Corpus], dev: dict[str, Corpus],
) -> list[str]:  # fmt: skip
    """The arithmetic of the run, said before it starts."""
    engine, sampling = trainer.engine, trainer.schedule.sampling
    lines = [f"pal-dist {__version__}: run folder {folder}"]
    if sources.synthetic:
        lines.append("data: the built-in SYNTHETIC corpus; its scores show that training works, nothing about real text")
    for name, corpus in corpora.items():
        splits = [corpus] + ([dev[name]] if name in dev else [])
        for split in splits:
            lines += [f"warning: {line}" for line in split.report.lines()]
        sizes = " + ".join(f"{len(split):,} {kind}" for split, kind in zip(splits, ("train", "dev"), strict=False))
        skipped = sum(split.report.bad_rows for split in splits)
        cut = sum(split.report.truncated for split in splits)
        lines.append(
            f"data: {name}: {sizes} examples, {corpus.lengths.mean():.1f} tokens on average; {cut:,} cut to "
            f"{run.data.max_length}, {skipped:,} bad rows skipped"
        )
    counts = model.parameter_counts()
    lines.append(
        f"model: {run.model.model} with adapter `{run.model.adapter}`, heads read `{model.config.pooling}`: "
        f"{counts['total']:,} parameters, {counts['trained']:,} trained ({run.train.mode})"
    )
    for task in trainer.tasks:
        if counts[task.name]:
            lines.append(f"model: {task.name} alone: {counts[task.name]:,} parameters (adapter and head)")
    lines.append(f"precision: {engine.precision.name} ({engine.precision.reason}) on {engine.ranks} x {engine.device.type}")
    warmup = run.optimizer.warmup
    rate = f"learning rate: peak {trainer.peak_rate:g}"
    if run.optimizer.learning_rate is None:
        rate += f" (the default for {run.train.mode} at width {model.config.hidden_size})"
    lines.append(f"{rate}, rising over the first {warmup:.0%} of steps, then falling to 0; {run.optimizer.optimizer}")
    per_step = [len(rows) for _, rows in next(trainer.schedule.steps(0, 1))]
    share, micro = planned_share(trainer)
    lines += [
        f"one step: {' + '.join(map(str, per_step))} examples = {sum(per_step)}, in about {micro:.1f} micro-batches on "
        f"each of {engine.ranks} ranks, each of at most {run.batch.tokens_per_micro_batch:,} tokens, {share:.1%} useful",
        f"steps: {sampling.describe_epoch(tuple(corpora))}",
        f"steps: {trainer.total_steps:,} in all",
    ]
    return lines


def planned_share(trainer: Trainer, steps: int = 50) -> tuple[float, float]:
    """(useful share of tokens, micro-batches per rank and step), looked up in the first steps' cuts."""
    useful = tokens = batches = 0
    steps = min(steps, trainer.total_steps)
    multiple = trainer.engine.multiple
    for served in trainer.schedule.steps(0, steps):
        for micro in trainer.micro_batches(served):
            lengths = trainer.schedule.lengths[micro.task][micro.rows]
            useful += int(lengths.sum())
            tokens += len(lengths) * -(-int(lengths.max()) // multiple) * multiple
            batches += 1
    return useful / tokens, batches / steps


def results_of(trainer: Trainer, model: MultiTaskBert, begun: float) -> dict[str, Any]:
    """What `results.json` holds. Scores are those of the kept model, the one with the best dev mean."""
    state, counts = trainer.state, model.parameter_counts()
    return {
        "dev": state.best_metrics,
        "dev_mean": state.best_mean,
        "best_step": state.best_step,
        "best_each": state.best_each,
        "examples_per_second": state.examples / state.seconds,
        "useful_tokens_per_second": state.useful_tokens / state.seconds,
        "useful_token_share": state.useful_tokens / state.tokens,
        "steps": state.step,
        "examples": state.examples,
        "seconds": state.seconds,
        "evaluation_seconds": state.evaluation_seconds,
        "total_seconds": time.perf_counter() - begun,
        "parameters": counts["total"],
        "parameters_by_part": counts,
        "peak_memory_bytes": trainer.engine.memory(),
        "precision": trainer.engine.precision.name,
        "ranks": trainer.engine.ranks,
    }


def summary(results: dict[str, Any], tasks: tuple[Task, ...], folder: Path, *, synthetic: bool) -> list[str]:
    """The table at the end, and where everything lies."""
    title = "dev scores of the kept model" + (" (SYNTHETIC text)" if synthetic else "")
    rows = [
        [task.name, name, f"{value:.4f}", "*" if name == task.metric else ""]
        for task in tasks
        for name, value in results["dev"].get(task.name, {}).items()
    ]
    lines = [title, table(["task", "metric", "dev", "headline"], rows)] if rows else ["no dev split: no scores"]
    lines += [
        "",
        f"{results['steps']:,} steps, {results['examples']:,} examples in {duration(results['seconds'])}: "
        f"{results['examples_per_second']:.1f} examples/s, {results['useful_tokens_per_second']:,.0f} useful tokens/s, "
        f"useful share {results['useful_token_share']:.1%}",
        f"saved model    {folder / 'model'}  (best dev mean, step {results['best_step']:,})",
        f"results        {folder / 'results.json'}, {folder / 'metrics.jsonl'}",
        f"TensorBoard    tensorboard --logdir {folder / 'tensorboard'}",
        f"predictions    pal-dist predict {folder} --split dev",
    ]
    return lines


@dataclass(frozen=True)
class Opened:
    """A saved model ready to answer."""

    model: MultiTaskBert
    tokenizer: Tokenizer
    engine: Engine
    run: RunConfig
    sources: Sources
    tasks: dict[str, Task]
    folder: Path


def open_model(path: Path, overrides: dict[str, Any], *, cache_dir: Path) -> Opened:
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
    run = run_from_dict({"all": {**flat, **overrides, "model": str(folder)}})
    sources = locate(run, cache_dir)
    model = load_model(folder)
    engine = Engine(precision=run.train.precision)
    engine.model = model.to(engine.device)
    check_length(run.data.max_length, model, folder)
    return Opened(model, load_tokenizer(folder), engine, run, sources, model.config.task_table(), path)


def _fields_of(kind: type[RunState], values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in asdict(kind())}

