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
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
            state = torch.get_rng_state()
            torch.manual_seed(0)
            with atomic_folder(folder) as draft:
                BertModel(
                    BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=64, max_position_embeddings=64)
                ).save_pretrained(draft)  # fmt: skip
                (draft / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
                (draft / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
            torch.set_rng_state(state)
    return folder


def two_steps(run: RunConfig, folder: Path, cache_dir: Path) -> RunConfig:
    """The run that is tried: the person's strategy and precision, a tiny model, the built-in corpus."""
    return replace(
        run,
        data=replace(run.data, data_dir="builtin", tasks=("sst", "para", "sts"), max_length=48,
                     cache_dir=str(cache_dir)),
        model=replace(run.model, model=str(tiny_bert(cache_dir)), adapter="pal", adapter_hidden=16, adapter_heads=2,
                      adapter_layers=None, pooling=None),
        batch=replace(run.batch, batch_size=16, step_tasks="all"),
        memory=replace(run.memory, memory="off", tokens_per_micro_batch=512, checkpoint_layers=None),
        optimizer=replace(run.optimizer, optimizer="adamw"),
        train=replace(run.train, output_dir=str(folder), mode="finetune", max_steps=STEPS, evaluate_every="none",
                      log_every=1, patience=None),
    )  # fmt: skip


def start(run: RunConfig, folder: Path, cache_dir: Path) -> Trainer:
    """All ranks meet. Raises UserError as `train` does."""
    return set_up(two_steps(run, folder, cache_dir), {}, cache_dir=cache_dir)


def ranks(engine: Engine, folder: Path) -> Iterator[Finding]:
    everyone = engine.gather((socket.gethostname(), str(engine.device)))
    hosts = [host for host, _ in everyone]
    found = ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts))
    yield Finding("ranks", "green", f"{engine.ranks}: {found}; strategy {engine.strategy.name}, {everyone[0][1]}")
    if engine.ranks > 1:  # else the start would have failed: run_folder.py
        yield Finding("shared folder", "green", f"all ranks see {folder}")


def speeds(engine: Engine) -> Iterator[Finding]:
    everyone = engine.gather(benchmark_links(engine.group, engine.device))
    work = [one.work_seconds for one in everyone]
    slowest = max(range(len(work)), key=work.__getitem__)
    if engine.ranks == 1:
        return
    hosts = engine.gather(socket.gethostname())
    found = f"the same work took {min(work) * 1e3:.1f} to {max(work) * 1e3:.1f} ms"
    if max(work) > SLOW * min(work):
        cure = "every step waits for the slowest: is something else running there, or is it another kind of device?"
        yield Finding("skew", "yellow", f"{found}; slowest is rank {slowest} on {hosts[slowest]}", cure)
    else:
        yield Finding("skew", "green", found)
    clocks = [one.clock for one in everyone]
    spread = max(clocks) - min(clocks)
    cure = "" if spread < CLOCK_SECONDS else "set the nodes' clocks (ntp)"
    yield Finding("clocks", "yellow" if cure else "green", f"{spread:.3f} s apart", cure)
    sums = "; ".join(f"{size} MiB in {max(one.all_reduce_seconds[size] for one in everyone) * 1e3:.1f} ms"
                     for size in everyone[0].all_reduce_seconds)  # fmt: skip
    bandwidth = min(one.bandwidth(engine.ranks) for one in everyone)
    yield Finding("all-reduce", "green", f"{sums}: {bandwidth:.2f} GB/s ({8 * bandwidth:.1f} Gbit/s) on each link")


def training(trainer: Trainer) -> Iterator[Finding]:
    """Two steps; where every rank holds the whole model, all of them must end with the same parameters."""
    engine, begun = trainer.engine, time.perf_counter()
    state = trainer.fit()
    seconds = time.perf_counter() - begun
    found = f"{state.step} steps under {engine.strategy.name} in {engine.precision.name}, {seconds:.1f} s with saving"
    whole = not engine.strategy.shares_parameters
    mark = 0
    for parameter in engine.model.parameters() if whole else ():
        mark = zlib.crc32(parameter.detach().float().cpu().numpy().tobytes(), mark)
    marks = engine.gather(mark)
    if len(set(marks)) > 1:
        odd = ", ".join(f"rank {rank}" for rank, other in enumerate(marks) if other != marks[0])
        yield Finding("training", "red", f"{found}; {odd} ended with other parameters than rank 0",
                      "gradients do not reach every rank: check NCCL and the network, then report it")  # fmt: skip
    elif state.step != STEPS or math.isnan(float(trainer.norm)):
        yield Finding("training", "red", f"{found}; gradient norm {float(trainer.norm)}", "report it with this page")
    else:
        yield Finding("training", "green", found + ("; the same parameters on all ranks" if engine.ranks > 1 else ""))


def leave(trainer: Trainer, folder: Path) -> None:
    trainer.report.close()
    main = trainer.engine.is_main
    trainer.engine.wait()
    trainer.engine.close()
    if main:
        shutil.rmtree(folder, ignore_errors=True)
