"""What a person and a program see of a run: progress, TensorBoard, metrics.jsonl. Ranks other than 0 report nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.atomic_io import explain_full_disk, write_text
from pal_dist.core.console import duration, say
from pal_dist.monitoring import run_files
from pal_dist.monitoring.status_file import StatusFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PLAIN_SECONDS = 10.0
"""Least time between two progress lines where the output is no terminal."""


class Report:
    """Says nothing: the report of the ranks other than 0, and the base of the one that does."""

    def lines(self, *lines: str) -> None: ...

    def progress(self, step: int, total: int, entry: Mapping[str, Any]) -> None: ...

    def evaluation(
        self, step: int, metrics: Mapping[str, Mapping[str, float]], mean: float, *, headline: Mapping[str, str]
    ) -> None: ...

    def confusion(self, step: int, task: str, counts: NDArray[np.int64]) -> None: ...

    def cosines(self, step: int, tasks: list[str], cosines: list[list[float]]) -> None: ...

    def picture(self, name: str, image: NDArray[np.uint8]) -> None: ...

    def state(self, state: str, step: int) -> None: ...

    def recorded(self) -> AbstractContextManager[None]:
        """What ends the block is written down."""
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
            write_text(self.metrics_file, "".join(json.dumps(entry) + "\n" for entry in entries))
        self.confusions: dict[str, list[list[int]]] = {}  # of the evaluation that is going on
        self.terminal = sys.stderr.isatty()
        self.shown = 0.0
        self.width = 0

    def lines(self, *lines: str) -> None:
        self._end_line()
        for line in lines:
            say(line)

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
        now = time.monotonic()
        if self.terminal:
            line = f"\r{_bar(step, total)} {_progress_text(step, total, entry)}"
            sys.stderr.write(line + " " * (self.width - len(line)))
            sys.stderr.flush()
            self.width = len(line)
        elif now - self.shown >= PLAIN_SECONDS or step == total:
            say(_progress_text(step, total, entry))
            self.shown = now

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
        self.lines(f"step {step}: dev mean {mean:.4f}   {scores}")

    def confusion(self, step: int, task: str, counts: NDArray[np.int64]) -> None:
        self.confusions[task] = counts.tolist()
        self.writer.add_image(f"confusion/{task}", confusion_image(counts), step, dataformats="HWC")

    def cosines(self, step: int, tasks: list[str], cosines: list[list[float]]) -> None:
        self.writer.add_image("task_cosines", cosine_image(tasks, cosines), step, dataformats="HWC")

    def picture(self, name: str, image: NDArray[np.uint8]) -> None:
        self.writer.add_image(name, image, 0, dataformats="HWC")

    def state(self, state: str, step: int) -> None:
        self.status_file.write(state, step)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.status_file.ended(error)
            raise

    def close(self) -> None:
        self._end_line()
        self.writer.close()

    def _record(self, entry: Mapping[str, Any]) -> None:
        with explain_full_disk(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _end_line(self) -> None:
        if self.width:
            sys.stderr.write("\n")
            self.width = 0


def _bar(step: int, total: int, cells: int = 20) -> str:
    full = step * cells // total
    return "[" + "#" * full + "." * (cells - full) + "]"


def _progress_text(step: int, total: int, entry: Mapping[str, Any]) -> str:
    losses = " ".join(f"{task} {value:.3f}" for task, value in entry["loss"].items())
    return (
        f"step {step}/{total}  loss {losses}  {entry['examples_per_second']:.1f} examples/s  "
        f"{entry['tokens_per_second']:,.0f} tokens/s  useful {entry['useful_token_share']:.1%}  "
        f"memory {entry['memory_gib']:.2f} GiB  left {duration(entry['seconds_left'])}"
    )


def confusion_image(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A picture (height, width, 3) of counts [label, prediction]: the darker, the larger the share of its label."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [str(kind) for kind in range(len(counts))]
    return _grid_image("label\\pred", names, counts.astype(str).tolist(), share)


def cosine_image(tasks: list[str], cosines: list[list[float]]) -> NDArray[np.uint8]:
    """A picture (height, width, 3) of the cosines between tasks' gradients: blue where they agree, red where not."""
    texts = [[f"{value:.2f}" for value in row] for row in cosines]
    return _grid_image("cosine", [task[:7] for task in tasks], texts, np.asarray(cosines))


def _grid_image(corner: str, names: list[str], texts: list[list[str]], shades: NDArray[Any]) -> NDArray[np.uint8]:
    """Squares of (rows, columns) with texts in them; shades from -1 (red) over 0 (white) to 1 (blue)."""
    from PIL import Image, ImageDraw

    cell, size = 56, len(names)
    picture = Image.new("RGB", ((size + 1) * cell, (size + 1) * cell), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((4, 4), corner, fill="black")
    for row in range(size):
        draw.text((4, (row + 1) * cell + cell // 3), names[row], fill="black")
        draw.text(((row + 1) * cell + 4, cell // 2), names[row], fill="black")
        for column in range(size):
            shade = float(np.nan_to_num(shades[row, column]))
            pale = round(255 * (1 - abs(shade)))
            corner_at = ((column + 1) * cell, (row + 1) * cell)
            colour = (pale, pale, 255) if shade >= 0 else (255, pale, pale)
            draw.rectangle((*corner_at, corner_at[0] + cell - 2, corner_at[1] + cell - 2), fill=colour)
            ink = "white" if shade > 0.6 else "black"
            draw.text((corner_at[0] + cell // 4, corner_at[1] + cell // 3), texts[row][column], fill=ink)
    return np.asarray(picture)
