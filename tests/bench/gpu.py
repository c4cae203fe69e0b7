"""What a GPU shows: packed kernels against the plain form, steps against the usual loop, memory against the plan.

One call on any CUDA machine, no network: BERT-base with random weights, real rows. Sections run in order, each within
its own time. Without a GPU the same code runs in miniature.

    python tests/bench/gpu.py --data_dir DATA [--tokenizer FOLDER] [--sections kernels,steps,plain] [--rows 32,128,512]

Prints JSON lines, one a measurement; `--output FILE` keeps them.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from plain_loop import PlainLoop

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
STEPS, WARM_UP, PROFILED = (40, 10, 5) if CUDA else (2, 1, 1)

Record = dict[str, Any]


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def bert_folder(folder: Path, tokenizer: Path) -> Path:
    """BERT-base with random weights (in miniature without a GPU), and a tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    small: Record = {} if CUDA else {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    with torch.device(DEVICE):
        BertModel(BertConfig(**small, intermediate_size=3072 if CUDA else 256)).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def profiled(step: Callable[[], object], steps: int) -> Record:
    """Kernels of a step, and the milliseconds in which the GPU is busy with them; the largest by time."""
    if not CUDA:
        return {}
    from torch.profiler import ProfilerActivity, profile

    wait()
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        wait()
    seconds = time.perf_counter() - begun
    events = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    busy = sum(event.self_device_time_total for event in events) / 1e3
    largest = sorted(events, key=lambda event: -event.self_device_time_total)[:10]
    return {
        "kernels": round(sum(event.count for event in events) / steps),
        "busy_ms": round(busy / steps, 2),
        "profiled_ms": round(1e3 * seconds / steps, 2),
        "most": [
            [event.key[:60], round(event.count / steps)]
            for event in sorted(events, key=lambda event: -event.count)[:25]
        ],
        "largest": [
            [event.key[:60], event.count // steps, round(event.self_device_time_total / 1e3 / steps, 3)]
            for event in largest
        ],
    }


def timed(step: Callable[[], int]) -> Record:
    """Milliseconds of a step (the median), examples a second; `step` returns its examples."""
    for _ in range(WARM_UP):
        step()
    wait()
    times, examples = [], 0
    for _ in range(STEPS):
        begun = time.perf_counter()
        examples += step()
        wait()
        times.append(time.perf_counter() - begun)
    # Without waiting in between, as training goes.
    begun, together = time.perf_counter(), 0
    for _ in range(STEPS):
        together += step()
    wait()
    seconds = time.perf_counter() - begun
    return {
        "ms": round(1e3 * seconds / STEPS, 2),
        "ms_when_waited_for": round(1e3 * float(np.median(times)), 2),
        "examples_per_second": round(together / seconds, 1),
    }


def our_steps(model: Path, data_dir: str, cache: Path, adapter: str, rows: int, **flags: str) -> Iterator[Record]:
    from pal_dist.config.resolve import resolve
    from pal_dist.training.setup import set_up
    from pal_dist.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "data_dir": data_dir,
            "model": str(model),
            "adapter": adapter,
            "batch_size": str(rows),
            "max_steps": "1000",
            "epochs": "100",
            "learning_rate": "2e-5",
            "bad_rows": "skip",
            "output_dir": f"{folder}/run",
            **flags,
        }
        trainer = Trainer(set_up(resolve(settings)[0], {}, cache_dir=cache))
        loader = getattr(trainer, "loader", trainer.run.schedule)  # before packed batches there was no loader
        steps = loader.steps(0, 1000)
        trainer.engine.model.train()

        def step() -> int:
            served = next(steps)
            trainer.step(served)
            trainer.state.step += 1
            return sum(len(rows) for _, rows in served)

        record = {"section": "steps", "adapter": adapter, "rows": rows, **flags, **timed(step)}
        window = trainer.log_window
        record["tokens_per_step"] = round(window.tokens / (2 * STEPS + WARM_UP))
        record["useful_share"] = round(window.useful_tokens / window.tokens, 4)
        if trainer.run.plan is not None:
            record["planned_ms"] = round(1e3 * trainer.run.plan.plan.seconds, 2)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        record |= profiled(step, PROFILED)
        if CUDA:
            record["allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        yield record
        trainer.run.close()


def plain_steps(model: Path, data_dir: str, rows: int) -> Iterator[Record]:
    """Transformers' BertModel, autocast, fused AdamW, SDPA; batches of one task, padded to their longest."""
    loop = PlainLoop(data_dir, str(model), batch_size=rows, epochs=50, max_train=6000)
    loop.model.to(DEVICE)
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=2e-5, fused=True)
    batch = loop.batch

    def on_device(task: str, split: str, chosen: list[int]) -> Any:
        inputs, labels = batch(task, split, chosen)
        return {key: value.to(DEVICE, non_blocking=True) for key, value in inputs.items()}, labels.to(DEVICE)

    loop.batch = on_device  # type: ignore[method-assign]
    loop.schedule = type("Constant", (), {"step": lambda self: None})()
    steps = (examples for _ in range(100) for examples in loop.epoch())

    def step() -> int:
        with torch.autocast(DEVICE, torch.bfloat16):
            return next(steps)

    yield {"section": "plain", "rows": rows, **timed(step), **profiled(step, PROFILED)}


def memory(model: Path, data_dir: str, cache: Path) -> Iterator[Record]:
    """A real step's largest micro-batch: allocated and reserved against the trace."""
    from pal_dist.commands.memory_check import trace_worst_step
    from pal_dist.config.resolve import resolve
    from pal_dist.training.setup import set_up
    from pal_dist.training.worst_batch import worst_step

    cases: list[Record] = [
        {"precision": precision, "adapter": adapter, "checkpoint_layers": layers, "batch_size": rows}
        for precision, adapter, layers, rows in (
            ("bf16", "none", 0, 128),
            ("bf16", "pal", 0, 512),
            ("fp16", "pal", 1, 512),
            ("fp32", "pal", 0, 128),
            ("bf16", "houlsby", 2, 128),
        )
    ]
    for case in cases if CUDA else cases[3:4]:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"data_dir": data_dir, "model": str(model), "bad_rows": "skip", "memory": "plan_only", **case}
            run = set_up(
                resolve({**{k: str(v) for k, v in settings.items()}, "output_dir": f"{folder}/run"})[0],
                {},
                cache_dir=cache,
            )
            planned = trace_worst_step(run)
            engine = run.engine
            engine.model.train()
            engine.checkpoint_layers(run.state.checkpoint_layers)
            for _ in range(3):
                engine.reset_peak_memory()
                for micro in worst_step(run):
                    engine.backward(run.loss_sum(engine.to_device(run.batch(micro))))
                engine.step(rate=0.0, max_norm=1.0)
            allocated, reserved = engine.peak_memory(), engine.peak_reserved_memory()
            expected = planned.reserved(expandable=True)
            yield {
                "section": "memory",
                **case,
                "allocated_gib": round(allocated / 2**30, 3),
                "traced_gib": round(planned.peak / 2**30, 3),
                "trace_off": round(planned.peak / allocated - 1, 4),
                "reserved_gib": round(reserved / 2**30, 3),
                "reserved_off": round(expected / reserved - 1, 4),
                "at": planned.at,
            }
            run.close()
            del engine, run
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()


def kernels() -> Iterator[Record]:
    """The packed kernels against the plain form: outputs, gradients, dropout's share and mean."""
    from pal_dist.models.attention_by_length import attention_by_length
    from pal_dist.models.packed_kernels import KERNELS
    from pal_dist.models.packed_rows import PackedRows

    random = np.random.default_rng(0)
    lengths = np.sort(random.integers(1, 129, 64)).astype(np.int32)[::-1].copy()
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=DEVICE)
    rows = PackedRows(starts, lengths)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for name in KERNELS if CUDA else ("by_length",):
            if name == "flash" and dtype == torch.float32:
                continue
            for width, first_only in ((64, False), (64, True), (24, False)):
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
                    results.append((context.detach().double(), own.grad.double()))
                (context, gradient), (exact, exact_gradient) = results
                own = torch.ones(shape, device=DEVICE, dtype=dtype)
                ones = None if query is None else torch.ones_like(query)
                dropped = KERNELS[name](ones, own, rows, p=0.1, scale=width**-0.5).double()
                yield {
                    "section": "kernels",
                    "kernel": name,
                    "dtype": str(dtype),
                    "width": width,
                    "first_only": first_only,
                    "output_error": float((context - exact).norm() / exact.norm()),
                    "gradient_error": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
                    "mean_under_dropout": float(dropped.mean()),  # 1 where nothing is lost
                    "deviation_under_dropout": float(dropped.std()),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--tokenizer", help="folder with a BERT tokenizer; default: MiniLM's")
    parser.add_argument("--sections", default="kernels,steps,memory,plain")
    parser.add_argument("--rows", default="32,128,512" if CUDA else "4")
    parser.add_argument("--adapters", default="none,pal")
    parser.add_argument("--precisions", default="bf16" if CUDA else "fp32")
    parser.add_argument("--output", help="file that the records are added to")
    options = parser.parse_args()
    from pal_dist.models.pretrained import find_model

    tokenizer = Path(options.tokenizer) if options.tokenizer else find_model("minilm")
    counts = [int(rows) for rows in options.rows.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = bert_folder(folder / "bert", tokenizer)
        sections: dict[str, Callable[[], Iterator[Iterator[Record]]]] = {
            "kernels": lambda: iter([kernels()]),
            "steps": lambda: (
                our_steps(model, options.data_dir, folder / "cache", adapter, rows, precision=precision)
                for precision in options.precisions.split(",")
                for rows in counts
                for adapter in options.adapters.split(",")
            ),
            "memory": lambda: iter([memory(model, options.data_dir, folder / "cache")]),
            "plain": lambda: (plain_steps(model, options.data_dir, rows) for rows in counts),
        }
        for name in options.sections.split(","):
            for measurement in sections[name]():
                begun = time.perf_counter()
                try:
                    for record in measurement:
                        line = json.dumps({**record, "took_s": round(time.perf_counter() - begun, 1)})
                        print(line, flush=True)
                        if options.output:
                            with open(options.output, "a") as file:
                                file.write(line + "\n")
                except Exception as error:  # one measurement that fails must not cost the others
                    print(json.dumps({"section": name, "error": f"{type(error).__name__}: {error}"[:600]}), flush=True)
                gc.collect()
                if CUDA:
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
