"""Several processes that ask for one corpus at once build it once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.support.tiny_run import sst_corpus


def build_for(arguments: tuple[Path, Path, Path]) -> tuple[str, int]:
    corpus = sst_corpus(*arguments)
    return str(corpus.tokens[:].tolist()), len(corpus)


def test_several_processes_at_once(tiny_bert: Path, corpus_dir: Path, tmp_path: Path) -> None:
    arguments = (corpus_dir / "ids-sst-train.csv", tiny_bert, tmp_path)
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        corpora = set(pool.map(build_for, [arguments] * 3))
    assert len(corpora) == 1
    assert [path for path in tmp_path.iterdir() if "draft" in path.name] == []
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
