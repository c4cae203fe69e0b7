"""The measurements of gpu.py: each section yields (what is measured, a function that measures it)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pal_dist.commands.memory_check import trace_worst_step
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.data.synthetic import built_in_corpus
from pal_dist.memory.closed_form import StepOptions, shape_of
from pal_dist.memory.speed_probe import measure_speed
from pal_dist.memory.step_time import matrix_flops
from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.kernel_choice import seconds_of
from pal_dist.models.packed_kernels import KERNELS
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.pretrained import find_model
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from pal_dist.training.worst_batch import worst_step

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
STEPS, WARM_UP, PROFILED = (30, 12, 5) if CUDA else (3, 4, 1)

GIBIBYTE = 2**30

Record = dict[str, Any]
Case = tuple[Record, Callable[[], Record]]


@dataclass(frozen=True)
class Bench:
    """What all sections work on."""

    model: Path
    data_dir: str
    folder: Path
    rows: list[int]
    """Examples of a task in a step."""

    def config(self, name: str, **settings: Any) -> RunConfig:
        """A run of this model on this data."""
        values = {
            "data_dir": self.data_dir,
            "model": self.model,
            "bad_rows": "skip",
            "learning_rate": "2e-5",
            "resume": "no",
            "output_dir": self.folder / name,
            **settings,
        }
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return resolve({key: str(value) for key, value in values.items()})[0]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


def bert_folder(folder: Path, tokenizer: str | None) -> Path:
    """BERT-base with random weights (in miniature without a GPU), and a tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    small: Record = {} if CUDA else {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4}
    with torch.device(DEVICE):
        BertModel(BertConfig(**small, intermediate_size=3072 if CUDA else 96)).save_pretrained(folder)
    source = Path(tokenizer) if tokenizer else find_model("minilm")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder


def data_folder(data_dir: str, folder: Path) -> str:
    """Where the tasks' files are; those of the built-in corpus are written first."""
    return str(built_in_corpus(folder / "cache")) if data_dir == "builtin" else data_dir


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(step: Callable[[], int]) -> Record:
    """Milliseconds of a step and examples a second, without waiting in between; `step` returns its examples."""
    for _ in range(WARM_UP):
        step()
    wait()
    begun, examples = time.perf_counter(), 0
    for _ in range(STEPS):
        examples += step()
    wait()
    seconds = time.perf_counter() - begun
    return {"ms": round(1e3 * seconds / STEPS, 2), "examples_per_second": round(examples / seconds, 1)}


def profiled(step: Callable[[], object], milliseconds: float) -> Record:
    """Kernels of a step, what the host launches for them, the share of a step in which the GPU is busy.

    Args:
        milliseconds: of a step that is not profiled.
    """
    if not CUDA:
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            step()
        wait()
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    launched = [event.count for event in events if event.key.startswith(("cudaLaunch", "cudaGraphLaunch", "cuLaunch"))]
    busy = sum(event.self_device_time_total for event in kernels) / 1e3 / PROFILED
    largest = sorted(kernels, key=lambda event: -event.self_device_time_total)[:12]
    return {
        "kernels": round(sum(event.count for event in kernels) / PROFILED),
        "launches": round(sum(launched) / PROFILED),
        "busy_share": round(busy / milliseconds, 3),
        "largest": [
            [event.key[:70], event.count // PROFILED, round(event.self_device_time_total / 1e3 / PROFILED, 3)]
            for event in largest
        ],
    }


@contextmanager
def trainer_of(bench: Bench, name: str, **settings: Any) -> Iterator[Trainer]:
    trainer = Trainer(set_up(bench.config(name, **settings), {}, cache_dir=bench.cache))
    trainer.engine.model.train()
    try:
        yield trainer
    finally:
        trainer.run.close()


# Steps of ours.

WAYS = {
    "eager": {"cuda_graphs": "off", "compile": "off"},
    "graph": {"cuda_graphs": "auto" if CUDA else "static", "compile": "off"},
    "compiled": {"cuda_graphs": "off", "compile": "on"},
    "both": {"cuda_graphs": "auto" if CUDA else "static", "compile": "on"},
}
"""Settings of each way to run the same steps; --memory off, so that no plan decides otherwise."""


def steps(bench: Bench) -> Iterator[Case]:
    precisions = ("bf16", "fp16") if CUDA else ("fp32",)
    ways = list(WAYS) if CUDA else ["eager", "graph"]
    # What matters most first: if time is short, the rest is left out.
    for precision in precisions:
        for rows in bench.rows:
            for adapter in ("none", "pal"):
                for way in ways:
                    if precision == "fp16" and (rows != bench.rows[0] or way not in ("eager", "graph")):
                        continue
                    case = {"adapter": adapter, "precision": precision, "rows": rows, "way": way}
                    yield case, lambda case=case: our_steps(bench, **case)


def our_steps(bench: Bench, *, adapter: str, precision: str, rows: int, way: str) -> Record:
    settings = {
        "adapter": adapter,
        "precision": precision,
        "batch_size": rows,
        "batch_lengths": "even",
        "memory": "off",
        "tokens_per_micro_batch": 1 << 16,
        "max_steps": 1000,
        "epochs": 1000,
        **({} if CUDA else {"attention": "padded"}),
        **WAYS[way],
    }
    with trainer_of(bench, "steps", **settings) as trainer:
        served = trainer.loader.steps(0, 1000)

        def step() -> int:
            rows_of_step = next(served)
            trainer.step(rows_of_step)
            trainer.state.step += 1
            return sum(len(rows) for _, rows in rows_of_step)

        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        record = timed(step)
        window = trainer.log_window
        record["useful_share"] = round(window.useful_tokens / window.tokens, 4)
        tokens = window.useful_tokens / (STEPS + WARM_UP)
        shape = shape_of(trainer.run.model, trainer.run.model.config)
        length = tokens / (3 * rows)
        rate = matrix_flops(shape, round(tokens), length, StepOptions(precision)) / (record["ms"] / 1e3)
        peak = measure_speed(torch.device(trainer.engine.device), precision)
        record["useful_tflops"] = round(rate / 1e12, 3)
        record["share_of_peak"] = round(rate / (peak.flops_fp32 if precision == "fp32" else peak.flops_low), 3)
        if CUDA:
            record["allocated_gib"] = round(torch.cuda.max_memory_allocated() / GIBIBYTE, 3)
        if trainer.graphs is not None:
            record["graphs"], record["replays"] = trainer.graphs.recordings, trainer.graphs.replays
            record["failed_recordings"] = len(trainer.graphs.failed)
        return record | profiled(step, record["ms"])


# The same rows by others.


def others(bench: Bench) -> Iterator[Case]:
    for rows in bench.rows:
        yield {"way": "plain loop", "rows": rows}, lambda rows=rows: plain_steps(bench, rows)
        for sampling in ("group_by_length", "batch_rebalance"):
            case = {"way": f"Trainer, {sampling}", "rows": rows}
            yield case, lambda rows=rows, sampling=sampling: trainer_steps(bench, rows, sampling)


def plain_steps(bench: Bench, rows: int) -> Record:
    """Transformers' BertModel, autocast, fused AdamW, SDPA; batches of one task, padded to their longest."""
    from tests.bench.plain_loop import PlainLoop

    loop = PlainLoop(bench.data_dir, str(bench.model), batch_size=rows, epochs=50, max_train=6000 if CUDA else 60)
    loop.model.to(DEVICE)
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=2e-5, fused=True)
    batch = loop.batch

    def on_device(task: str, split: str, chosen: list[int]) -> Any:
        inputs, labels = batch(task, split, chosen)
        return {key: value.to(DEVICE, non_blocking=True) for key, value in inputs.items()}, labels.to(DEVICE)

    loop.batch = on_device  # type: ignore[method-assign]
    loop.schedule = type("Constant", (), {"step": lambda self: None})()
    epochs = (examples for _ in range(100) for examples in loop.epoch())

    def step() -> int:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            return int(next(epochs))

    record = timed(step)
    return record | profiled(step, record["ms"])


def trainer_steps(bench: Bench, rows: int, sampling: str) -> Record:
    """Transformers' Trainer on all tasks' rows mixed, as many in a step as ours has."""
    from transformers import AutoTokenizer

    from tests.bench.trainer import MixedModel, Rows, trainer_turn

    names, seen = ["sst", "para", "sts"], list[float]()
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    data = Rows(bench.data_dir, names, tokenizer)
    turn = trainer_turn(
        data,
        MixedModel(str(bench.model), names),
        tokenizer,
        bench.folder / "trainer",
        sampling,
        batch=3 * rows,
        accumulate=1,
        steps=STEPS,
        seen=seen,
    )
    rate = turn()
    return {"examples_per_second": round(rate, 1), "ms": round(3e3 * rows / rate, 2), "tokens_per_example": seen[0]}


# Attention.


def kernels(bench: Bench) -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if CUDA else (torch.float32,):
        for name in ("flash", "efficient", "padded") if CUDA else ("padded",):
            if name == "flash" and dtype == torch.float32:
                continue
            for width, first_only in ((64, False), (64, True), (24, False)):
                case = {"kernel": name, "dtype": str(dtype).removeprefix("torch."), "width": width}
                case["first_only"] = first_only
                yield case, lambda name=name, dtype=dtype, w=width, f=first_only: kernel_errors(name, dtype, w, f)


def kernel_errors(name: str, dtype: torch.dtype, width: int, first_only: bool) -> Record:
    """A packed kernel against the plain form: outputs, gradients, dropout's mean."""
    random = np.random.default_rng(0)
    lengths = np.sort(random.integers(1, 129, 64)).astype(np.int32)[::-1].copy()
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=DEVICE)
    rows = PackedRows(starts, lengths)
    torch.manual_seed(0)
    shape = (rows.tokens, 2 if first_only else 3, 12, width)
    joined = torch.randn(shape, device=DEVICE, dtype=dtype)
    query = torch.randn(rows.count, 12, width, device=DEVICE, dtype=dtype) if first_only else None
    given = torch.randn(rows.count if first_only else rows.tokens, 12, width, device=DEVICE, dtype=dtype)
    results = []
    for kernel, wide in ((KERNELS[name], dtype), (attention_by_length, torch.float64)):
        own = joined.detach().to(wide).requires_grad_()
        asked = None if query is None else query.detach().to(wide).requires_grad_()
        context = kernel(asked, own, rows, p=0.0, scale=width**-0.5)
        context.backward(given.to(wide))
        assert own.grad is not None
        results.append((context.detach().double(), own.grad.double()))
    (context, gradient), (exact, exact_gradient) = results
    ones = torch.ones(shape, device=DEVICE, dtype=dtype)
    asked = None if query is None else torch.ones_like(query)
    dropped = KERNELS[name](asked, ones, rows, p=0.1, scale=width**-0.5).double()
    took = seconds_of(name, lengths, torch.device(DEVICE), dtype, 12, width) if CUDA else float("nan")
    return {
        "output_error": float((context - exact).norm() / exact.norm()),
        "gradient_error": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
        "mean_under_dropout": round(float(dropped.mean()), 4),  # 1 where nothing is lost
        "ms": round(100 * took, 3),  # of ten
    }


# Memory.

MEMORY_CASES = (
    ("bf16", "none", 0, 128, "adamw"),
    ("bf16", "pal", 0, 512, "adamw"),
    ("fp16", "pal", 1, 512, "adamw"),
    ("fp32", "pal", 0, 128, "adamw"),
    ("bf16", "houlsby", 2, 128, "adamw"),
    ("bf16", "none", 0, 32, "adamw"),
    ("bf16", "pal", 0, 32, "adamw_8bit"),
    ("fp32", "none", 1, 512, "adamw"),
    ("bf16", "pal", 0, 128, "paged_adamw_8bit"),
    ("fp16", "none", 0, 512, "adamw"),
    ("bf16", "lora", 0, 128, "adamw"),
    ("bf16", "low_rank", 0, 128, "adamw"),
    ("bf16", "lhuc", 0, 128, "adamw"),
    ("bf16", "top_attention", 0, 128, "adamw"),
    ("bf16", "houlsby_plus_pal", 0, 128, "adamw"),
    ("bf16", "progressive_pal", 0, 128, "adamw"),
    ("fp32", "houlsby", 0, 32, "adamw"),
    ("fp16", "pal", 2, 128, "adamw"),
    ("bf16", "none", 1, 512, "adamw_8bit"),
    ("fp32", "pal", 0, 32, "adamw"),
)


def memory(bench: Bench) -> Iterator[Case]:
    for case in MEMORY_CASES if CUDA else (("fp32", "pal", 0, 4, "adamw"),):
        named = dict(zip(("precision", "adapter", "checkpoint_layers", "batch_size", "optimizer"), case, strict=True))
        yield named, lambda named=named: memory_of(bench, named)


def memory_of(bench: Bench, settings: Record) -> Record:
    """A real step's largest micro-batch, kernel by kernel: allocated and reserved against what was said."""
    config = bench.config("memory", memory="plan_only", cuda_graphs="off", compile="off", **settings)
    run = set_up(config, {}, cache_dir=bench.cache)
    try:
        planned, engine = trace_worst_step(run), run.engine
        engine.model.train()
        engine.checkpoint_layers(run.state.checkpoint_layers)
        for _ in range(3):
            engine.reset_peak_memory()
            for micro in worst_step(run):
                engine.backward(run.loss_sum(engine.to_device(run.batch(micro))))
            engine.step(rate=0.0, max_norm=1.0)
        allocated, reserved = engine.peak_memory(), engine.peak_reserved_memory()
        assert run.plan is not None
        return {
            "allocated_gib": round(allocated / GIBIBYTE, 3),
            "traced_off": round(planned.peak / allocated - 1, 4),
            "closed_form_off": round(run.plan.plan.estimate.peak / allocated - 1, 4),
            "reserved_gib": round(reserved / GIBIBYTE, 3),
            "reserved_off": round(planned.reserved(expandable=True) / reserved - 1, 4),
        }
    finally:
        run.close()


# The guard, strategies, the job.


def final_parameters(bench: Bench, name: str, **settings: Any) -> tuple[dict[str, torch.Tensor], int]:
    """(after a short run in float32, tokens of a micro-batch at its end)."""
    fixed = {"precision": "fp32", "dropout": 0, "evaluate_every": "none", "adapter": "pal", "max_steps": 4}
    with trainer_of(bench, name, **{**fixed, **settings}) as trainer:
        state = trainer.fit()
        values = {key: value.detach().double().cpu() for key, value in trainer.engine.full_state_dict().items()}
        return values, state.tokens_per_micro_batch


def distances(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> Record:
    names = [name for name in expected if "key.bias" not in name]  # softmax does not see those
    off = {name: float((found[name] - expected[name]).norm()) for name in names}
    size = {name: float(expected[name].norm()) or 1.0 for name in names}
    whole = sum(value**2 for value in off.values()) ** 0.5 / sum(value**2 for value in size.values()) ** 0.5
    return {"distance": whole, "worst_parameter": max(off[name] / size[name] for name in names)}


def guard(bench: Bench) -> Iterator[Case]:
    """A real cap on the process's memory, which no plan knows of."""
    for gib in (3.5, 2.5) if CUDA else ():
        yield {"cap_gib": gib}, lambda gib=gib: guarded(bench, gib)


def guarded(bench: Bench, gib: float) -> Record:
    settings = {"batch_size": 256, "memory": "off", "tokens_per_micro_batch": 65536, "cuda_graphs": "auto"}
    expected, _ = final_parameters(bench, "free", **settings)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * GIBIBYTE / total)
    try:
        found, tokens = final_parameters(bench, "capped", **settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"tightened_to": tokens, **distances(found, expected)}


def strategies(bench: Bench) -> Iterator[Case]:
    """Each on one device against the single run."""
    for name in ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "fsdp2") if CUDA else ("ddp",):
        yield {"strategy": name}, lambda name=name: strategy_distance(bench, name)


def strategy_distance(bench: Bench, name: str) -> Record:
    rows = bench.rows[0]
    expected, _ = final_parameters(bench, "single", batch_size=rows, cuda_graphs="off")
    found, _ = final_parameters(bench, "shared", batch_size=rows, strategy=name)
    return distances(found, expected)


def job(bench: Bench) -> Iterator[Case]:
    """An epoch as a person starts it."""
    for recipe in ("pal_finetune",):
        yield {"recipe": recipe}, lambda recipe=recipe: job_of(bench, recipe)


def job_of(bench: Bench, recipe: str) -> Record:
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        flags = {"data_dir": bench.data_dir, "model": bench.model, "bad_rows": "skip", "output_dir": f"{folder}/run"}
        flags |= {"epochs": 1, "cache_dir": bench.cache, "evaluate_every": "none", "log_every": 20}
        flags |= {} if CUDA else {"max_steps": 6, "batch_size": 4}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "pal_dist", "train", "--recipe", recipe, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().split("\n")[-1])
        results = json.loads(Path(folder, "run/results.json").read_text())
        plan = json.loads(Path(folder, "run/memory.json").read_text())["plan"]
        entries = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
        rates = [entry["examples_per_second"] for entry in entries if "examples_per_second" in entry]
        return {
            "said_seconds": round(results["steps"] * plan["estimated_seconds_per_step"], 1),
            "took_seconds": round(results["seconds"], 1),
            "examples_per_second": rates[-1] if rates else None,
            "memory_gib": max((entry.get("memory_gib", 0) for entry in entries), default=0),
            "said": [line for line in done.stderr.splitlines() if line.startswith(("speed", "graphs", "compile"))],
        }


SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[Case]], float]] = {
    "steps": (steps, 0.36),
    "others": (others, 0.16),
    "memory": (memory, 0.18),
    "kernels": (kernels, 0.06),
    "guard": (guard, 0.06),
    "strategies": (strategies, 0.08),
    "job": (job, 0.10),
}
"""In the order in which they run: the section, its share of the time."""
