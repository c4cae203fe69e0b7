"""`pal-dist compare`: the statistics against scipy, the groups, and the page of real runs, also in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.config.resolve import resolve
from pal_dist.core.errors import UserError
from pal_dist.monitoring.compare import build_comparison, compare, confusions
from pal_dist.monitoring.compare.figures import draw_curves, line_styles
from pal_dist.monitoring.compare.runs import find_runs, group_runs, read_run
from pal_dist.monitoring.compare.tables import (
    EXCEEDS,
    WITHIN,
    best_beyond_noise,
    command,
    differences,
    headlines,
)
from tests.support.browser import browser
from tests.support.tiny_run import make_tiny_run

SAMPLINGS = ("round_robin", "proportional")


SEEDS = (0, 1)


ROUND_ROBIN, PROPORTIONAL = (f"sampling={name}" for name in SAMPLINGS)


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


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("checkpoints", "model")))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_scores(folder: Path, **scores: float) -> None:
    """What a run would have written, had it scored so."""
    dev = {task: {"accuracy": value} for task, value in scores.items()}
    rewrite(folder / "results.json", dev=dev, dev_mean=statistics.fmean(scores.values()))


def test_groups_differ_in_more_than_the_seed(runs: Path) -> None:
    groups, notes = group_runs(find_runs([runs]))
    assert {group.name: [run.values["seed"] for run in group.counted] for group in groups} == {
        PROPORTIONAL: list(SEEDS),
        ROUND_ROBIN: list(SEEDS),
    }
    assert notes == []
    assert len(find_runs([runs, runs / "round_robin_0"])) == 4
    assert find_runs([runs / "round_robin_1", runs])[0].folder.name == "round_robin_1"


def test_settings_that_do_not_matter_make_no_group(copied: Path) -> None:
    path = copied / "round_robin_1" / "config.json"
    written = json.loads(path.read_text())
    written["values"]["train"] |= {"output_dir": "elsewhere", "log_every": 7}
    written["values"]["data"] |= {"cache_dir": "elsewhere", "data_dir": "elsewhere"}
    path.write_text(json.dumps(written))
    assert len(group_runs(find_runs([copied]))[0]) == 2
    written["values"]["optimizer"]["learning_rate"] = 0.5
    path.write_text(json.dumps(written))
    names = [group.name for group in group_runs(find_runs([copied]))[0]]
    assert f"{ROUND_ROBIN} learning_rate=0.5" in names
    assert f"{ROUND_ROBIN} learning_rate=0.001" in names
    written["values"]["optimizer"]["learning_rate"] = None
    path.write_text(json.dumps(written))
    names = [group.name for group in group_runs(find_runs([copied]))[0]]
    assert f"{ROUND_ROBIN} learning_rate=default" in names


def test_other_data_is_another_group(copied: Path) -> None:
    path = copied / "round_robin_1" / "config.json"
    rewrite(path, content=json.loads(path.read_text())["content"] | {"dev/sst": "other"})
    groups, notes = group_runs(find_runs([copied / "round_robin_0", copied / "round_robin_1"]))
    assert len({group.name for group in groups}) == 2
    assert any("the dev split of sst" in note for note in notes)


def test_a_single_task_has_no_mean_of_its_own(copied: Path) -> None:
    """Its one score beside means over three tasks would be compared with them."""
    for name in SAMPLINGS:
        set_scores(copied / f"{name}_0", sst=0.5)
    found = build_comparison([copied])
    alone = [run for run in found.runs if run.folder.name.endswith("_0")]
    assert [run.scores for run in alone] == [{"sst": 0.5}] * 2
    assert {run.mean for run in alone} == {0.5}
    assert all(group.best is not None and group.best.mean == 0.5 for group in found.groups)


def test_a_repeated_seed_is_said_and_not_counted(copied: Path) -> None:
    shutil.copytree(copied / "round_robin_0", copied / "round_robin_2")
    groups, notes = group_runs(find_runs([copied]))
    assert {len(group.counted) for group in groups} == {2}
    assert "round_robin_2 repeats" in notes[0]


def test_unfinished_runs_are_shown_and_not_counted(copied: Path) -> None:
    rewrite(copied / "round_robin_1" / "status.json", state="stopped", error="stopped before step 4, as asked", step=3)
    found = build_comparison([copied], baseline=ROUND_ROBIN)
    assert [len(group.counted) for group in found.groups] == [2, 1]
    assert any("Unfinished" in note and "round_robin_1" in note for note in found.notes)
    assert "stopped: stopped before step 4, as asked | 3 of 6" in found.markdown()
    for name in ("round_robin_0", "proportional_0", "proportional_1"):
        rewrite(copied / name / "status.json", state="failed")
    last = build_comparison([copied])
    assert last.tables == []
    assert "(unfinished)" in last.html()


def test_bad_input(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for given, words in [
        ([], "name what to compare"),
        ([tmp_path / "none"], "there is no such folder"),
        ([tmp_path / "empty"], "expected a run's folder or a folder of runs"),
        ([copied, "--baseline", "sampling=round_robbin"], "did you mean 'sampling=round_robin'"),
        ([copied, "--outputdir", "x"], "did you mean --output_dir"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, given)])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    (copied / "round_robin_0" / "results.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        find_runs([copied])
    (copied / "round_robin_0" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is missing"):
        find_runs([copied])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder, found a file"):
        compare([copied / "round_robin_1"], tmp_path / "file")


def test_verdicts(copied: Path) -> None:
    shutil.copytree(copied / "round_robin_0", copied / "round_robin_2")
    shutil.copytree(copied / "proportional_0", copied / "proportional_2")
    for sampling, shift in (("round_robin", 0.0), ("proportional", 0.2)):
        for seed in range(3):
            folder = copied / f"{sampling}_{seed}"
            config = json.loads((folder / "config.json").read_text())
            config["values"]["train"]["seed"] = seed
            (folder / "config.json").write_text(json.dumps(config))
            set_scores(folder, sst=0.5 + shift + 0.001 * seed, para=0.5 + shift / 100 + 0.01 * seed)
    found = build_comparison([copied], baseline=ROUND_ROBIN)
    verdicts = {column: verdict for _, column, _, _, verdict in differences(found.groups, found.baseline)}
    assert verdicts == {"sst": EXCEEDS, "para": WITHIN, "mean": EXCEEDS}
    best = {column: best_beyond_noise(column, found.groups) for column in verdicts}
    assert {column: group and group.name for column, group in best.items()} == {
        "sst": PROPORTIONAL,
        "para": None,
        "mean": PROPORTIONAL,
    }
    assert "**0.7010 ± 0.0010**" in found.markdown()
    assert "**0.5120 ± 0.0100**" not in found.markdown()
    (group, _, one, corrected, _), *_ = differences(found.groups, found.baseline)
    assert group.name == PROPORTIONAL
    assert one.p is not None
    assert corrected == pytest.approx(min(1, 3 * one.p), rel=1)  # the smallest two of three
    set_scores(copied / "round_robin_0", sst=math.nan, para=0.5)
    again = build_comparison([copied], baseline=ROUND_ROBIN)
    assert "not a number: cannot be told" in again.markdown()
    assert again.html()


VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Holds tags to be balanced; collects ids, links, and the tables' texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page and its tables, written by the command line in a process of its own, which must not load torch."""
    folder = tmp_path_factory.mktemp("compare")
    arguments = ["compare", str(runs), "--output_dir", str(folder), "--baseline", ROUND_ROBIN, "--title", "<b> & co"]
    code = f"import sys; from pal_dist.cli import main; main({arguments!r}); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [str(folder / "compare.html"), str(folder / "compare.md")]
    return folder


def test_groups_look_different(runs: Path) -> None:
    (group, _) = build_comparison([runs]).groups
    assert len(set(line_styles([group] * 28))) == 28


def test_the_page_stands_alone(written: Path) -> None:
    text = (written / "compare.html").read_text()
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "img", "iframe", "object"), tag
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
            assert target in ("#", "data:,") or target[1:] in ids, target
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert "&lt;b&gt; &amp; co" in text  # what people write is text
    assert "<b> & co" not in text
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == 7  # loss and dev of three tasks, and the mean
    assert text.count("<title>") == 1 + len(figures)


def test_the_page_says_what_the_runs_wrote(runs: Path, written: Path) -> None:
    tables = {table[0][1]: table for table in Page((written / "compare.html").read_text()).tables}
    lines = (written / "compare.md").read_text().splitlines()
    rows = {row[0]: row for row in tables["seeds"][1:]}
    for sampling in SAMPLINGS:
        results = [json.loads((runs / f"{sampling}_{seed}" / "results.json").read_text()) for seed in SEEDS]
        columns = [[next(iter(each["dev"][task].values())) for each in results] for task in ("sst", "para", "sts")]
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
    found = confusions(group)
    assert list(found) == ["sst", "para"]  # sts predicts a score
    for task, counts in found.items():
        right = sum(row[index] for index, row in enumerate(counts))
        assert right / sum(map(sum, counts)) == pytest.approx(best.results["dev"][task]["accuracy"])


def test_single_evaluations_stand_side_by_side(runs: Path) -> None:
    """One dev point a run: groups beside each other, with bars; where there are more, curves over steps."""
    found = find_runs([runs])
    once = [
        replace(run, dev={name: dict(list(values.items())[-1:]) for name, values in run.dev.items()}) for run in found
    ]
    for members, beside in ((found, 0), (once, 4)):  # sst, para, sts and the mean
        groups, _ = group_runs(members)
        figures = [figure for figure in draw_curves(groups, headlines(groups)) if "loss" not in figure.title]
        assert len(figures) == 4
        assert sum("groups in the legend" in figure.svg for figure in figures) == beside


def test_commands_train_the_same_run(runs: Path) -> None:
    import shlex

    run = read_run(runs / "proportional_1")
    words = shlex.split(command(run))
    assert words[:2] == ["pal-dist", "train"]
    flags = {name.removeprefix("--"): value for name, value in zip(words[2::2], words[3::2], strict=True)}
    again = json.loads(json.dumps(resolve(flags)[0].to_dict()))
    assert {name: value for section in again.values() for name, value in section.items()} == run.values


def test_the_same_runs_give_the_same_page(runs: Path) -> None:
    assert build_comparison([runs]).html() == build_comparison([runs]).html()


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
            found["url"]
            for found in starts
            if found.get("url", "").startswith("http") and found.get("initiator", "not an origin") != "not an origin"
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
