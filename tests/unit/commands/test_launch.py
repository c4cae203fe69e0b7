"""The verb `launch`: the request as read, what it would submit, and what it refuses. (Scripts run: tests/cluster.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.commands.launch import check_fits, command_of, manifest_of, read_launch
from pal_dist.core.errors import UserError
from tests.support.paths import LAUNCH


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tool of a scheduler is found."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_request_as_typed() -> None:
    options = ["--on=kubernetes", "--nodes", "2", "--gpus-per-node", "4", "--gpu", "t4", "--dry_run"]
    request = read_launch([*options, "--", "train", "--seed", "3"], {})
    assert (request.on, request.nodes, request.gpus_per_node, request.gpu) == ("kubernetes", 2, 4, "t4")
    assert (request.verb, list(request.settings), request.dry_run) == ("train", ["--seed", "3"], True)
    assert "parallelism: 2" in manifest_of(request)


def test_here_where_there_is_no_scheduler() -> None:
    request = read_launch(["--", "doctor"], {})
    assert (request.on, request.gpus_per_node, manifest_of(request)) == ("local", None, "")
    assert command_of(request) == ["bash", str(LAUNCH / "local.sh"), "doctor", "--strategy", "ddp"]


def test_words_for_the_scheduler() -> None:
    options = ["--on", "slurm", "--gpus_per_node", "0", "--processes", "2", "--extra", "--partition=long --mem=8G"]
    command = command_of(read_launch([*options, "--", "train", "--output_dir", "runs/first"], {}))
    assert command[:5] == ["sbatch", "--nodes=1", "--gpus-per-node=0", "--partition=long", "--mem=8G"]
    assert command[6:] == ["train", "--strategy", "ddp", "--processes", "2", "--cpu", "--output_dir", "runs/first"]


def test_a_recipe_is_planned(cache_dir: Path) -> None:
    options = ["--on", "kubernetes", "--gpu", "t4", "--", "train", "--recipe"]
    with pytest.raises(UserError, match="did you mean `sst_finetune`"):
        check_fits(read_launch([*options, "sst_finetun"], {}), cache_dir)


def test_a_run_that_fits_is_told_so(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--on", "slurm", "--gpu", "t4", "--gpus_per_node", "4", "--strategy", "zero2", "--", "train"]
    check_fits(read_launch(options, {}), cache_dir)
    assert "FITS: --precision fp16" in capsys.readouterr().err
    check_fits(read_launch(["--plan", "off", *options], {}), cache_dir)
    assert capsys.readouterr().err == ""


TOO_LARGE = "--precision fp32 --checkpoint_layers 0 --max_length 512 --batch_size 2048 --tokens_per_micro_batch 1048576"


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("--nodes 2 --on slurm -- train", 2, "which GPU have the nodes? Name its kind, --gpu t4"),
        (f"--gpu t4 --gpus_per_node 4 --strategy zero2 --on slurm -- train {TOO_LARGE}", 3, "not submitted"),
        ("--nods 2 -- train", 2, "unknown setting --nods"),
        ("--nodes 0 -- train", 2, "--nodes takes a whole number"),
        ("--nodes 2 --on local -- train", 2, "--nodes 2 on this one machine"),
        ("--on moon -- train", 2, "--on is one of slurm, local, kubernetes, skypilot"),
        ("--strategy zero7 -- train", 2, "there is no such strategy; did you mean"),
        ("--nodes 2", 2, "use: pal-dist launch"),
        ("--on skypilot -- train", 2, "--on skypilot needs --gpu KIND"),
        ("--on kubernetes --gpus_per_node 0 -- train", 2, "there is no `kubectl` here"),
    ],
)
def test_what_is_refused(command: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["launch", *command.split()])
    assert ended.value.code == code
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
