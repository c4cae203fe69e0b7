"""Examples per second of pal-dist against Transformers' Trainer with its ways of making batches of like lengths.

Same MiniLM, same real rows, no adapter, same threads and examples a step, AdamW fused on both sides. One process; the
sides take turns and each turn's rate counts; ratios are those of the medians. Three tasks are one mixed data set for
the Trainer, each head on its own rows of a batch: the usual way to train several tasks with it.

A turn is a few steps, and `group_by_length` begins an epoch with its longest texts (fifty steps at a time are sorted
from long to short), so a turn's steps are drawn from all lengths of an epoch (`FromAllLengths`). The tokens an example
that each side saw are reported; they must be about equal.

    python tests/bench/trainer.py --data_dir DATA [--rounds 4] [--tasks sst] [--examples 576]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from plain_loop import TASKS, PlainModel, loss_of, read
from speed import our_turn
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from pal_dist.models.pretrained import find_model

Indices = list[int]

BATCH = 32
"""Examples of a task in a step."""
WARM_UP = 3
"""Steps at the beginning of a turn that do not count."""


class MixedModel(PlainModel):
    """A head for each task, on its own rows of a mixed batch."""

    examples = tokens = 0

    def forward(self, task_ids: Tensor, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        self.examples += len(labels)
        self.tokens += int(inputs["attention_mask"].sum())
        pooled = self.dropout(self.bert(**inputs).pooler_output)
        losses = []
        for index, task in enumerate(self.heads):
            rows = (task_ids == index).nonzero()[:, 0]
            if len(rows):
                losses.append(loss_of(task, self.heads[task](pooled[rows]), labels[rows]) * len(rows))
        return {"loss": torch.stack(losses).sum() / len(labels)}


class Rows(torch.utils.data.Dataset):
    """All tasks' training rows, tokenised."""

    def __init__(self, data_dir: str, tasks: list[str], tokenizer: Any):
        self.rows: list[dict[str, Any]] = []
        for index, task in enumerate(tasks):
            stem, columns, label, _ = TASKS[task]
            texts, labels = read(Path(data_dir) / f"{stem}-train.csv", columns, label)
            encoded = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=128)
            for row, value in enumerate(labels):
                inputs = {key: encoded[key][row] for key in encoded}
                self.rows.append({**inputs, "labels": value, "task_ids": index, "length": len(inputs["input_ids"])})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self.rows[index].items() if key != "length"}

    @property
    def column_names(self) -> list[str]:
        return list(self.rows[0])


class FromAllLengths(torch.utils.data.Sampler[int]):
    """A few steps of a sampler's epoch that stand for all: the epoch's steps, sorted by their tokens, are cut into as
    many parts as steps are asked for, and one is drawn from each, in random order. Each is equally likely, so the mean
    time of a turn's steps is that of the epoch's."""

    def __init__(self, sampler: torch.utils.data.Sampler[int], rows: Rows, *, size: int, steps: int):
        self.sampler, self.rows, self.size, self.steps = sampler, rows, size, steps

    def __len__(self) -> int:
        return self.size * self.steps

    def __iter__(self) -> Iterator[int]:
        epoch = list(self.sampler)
        whole = [epoch[i : i + self.size] for i in range(0, len(epoch) - self.size + 1, self.size)]
        whole.sort(key=lambda step: sum(self.rows.rows[row]["length"] for row in step))
        warm_up = [self._drawn(whole, 0, 1) for _ in range(WARM_UP)]
        counted = [self._drawn(whole, part, self.steps - WARM_UP) for part in range(self.steps - WARM_UP)]
        for step in [*warm_up, *(counted[i] for i in torch.randperm(len(counted)).tolist())]:
            yield from step

    @staticmethod
    def _drawn(whole: list[Indices], part: int, parts: int) -> Indices:
        return whole[int((part + float(torch.rand(()))) * len(whole) / parts)]


class FairTrainer(Trainer):
    """Its turns see texts of all lengths. `batch_rebalance` takes random rows for each step anyway."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy != "group_by_length":
            return sampler
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return FromAllLengths(sampler, self.train_dataset, size=size, steps=self.args.max_steps)


class Clock(TrainerCallback):
    """Times the steps of a turn after the first few."""

    def __init__(self) -> None:
        self.begun = self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.begun


def trainer_turn(
    rows: Rows,
    model: MixedModel,
    tokenizer: Any,
    folder: Path,
    sampling: str,
    *,
    batch: int,
    accumulate: int,
    steps: int,
    seen: list[float],
) -> Callable[[], float]:
    """A turn that returns examples a second and adds to `seen` how many tokens an example had."""
    collator = DataCollatorWithPadding(tokenizer)
    seeds = iter(range(1000))

    def turn() -> float:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=steps + WARM_UP,
            train_sampling_strategy=sampling,
            optim="adamw_torch_fused",
            learning_rate=3e-5,
            max_grad_norm=1.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            remove_unused_columns=False,
            dataloader_num_workers=0,
            seed=next(seeds),
        )
        model.train()
        trainer = FairTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]
        )
        examples, tokens = model.examples, model.tokens
        trainer.train()
        seen.append((model.tokens - tokens) / (model.examples - examples))
        return batch * accumulate * steps / clock.seconds

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--examples", type=int, default=576, help="examples in one turn")
    parser.add_argument("--tasks", default="sst,para,sts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = options.tasks.split(",")
    path = str(find_model("minilm"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = Rows(options.data_dir, tasks, tokenizer)
    model = MixedModel(path, tasks)
    size = BATCH * len(tasks)
    steps = options.examples // size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours, _ = our_turn(options.data_dir, "none", folder, options.examples, tasks=options.tasks)
        seen: dict[str, list[float]] = {}

        def our_rate() -> float:
            begun = time.perf_counter()
            return ours() / (time.perf_counter() - begun)

        turns = {"pal-dist": our_rate}
        for sampling in ("group_by_length", "batch_rebalance"):
            ways = {size: 1} | ({BATCH: len(tasks)} if len(tasks) > 1 else {})
            for batch, accumulate in ways.items():
                name = f"{sampling} {batch} x {accumulate}"
                turns[name] = trainer_turn(
                    rows,
                    model,
                    tokenizer,
                    folder,
                    sampling,
                    batch=batch,
                    accumulate=accumulate,
                    steps=steps,
                    seen=seen.setdefault(name, []),
                )
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(options.rounds + 1):
            for name, turn in turns.items():
                rate = turn()
                if number:  # the first round warms up
                    rates[name].append(rate)
            if number:
                print(" ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        json.dumps(
            {
                "tasks": tasks,
                "threads": options.threads,
                "examples_per_second": {name: round(value, 1) for name, value in medians.items()},
                "tokens_per_example": {
                    "of all rows": round(statistics.mean(row["length"] for row in rows.rows), 1),
                    **{name: round(statistics.mean(values[1:]), 1) for name, values in seen.items()},
                },
                "pal_dist_over": {
                    name: round(medians["pal-dist"] / value, 2) for name, value in medians.items() if name != "pal-dist"
                },
            }
        )
    )


if __name__ == "__main__":
    main()
