"""Examples per second of pal-dist against the usual loop.

Same encoder, data, batch size, precision and threads. Both train in this one process, in turn, some hundred examples
at a time; each turn's rate counts, and the ratio is that of the medians. pal-dist runs `--sampling proportional`, so
that both see the tasks in the same proportions.

    python tests/bench/speed.py --data_dir DATA [--rounds 8] [--adapters none,pal]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from plain_loop import PlainLoop

from pal_dist.config.resolve import resolve
from pal_dist.models.pretrained import find_model
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer


def plain_turn(loop: PlainLoop, steps: Iterator[int], examples: int) -> Callable[[], int]:
    def turn() -> int:
        loop.model.train()
        done = 0
        while done < examples:
            done += next(steps)
        return done

    return turn


def our_turn(
    data_dir: str, adapter: str, folder: Path, examples: int, *, tasks: str = "sst,para,sts"
) -> tuple[Callable[[], int], Callable[[], float]]:
    flags = {
        "tasks": tasks,
        "data_dir": data_dir,
        "adapter": adapter,
        "sampling": "proportional",
        "epochs": "1",
        "cache_dir": str(folder),
        "output_dir": str(folder / adapter),
    }
    trainer = Trainer(set_up(resolve(flags)[0], {}, cache_dir=folder))
    steps = trainer.run.schedule.steps(0, trainer.run.total_steps)

    def turn() -> int:
        trainer.engine.model.train()
        done = 0
        while done < examples:
            served = next(steps)
            trainer.step(served)
            trainer.state.step += 1
            done += sum(len(rows) for _, rows in served)
        return done

    return turn, lambda: trainer.log_window.useful_tokens / trainer.log_window.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--examples", type=int, default=768, help="examples in one turn")
    parser.add_argument("--adapters", default="none,pal")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        plain = PlainLoop(options.data_dir, str(find_model("minilm")), max_length=128)
        turns = {"plain": plain_turn(plain, plain.epoch(), options.examples)}
        shares = {"plain": lambda: plain.useful / plain.tokens}
        for adapter in options.adapters.split(","):
            turns[adapter], shares[adapter] = our_turn(options.data_dir, adapter, Path(folder), options.examples)
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(options.rounds + 1):
            for name, turn in turns.items():
                start = time.perf_counter()
                done = turn()
                if number:  # the first round warms up
                    rates[name].append(done / (time.perf_counter() - start))
            if number:
                print(" ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()), flush=True)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(
            json.dumps(
                {
                    "threads": options.threads,
                    "examples_per_second": {name: round(value, 2) for name, value in medians.items()},
                    "ratio_to_plain": {name: round(value / medians["plain"], 2) for name, value in medians.items()},
                    "ratio_range": {
                        name: [round(min(pairs), 2), round(max(pairs), 2)]
                        for name, values in rates.items()
                        for pairs in [[a / b for a, b in zip(values, rates["plain"], strict=True)]]
                    },
                    "useful_token_share": {name: round(share(), 4) for name, share in shares.items()},
                }
            )
        )


if __name__ == "__main__":
    main()
