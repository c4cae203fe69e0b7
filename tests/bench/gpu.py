"""What a GPU shows, by one call on any CUDA machine, without a network: speed, memory, guard, strategies, the job.

    python tests/bench/gpu.py [--minutes 8] [--data_dir DATA] [--sections steps,...] [--output FOLDER]

BERT-base with random weights; real rows, or the built-in corpus. Sections run in order, the most important first, each
within its share of the time: what does not fit in is left out and said. Without a GPU the same code runs in miniature.

Prints one JSON line a measurement and, at the end, the tables of BENCHMARKS.md; `--output` keeps both, as gpu.json and
gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pal_dist.core.console import table
from tests.bench.gpu_sections import CUDA, SECTIONS, Bench, Record, bert_folder, data_folder

COLUMNS = {
    "steps": (
        ("adapter", "precision", "rows", "way"),
        (
            *("examples_per_second", "ms", "kernels", "launches", "busy_share", "useful_tflops", "share_of_peak"),
            *("useful_share", "allocated_gib"),
        ),
    ),
    "others": (("way", "rows"), ("examples_per_second", "ms", "kernels", "busy_share")),
    "kernels": (
        ("kernel", "dtype", "width", "first_only"),
        ("output_error", "gradient_error", "mean_under_dropout", "ms"),
    ),
    "memory": (
        ("precision", "adapter", "checkpoint_layers", "batch_size", "optimizer"),
        ("allocated_gib", "traced_off", "closed_form_off", "reserved_gib", "reserved_off"),
    ),
    "guard": (("cap_gib",), ("tightened_to", "distance")),
    "strategies": (("strategy",), ("distance", "worst_parameter")),
    "job": (("recipe",), ("said_seconds", "took_seconds", "examples_per_second", "memory_gib")),
}
"""Of each section's table: what tells its rows apart, what was measured."""


def described() -> Record:
    """The machine and what ran on it."""
    return {
        "section": "machine",
        "device": torch.cuda.get_device_name() if CUDA else f"cpu ({platform.machine()})",
        "capability": torch.cuda.get_device_capability() if CUDA else None,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def measured(bench: Bench, names: list[str], minutes: float) -> Iterator[Record]:
    """Every section's measurements, each section within its share of the time."""
    shares = sum(SECTIONS[name][1] for name in names)
    for name in names:
        section, share = SECTIONS[name]
        ends = time.monotonic() + 60 * minutes * share / shares
        for case, measure in section(bench):
            begun = time.monotonic()
            record: Record = {"section": name, **case}
            if begun > ends:
                yield {**record, "left_out": "no time"}
                continue
            try:
                record |= measure()
            except Exception as error:  # one measurement that fails must not cost the others
                record["error"] = f"{type(error).__name__}: {error}"[:600]
            yield {**record, "took_s": round(time.monotonic() - begun, 1)}
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()


def as_markdown(records: list[Record]) -> str:
    """The tables of BENCHMARKS.md."""
    machine = next(record for record in records if record["section"] == "machine")
    parts = [f"{machine['device']}, PyTorch {machine['torch']}, {machine['date']}: `python tests/bench/gpu.py`"]
    for name, (keys, figures) in COLUMNS.items():
        own = [record for record in records if record["section"] == name and "left_out" not in record]
        shown = [*keys, *(figure for figure in figures if any(figure in record for record in own))]
        rows = [[str(record.get(column, record.get("error", ""))) for column in shown] for record in own]
        lines = [f"| {' | '.join(row)} |" for row in [shown, ["---"] * len(shown), *rows]]
        parts += [f"### {name}", "\n".join(lines)] if own else []
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--data_dir", default="builtin", help="folder with the tasks' files, or builtin")
    parser.add_argument("--tokenizer", help="folder with a BERT tokenizer; default: MiniLM's (pal_dist[offline])")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rows", default="32,128,512" if CUDA else "4", help="examples of a task in a step")
    parser.add_argument("--output", help="folder that gpu.json and gpu.md are written to")
    options = parser.parse_args()
    records = [described()]
    print(json.dumps(records[0]), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = Bench(
            model=bert_folder(folder / "bert", options.tokenizer),
            data_dir=data_folder(options.data_dir, folder),
            folder=folder,
            rows=[int(rows) for rows in options.rows.split(",")],
        )
        for record in measured(bench, options.sections.split(","), options.minutes):
            records.append(record)
            print(json.dumps(record), flush=True)
    text = as_markdown(records)
    print(text)
    left_out = [record for record in records if "left_out" in record or "error" in record]
    print(table(["section", "left out or failed"], [[record["section"], str(record)[:90]] for record in left_out]))
    if options.output:
        target = Path(options.output)
        target.mkdir(parents=True, exist_ok=True)
        (target / "gpu.json").write_text(json.dumps(records, indent=1))
        (target / "gpu.md").write_text(text)


if __name__ == "__main__":
    main()
