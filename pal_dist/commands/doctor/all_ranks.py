"""All processes of the current launcher together: do they see one folder, how fast are they and their links, and do two
steps of training leave the same parameters everywhere?"""

from __future__ import annotations

import math
import shutil
import socket
import string
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from pal_dist.commands.doctor.findings import Finding
from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import atomic_folder
from pal_dist.distributed.engine import Engine, prepare_environment
from pal_dist.distributed.link_benchmark import benchmark_links
from pal_dist.training.run import Run
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer

STEPS = 2
SLOW = 1.5
"""A rank that needs so many times as long as the fastest for the same work is worth a word."""

CLOCK_SECONDS = 2.0
"""By which clocks may differ: file times and logs of several nodes are compared."""


def tiny_bert(cache_dir: Path) -> Path:
    """A BERT of 2 layers of 32, with random weights, that reads letters: made once, by whoever comes first."""
    folder = cache_dir / "doctor-bert-1"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / "doctor-bert-1.lock"):
        if not folder.is_dir():
            prepare_environment()
            from transformers import BertConfig, BertModel
            from transformers.utils import logging

            logging.disable_progress_bar()
            letters = string.ascii_lowercase + string.digits + ".,?!'-"
            vocabulary = [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *letters,
                *(f"##{letter}" for letter in letters),
            ]
            state = torch.get_rng_state()
            torch.manual_seed(0)
            with atomic_folder(folder) as draft:
                config = BertConfig(
                    vocab_size=len(vocabulary),
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=64,
                    max_position_embeddings=64,
                )
                BertModel(config).save_pretrained(draft)
                (draft / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
                (draft / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
            torch.set_rng_state(state)
    return folder


def trial_config(config: RunConfig, folder: Path, cache_dir: Path) -> RunConfig:
    """The run that is tried: the person's strategy and precision, a tiny model, the built-in corpus."""
    return replace(
        config,
        data=replace(
            config.data, data_dir="builtin", tasks=("sst", "para", "sts"), max_length=48, cache_dir=str(cache_dir)
        ),
        model=replace(
            config.model,
            model=str(tiny_bert(cache_dir)),
            adapter="pal",
            adapter_hidden=16,
            adapter_heads=2,
            adapter_layers=None,
            pooling=None,
        ),
        batch=replace(config.batch, batch_size=16, step_tasks="all"),
        memory=replace(config.memory, memory="off", tokens_per_micro_batch=512, checkpoint_layers=None),
        optimizer=replace(config.optimizer, optimizer="adamw"),
        train=replace(
            config.train,
            output_dir=str(folder),
            mode="finetune",
            max_steps=STEPS,
            evaluate_every="none",
            log_every=1,
            patience=None,
        ),
    )


def start(config: RunConfig, folder: Path, cache_dir: Path) -> Run:
    """All ranks meet. Raises UserError as `train` does."""
    return set_up(trial_config(config, folder, cache_dir), {}, cache_dir=cache_dir)


def ranks(engine: Engine, folder: Path) -> Iterator[Finding]:
    by_rank = engine.gather((socket.gethostname(), str(engine.device)))
    hosts = [host for host, _ in by_rank]
    places = ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts))
    yield Finding("ranks", "green", f"{engine.ranks}: {places}; strategy {engine.strategy.name}, {by_rank[0][1]}")
    if engine.ranks > 1:  # else the start would have failed: run_folder.py
        yield Finding("shared folder", "green", f"all ranks see {folder}")


def speeds(engine: Engine) -> Iterator[Finding]:
    by_rank = engine.gather(benchmark_links(engine.group, engine.device))
    if engine.ranks == 1:
        return
    hosts = engine.gather(socket.gethostname())
    work = [one.work_seconds for one in by_rank]
    slowest = max(range(len(work)), key=work.__getitem__)
    what = f"the same work took {min(work) * 1e3:.1f} to {max(work) * 1e3:.1f} ms"
    if max(work) > SLOW * min(work):
        cure = "every step waits for the slowest: is something else running there, or is it another kind of device?"
        yield Finding("skew", "yellow", f"{what}; slowest is rank {slowest} on {hosts[slowest]}", cure)
    else:
        yield Finding("skew", "green", what)
    clocks = [one.clock for one in by_rank]
    spread = max(clocks) - min(clocks)
    cure = "" if spread < CLOCK_SECONDS else "set the nodes' clocks (ntp)"
    yield Finding("clocks", "yellow" if cure else "green", f"{spread:.3f} s apart", cure)
    sums = "; ".join(
        f"{size} MiB in {max(one.all_reduce_seconds[size] for one in by_rank) * 1e3:.1f} ms"
        for size in by_rank[0].all_reduce_seconds
    )
    bandwidth = min(one.bandwidth(engine.ranks) for one in by_rank)
    yield Finding("all-reduce", "green", f"{sums}: {bandwidth:.2f} GB/s ({8 * bandwidth:.1f} Gbit/s) on each link")


def training(run: Run) -> Iterator[Finding]:
    """Two steps; where every rank holds the whole model, all of them must end with the same parameters."""
    engine, trainer, begun = run.engine, Trainer(run), time.perf_counter()
    state = trainer.fit()
    seconds = time.perf_counter() - begun
    what = f"{state.step} steps under {engine.strategy.name} in {engine.precision.name}, {seconds:.1f} s with saving"
    checksums = engine.gather(_checksum(run))
    norm = float(trainer.gradient_norm)
    if len(set(checksums)) > 1:
        odd = ", ".join(f"rank {rank}" for rank, other in enumerate(checksums) if other != checksums[0])
        cure = "gradients do not reach every rank: check NCCL and the network, then report it"
        yield Finding("training", "red", f"{what}; {odd} ended with other parameters than rank 0", cure)
    elif state.step != STEPS or math.isnan(norm):
        yield Finding("training", "red", f"{what}; gradient norm {norm}", "report it with this page")
    else:
        yield Finding("training", "green", what + ("; the same parameters on all ranks" if engine.ranks > 1 else ""))


def _checksum(run: Run) -> int:
    """Of this rank's parameters, where it holds all of them; else 0."""
    checksum = 0
    if not run.engine.strategy.shares_parameters:
        for parameter in run.model.parameters():
            checksum = zlib.crc32(parameter.detach().float().cpu().numpy().tobytes(), checksum)
    return checksum


def clean_up(run: Run, folder: Path) -> None:
    """End the trial run and take its folder away. Every rank must call it."""
    run.engine.wait_for_everyone()
    run.close()
    if run.engine.is_main:
        shutil.rmtree(folder, ignore_errors=True)
