"""Through Accelerate's own launcher, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.long
@pytest.mark.parametrize("name", ["zero2", "fsdp2", "ddp"])
def test_through_the_real_launcher_from_another_folder(
    name: str, tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        ROOT / "accelerate_configs" / f"{name}.yaml",
        "--num_processes",
        "2",
        "-m",
        "pal_dist",
        "train",
        "--data_dir",
        small_data,
        "--model",
        tiny_bert,
        "--cache_dir",
        cache_dir,
        "--max_length",
        "48",
        "--max_steps",
        "3",
        "--batch_size",
        "8",
        "--adapter_hidden",
        "12",
        "--adapter_heads",
        "2",
        "--output_dir",
        tmp_path / "run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert f"strategy: {name} over 2 ranks" in ended.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    (tmp_path / "said").write_text(ended.stdout + ended.stderr)
    print(ended.stdout + ended.stderr)
