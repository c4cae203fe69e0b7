"""`pal-dist compare` of real runs: the page says what they wrote, also in a real browser."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pal_dist.commands.train import train
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import confusions
from pal_dist.monitoring.compare.runs import find_runs, group_runs
from tests.support.browser import browser
from tests.support.html_page import Page
from tests.support.tiny_run import make_tiny_run
from tests.support.written_runs import ROUND_ROBIN, SAMPLINGS, SEEDS, write_run


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real runs: two samplings, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for sampling in SAMPLINGS:
        for seed in SEEDS:
            run = make_tiny_run(
                tiny_bert,
                small_data,
                cache_dir,
                folder,
                output_dir=folder / f"{sampling}_{seed}",
                sampling=sampling,
                seed=seed,
                evaluate_every="2",
                memory="off",
            )
            train(run, {}, cache_dir=cache_dir)
    return folder


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page and its tables, written by the command line in a process of its own, which must not load torch."""
    folder = tmp_path_factory.mktemp("compare")
    arguments = ["compare", str(runs), "--output_dir", str(folder), "--baseline", ROUND_ROBIN, "--title", "<b> & co"]
    code = f"import sys; from pal_dist.cli import main; main({arguments!r}); assert 'torch' not in sys.modules"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [str(folder / "compare.html"), str(folder / "compare.md")]
    return folder


def names_in(value: object, path: str = "") -> set[str]:
    """Names of all that a JSON object holds, but those of metrics: a written run has the headline ones alone."""
    if not isinstance(value, dict):
        return {path}
    return set().union(*(names_in(each, f"{path}/{name}") for name, each in value.items() if path[:5] != "/dev/"))


def test_written_runs_are_like_trained_ones(runs: Path, tmp_path: Path) -> None:
    """The folders that unit tests make without training hold what training writes."""
    names = []
    for folder in (runs / "round_robin_1", write_run(tmp_path / "written", seed=1)):
        whole = (run_files.CONFIG, run_files.STATUS, run_files.RESULTS)
        contents = [json.loads((folder / name).read_text()) for name in whole]
        contents += [json.loads(line) for line in (folder / run_files.METRICS).read_text().splitlines()]
        names.append([names_in(content) for content in contents])
    assert names[0] == names[1]


def test_the_page_says_what_the_runs_wrote(runs: Path, written: Path) -> None:
    tables = {table[0][1]: table for table in Page((written / "compare.html").read_text()).tables}
    lines = (written / "compare.md").read_text().splitlines()
    rows = {row[0]: row for row in tables["seeds"][1:]}
    for sampling in SAMPLINGS:
        results = [json.loads((runs / f"{sampling}_{seed}" / run_files.RESULTS).read_text()) for seed in SEEDS]
        columns = [[each["dev"][task][each["headline"][task]] for each in results] for task in ("sst", "para", "sts")]
        columns.append([each["dev_mean"] for each in results])
        shown = [f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" for values in columns]
        assert rows[f"sampling={sampling}"] == [f"sampling={sampling}", "2", *shown]
        plain = [line.replace("**", "") for line in lines]
        assert f"| sampling={sampling} | 2 | {' | '.join(shown)} |" in plain
        cost = dict(
            zip(tables["wall clock"][0], {r[0]: r for r in tables["wall clock"]}[f"sampling={sampling}"], strict=True)
        )
        assert cost["parameters"] == f"{results[0]['parameters']:,}"
        assert cost["sst's own"] == f"{results[0]['parameters_by_part']['sst']:,}"
        assert cost["steps"] == "6"
        assert cost["precision"] == "fp32"


def test_confusions_are_of_the_kept_model(runs: Path) -> None:
    (group, _), _ = group_runs(find_runs([runs]))
    best = group.best
    assert best is not None
    assert best.results is not None
    assert best.results["dev_mean"] == max(run.scores["mean"] for run in group.counted)
    counts_by_task = confusions(group)
    assert list(counts_by_task) == ["sst", "para"]  # sts predicts a score
    for task, counts in counts_by_task.items():
        right = sum(row[index] for index, row in enumerate(counts))
        assert right / sum(map(sum, counts)) == pytest.approx(best.results["dev"][task]["accuracy"])


def test_the_page_in_a_browser(written: Path, tmp_path: Path) -> None:
    """Chromium draws it: the figures are there, the picture is not blank, nothing is asked for."""
    options = browser(tmp_path / "profile")
    if options is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    from PIL import Image

    def call(page: Path, *more: str) -> str:
        command = [*options, *more, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    def asked_for(page: Path) -> tuple[str, set[str]]:
        """(the page's tree, addresses that it asked for). What no page began is the browser's own."""
        log = page.with_suffix(".json")
        tree = call(page, "--dump-dom", f"--log-net-log={log}")
        starts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
        return tree, {
            start["url"]
            for start in starts
            if start.get("url", "").startswith("http") and start.get("initiator", "not an origin") != "not an origin"
        }

    page = Path(shutil.copy(written / "compare.html", tmp_path))
    tree, requested = asked_for(page)
    assert tree.count("<figure>") == 7
    assert tree.count("<path") > 50
    assert requested == set()
    (tmp_path / "other.html").write_text('<img src="http://127.0.0.1:9/picture.png">')
    assert asked_for(tmp_path / "other.html")[1] == {"http://127.0.0.1:9/picture.png"}  # it would have been seen
    for width in (500, 1600):
        picture = tmp_path / f"{width}.png"
        call(page, f"--screenshot={picture}", f"--window-size={width},2400")
        pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
        assert 0.02 < (pixels.min(axis=1) < 250).mean() < 0.5
        blue = np.abs(pixels.astype(int) - (0x00, 0x72, 0xB2)).max(axis=1) < 12
        assert blue.sum() > 200  # links, and the first group's curves
