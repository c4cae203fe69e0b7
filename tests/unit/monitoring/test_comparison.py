"""The page of a comparison: it stands alone, leaves out what is unfinished, and says what it cannot read or draw."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.core.errors import UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import build_comparison, compare
from tests.support.hidden_libraries import hide_libraries
from tests.support.html_page import Page
from tests.support.written_runs import ROUND_ROBIN, rewrite


def test_the_page_stands_alone(runs: Path) -> None:
    text = build_comparison([runs], title="<b> & co").html()
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


def test_the_same_runs_give_the_same_page(runs: Path) -> None:
    assert build_comparison([runs]).html() == build_comparison([runs]).html()


def test_unfinished_runs_are_shown_and_not_counted(runs: Path) -> None:
    status = runs / "round_robin_1" / run_files.STATUS
    rewrite(status, state="stopped", error="stopped before step 4, as asked", step=3)
    comparison = build_comparison([runs], baseline=ROUND_ROBIN)
    assert [len(group.counted) for group in comparison.groups] == [2, 1]
    assert any("Unfinished" in note and "round_robin_1" in note for note in comparison.notes)
    assert "stopped: stopped before step 4, as asked | 3 of 6" in comparison.markdown()
    for name in ("round_robin_0", "proportional_0", "proportional_1"):
        rewrite(runs / name / run_files.STATUS, state="failed")
    last = build_comparison([runs])
    assert last.tables == []
    assert "(unfinished)" in last.html()


def test_bad_input(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([], "name what to compare"),
        ([tmp_path / "none"], "there is no such folder"),
        ([tmp_path / "empty"], "expected a run's folder or a folder of runs"),
        ([runs, "--baseline", "sampling=round_robbin"], "did you mean 'sampling=round_robin'"),
        ([runs, "--outputdir", "x"], "did you mean --output_dir"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, arguments)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder, found a file"):
        compare([runs / "round_robin_1"], tmp_path / "file")


@pytest.mark.parametrize("number", ["NaN", "null"], ids=["as version 0.1.0 wrote it", "as today"])
def test_a_score_that_is_no_number(number: str, runs: Path) -> None:
    results = runs / "round_robin_0" / run_files.RESULTS
    text, count = re.subn(r'"pearson": [\d.]+', f'"pearson": {number}', results.read_text())
    text = re.sub(r'"dev_mean": [\d.]+', f'"dev_mean": {number}', text)
    assert count == 1
    results.write_text(text)
    comparison = build_comparison([runs], baseline=ROUND_ROBIN)
    assert math.isnan(next(run for run in comparison.runs if run.folder.name == "round_robin_0").scores["sts"])
    assert "not a number: cannot be told" in comparison.markdown()
    assert comparison.html()


@pytest.mark.parametrize("library", ["scipy", "matplotlib", "jinja2"])
def test_without_the_extra_the_cure_is_named(
    library: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hide_libraries(monkeypatch, library)
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(runs), "--output_dir", str(tmp_path / "page")])
    assert ended.value.code == 2
    assert f"compare needs {library}: pip install 'pal-dist[compare]'" in capsys.readouterr().err
    assert not list((tmp_path / "page").glob("*"))
