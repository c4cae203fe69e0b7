"""The verb `train`: a run set up, trained, its results written and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import write_json
from pal_dist.core.errors import StoppedError
from pal_dist.monitoring import run_files
from pal_dist.training.setup import set_up
from pal_dist.training.summary import collect_results, end_lines
from pal_dist.training.trainer import Trainer


def train(config: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> dict[str, Any]:
    """The whole of `pal-dist train`; returns the results, on every rank. Raises UserError."""
    run = set_up(config, origins, cache_dir=cache_dir)
    trainer = Trainer(run)
    try:
        with trainer.preemption, run.report.record_outcome():
            trainer.fit()
            results = collect_results(run)
            if run.engine.is_main:
                write_json(run.folder / run_files.RESULTS, results)
                run.report.set_state("finished", run.state.step)
                run.report.say("", *end_lines(results, run))
        run.close()
    except StoppedError:  # all ranks have agreed on it: none of them is lost to the others
        run.engine.close()
        raise
    finally:
        run.engine.release_run_folder()
    return results
