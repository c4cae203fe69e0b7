"""docs/study.md's tables and figures, and one page a question, from the runs of `study.py`.

    python tests/bench/study_pages.py --study_dir STUDY [--pages_dir STUDY/pages] [--only samplings,adapters]

A table of docs/study.md stands below a line `<!-- QUESTION: TITLE OF THE TABLE -->`; the words around it are for a
person to write. A figure, docs/study/QUESTION.png, is the part "Curves" of the page, as headless Chromium draws it. The
pages themselves are two megabytes of mostly repeated lines, so they are not in Git.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

sys.path.insert(0, str(Path(__file__).parents[2]))

from study import BASE, QUESTIONS

from pal_dist.monitoring.compare import Comparison, build_comparison
from tests.support.browser import browser

ROOT = Path(__file__).parents[2]
TEXT, PICTURES = ROOT / "docs" / "study.md", ROOT / "docs" / "study"

TITLES = {
    "samplings": "five schedulers",
    "batches": "batches of 8 to 128",
    "equal_steps": "larger batches, as many steps",
    "pals": "with PALs, without, and waking ones",
    "adapters": "every adapter",
    "conflicts": "gradient conflict",
    "weightings": "weightings of the tasks",
    "steps": "all tasks in a step, or one",
    "accumulation": "accumulation",
    "whole": "three tasks on the whole files, against each alone",
}
BASELINES = {
    "pals": "adapter=none",
    "adapters": "adapter=none",
    "whole": "tasks=sst,para,sts adapter=none batch_size=32",
}
"""Where it is not the study's base."""


def comparison_of(question: str, study: Path) -> Comparison:
    folders = [study / question]
    if BASE in QUESTIONS[question]:
        folders.insert(0, study / "base")
    return build_comparison(folders, title=f"Study: {TITLES[question]}", baseline=BASELINES.get(question))


def page_of(comparison: Comparison, study: Path) -> str:
    """The page, without the names of the folders on the machine that trained."""
    page = comparison.html()
    names = {study / "data": "DATA", study: "STUDY"}
    names |= {Path(str(run.values["data_dir"])): "DATA" for run in comparison.runs}
    for folder in sorted(names, key=lambda folder: len(str(folder)), reverse=True):
        page = page.replace(str(folder), names[folder])
    return page


def draw(page: str, target: Path) -> None:
    """A picture of the page's curves."""
    curves = re.search(r"(?<=<h2>Curves</h2>).*?(?=<h2>)", page, re.S)
    assert curves is not None
    with tempfile.TemporaryDirectory() as folder:
        alone, picture = Path(folder, "curves.html"), Path(folder, "curves.png")
        alone.write_text(f"{page[: page.index('<body')]}<body style='padding:.5rem 1rem'>{curves[0]}</body></html>")
        command = browser(Path(folder, "profile"))
        if command is None:
            raise SystemExit("no chromium here: apt-get install chromium")
        command += ["--window-size=1200,2400", f"--screenshot={picture}", alone.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        image = Image.open(picture).convert("RGB")
        bottom = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
        assert bottom is not None
        image.crop((0, 0, image.width, bottom[3] + 8)).quantize(64).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study_dir", type=Path, required=True)
    parser.add_argument("--pages_dir", type=Path, help="where the pages go (default: the folder `pages` of the study)")
    parser.add_argument("--only", help="questions, separated by commas")
    options = parser.parse_args()
    pages_dir = options.pages_dir or options.study_dir / "pages"
    pages_dir.mkdir(parents=True, exist_ok=True)
    text = TEXT.read_text(encoding="utf-8")
    if unknown := sorted({*re.findall("^<!-- (.*?):", text, re.M)} - {*QUESTIONS}):
        raise SystemExit(f"{TEXT}: no question of the study is called {', '.join(unknown)}")
    for question in options.only.split(",") if options.only else QUESTIONS:
        comparison = comparison_of(question, options.study_dir)
        page = page_of(comparison, options.study_dir)
        (pages_dir / f"{question}.html").write_text(page, encoding="utf-8")
        draw(page, PICTURES / f"{question}.png")
        tables = {table.title: f"{table.markdown()}\n" for table in comparison.tables}
        for title in re.findall(f"^<!-- {question}: (.*) -->$", text, re.M):
            if title not in tables:
                raise SystemExit(f"{TEXT}: `{question}` has no table `{title}`, but {', '.join(tables)}")
            before, marker, after = text.partition(f"<!-- {question}: {title} -->\n")
            text = before + marker + tables[title] + re.sub(r"\A(\|.*\n)*", "", after)
    TEXT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
