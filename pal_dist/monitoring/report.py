"""What a person and a program see of a run: progress, TensorBoard, metrics.jsonl. Ranks other than 0 report nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pal_dist.core.atomic_io import explain_full_disk, to_json, write_text
from pal_dist.core.console import duration, say
from pal_dist.core.extras import cure, has_library
from pal_dist.monitoring import run_files
from pal_dist.monitoring.images import confusion_image, cosine_image
from pal_dist.monitoring.status_file import StatusFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PLAIN_SECONDS = 10.0
"""Least time between two progress lines where the output is no terminal."""


class Report:
    """Says nothing: the report of the ranks other than 0, and the base of the one that does."""

    def say(self, *lines: str) -> None: ...

    def progress(self, step: int, total: int, entry: Mapping[str, Any]) -> None: ...

    def evaluation(
        self, step: int, metrics: Mapping[str, Mapping[str, float]], mean: float, *, headline: Mapping[str, str]
    ) -> None: ...

    def confusion(self, step: int, task: str, counts: NDArray[np.int64]) -> None: ...

    def cosines(self, step: int, tasks: list[str], cosines: list[list[float]]) -> None: ...

    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0) -> None: ...

    def set_state(self, state: str, step: int) -> None: ...

    def record_outcome(self) -> AbstractContextManager[None]:
        """An error that ends the block is written down as the run's end."""
        return nullcontext()

    def close(self) -> None: ...


class RunReport(Report):
    """Writes into the run's folder and to the terminal."""

    def __init__(self, folder: Path, *, step: int, total_steps: int, job: Mapping[str, str]):
        """`step`: where the run is resumed; what was logged after it is dropped, for it will be logged again."""
        from torch.utils.tensorboard import SummaryWriter

        self.status_file = StatusFile(folder, step, total_steps, job)
        self.writer: SummaryWriter = SummaryWriter(
            str(folder / run_files.TENSORBOARD), purge_step=step + 1 if step else None
        )
        self.metrics_file = folder / run_files.METRICS
        if self.metrics_file.is_file():
            entries = [entry for entry in run_files.read_metrics(folder) if entry["step"] <= step]
            write_text(self.metrics_file, "".join(to_json(entry) + "\n" for entry in entries))
        self.confusions: dict[str, list[list[int]]] = {}  # of the evaluation that is being made
        self.last_plain_line = 0.0
        self.bar = tqdm(
            total=total_steps, initial=step, disable=None, leave=False, ascii=".#", bar_format="[{bar:20}] {desc}"
        )  # on a terminal alone
        self.draws = has_library("matplotlib")
        if not self.draws:
            self.say(f"TensorBoard: no pictures (confusion matrices, cosines): they need matplotlib, {cure('compare')}")

    def say(self, *lines: str) -> None:
        """Lines for the person; they stand above the progress bar."""
        for line in lines:
            if self.bar.disable:
                say(line)
            else:
                self.bar.write(line, file=sys.stderr)

    def progress(self, step: int, total: int, entry: Mapping[str, Any]) -> None:
        """One log entry: to the files always, to the terminal as a live line, to a log file now and then."""
        self._record({"step": step, **entry})
        self.status_file.write("training", step)
        for name, value in entry.items():
            if isinstance(value, Mapping):
                for task, number in value.items():
                    self.writer.add_scalar(f"{name}/{task}", number, step)
            else:
                self.writer.add_scalar(f"train/{name}", value, step)
        text = _progress_text(step, total, entry)
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.n = step
            self.bar.set_description_str(text)
        elif now - self.last_plain_line >= PLAIN_SECONDS or step == total:
            say(text)
            self.last_plain_line = now

    def evaluation(
        self, step: int, metrics: Mapping[str, Mapping[str, float]], mean: float, *, headline: Mapping[str, str]
    ) -> None:
        """`headline` names the metric by which each task is judged."""
        entry = {"step": step, "dev": metrics, "headline": headline, "dev_mean": mean, "confusion": self.confusions}
        self._record(entry)
        self.confusions = {}
        for task, values in metrics.items():
            for name, value in values.items():
                self.writer.add_scalar(f"dev_{name}/{task}", value, step)
        self.writer.add_scalar("dev_mean", mean, step)
        scores = "  ".join(f"{task} {name} {metrics[task][name]:.4f}" for task, name in headline.items())
        self.say(f"step {step}: dev mean {mean:.4f}   {scores}")

    def confusion(self, step: int, task: str, counts: NDArray[np.int64]) -> None:
        """Counts [label, prediction] of a task's dev split; to be called before the evaluation that they belong to."""
        self.confusions[task] = counts.tolist()
        if self.draws:
            self.add_image(f"confusion/{task}", confusion_image(counts), step)

    def cosines(self, step: int, tasks: list[str], cosines: list[list[float]]) -> None:
        if self.draws:
            self.add_image("task_cosines", cosine_image(tasks, cosines), step)

    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0) -> None:
        """A picture for TensorBoard, (height, width, 3)."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def set_state(self, state: str, step: int) -> None:
        self.status_file.write(state, step)

    @contextmanager
    def record_outcome(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.status_file.ended(error)
            raise

    def close(self) -> None:
        self.bar.close()
        self.writer.close()

    def _record(self, entry: Mapping[str, Any]) -> None:
        with explain_full_disk(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(to_json(entry) + "\n")


def _progress_text(step: int, total: int, entry: Mapping[str, Any]) -> str:
    losses = " ".join(f"{task} {value:.3f}" for task, value in entry["loss"].items())
    return (
        f"step {step}/{total}  loss {losses}  {entry['examples_per_second']:.1f} examples/s  "
        f"{entry['tokens_per_second']:,.0f} tokens/s  useful {entry['useful_token_share']:.1%}  "
        f"memory {entry['memory_gib']:.2f} GiB  left {duration(entry['seconds_left'])}"
    )
