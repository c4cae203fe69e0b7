"""The command line where a process of its own is needed: a full disk, and what help must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pal_dist.cli import main
from tests.support.command_line import mistake, tiny_training


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 3 MB. Needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system of 3 MB cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # token caches may still be mapped


class TestFullDisk:
    def test_while_saving(
        self, tiny_bert: Path, small_data: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first checkpoints fit; then the disk is full; what was saved is whole; after cleaning the run goes on."""
        command = tiny_training(tiny_bert, small_data, tmp_path)
        command += ["--output_dir", small_disk / "run", "--max_steps", 4, "--evaluate_every", 1]
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (2 << 20))
        message = mistake(capsys, command)
        assert "the disk is full" in message
        assert "start the same command again" in message
        filler.unlink()
        main([str(word) for word in command])
        assert json.loads((small_disk / "run" / "results.json").read_text())["steps"] == 4

    def test_while_tokenising(
        self, tiny_bert: Path, small_data: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (small_disk / "filler").write_bytes(b"x" * (3 << 20))
        command = tiny_training(tiny_bert, small_data, tmp_path)
        assert "the disk is full" in mistake(capsys, [*command, "--cache_dir", small_disk / "cache"])


def test_help_tables_and_text_import_no_engine(tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    text = ["data", "tokenize", "--data_dir", small_data, "--model", tiny_bert, "--cache_dir", tmp_path]
    code = (
        "import sys; from pal_dist.cli import VERBS, main; main(['--help']); main(['tasks']); main(['config']); "
        "main(['recipes']); [main([verb, '--help']) for verb in VERBS]; "
        f"main({[str(word) for word in text]}); "
        "print(sorted({'torch', 'accelerate', 'transformers', 'deepspeed', 'bitsandbytes'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
