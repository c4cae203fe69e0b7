"""The command line as a person meets it: every mistake has a message and exit code 2, and no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pal_dist import __version__
from pal_dist.cli import VERBS, main
from pal_dist.tasks.registry import TASKS


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]):
    """Runs a command that must fail with exit code 2; gives what it said."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert caught.value.code == 2, said
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture
def base(tiny_bert: Path, small_data: Path, tmp_path: Path) -> list[object]:
    """A training command that would work."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    return ["train", "--data_dir", data, "--model", tiny_bert, "--cache_dir", tmp_path / "cache", "--output_dir",
            tmp_path / "run", "--max_length", 48, "--max_steps", 1, "--adapter_hidden", 12,
            "--adapter_heads", 2]  # fmt: skip


class TestMistakes:
    def test_unknown_verb(self, fails) -> None:
        assert "did you mean train?" in fails("trian")

    def test_unknown_flag(self, fails, base) -> None:
        assert "unknown setting --learning_rat (command line): did you mean --learning_rate?" in fails(
            *base, "--learning_rat", 1
        )
        assert "did you mean --split?" in fails("evaluate", "x", "--spilt", "dev")

    def test_loose_word(self, fails, base) -> None:
        assert "found the loose word `now`" in fails(*base, "now")

    def test_unknown_task(self, fails, base) -> None:
        assert "unknown task `para2`. Did you mean `para`?" in fails(*base, "--tasks", "sst,para2")

    def test_missing_file(self, fails, base) -> None:
        (base[2] / "sts-train.csv").unlink()
        (base[2] / "sts-trian.csv").touch()
        said = fails(*base)
        assert "sts-train.csv: there is no such file; task `sts` reads it. Did you mean" in said
        assert "tokenising" not in said

    def test_missing_data_folder(self, fails, base) -> None:
        assert "there is no such folder" in fails(*base, "--data_dir", "nowhere")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "the file is empty"),
            ("\tid\tsentence\tmood\n0\ta\tb\t1\n", "line 1: expected a column `sentiment`, found"),
            (
                "\tid\tsentence\tsentiment\n0\ta\tb\t7\n",
                "line 2: label `sentiment`: expected a whole number from 0 to 4",
            ),
            (
                "\tid\tsentence\tsentiment\n0\ta\t" + "word " * 20_000 + "\t1\n",
                "line 2: column `sentence` has 99,999 char",
            ),
        ],
    )
    def test_bad_content(self, content: str, says: str, fails, base) -> None:
        (base[2] / "ids-sst-train.csv").write_text(content)
        assert says in fails(*base)

    def test_wrong_encoding(self, fails, base) -> None:
        text = "\tid\tsentence\tsentiment\n0\ta\tcaf\xe9\t1\n"
        (base[2] / "ids-sst-train.csv").write_bytes(text.encode("latin-1"))
        said = fails(*base)
        assert "ids-sst-train.csv, line 2: expected UTF-8, found byte 0xe9 at column 8" in said
        assert "iconv" in said

    def test_a_model_that_is_no_bert(self, fails, base, tmp_path: Path) -> None:
        folder = tmp_path / "gpt"
        folder.mkdir()
        assert "expected a model folder with config.json" in fails(*base, "--model", folder)
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        assert "expected a BERT" in fails(*base, "--model", folder)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        assert "expected weights in model.safetensors or pytorch_model.bin" in fails(*base, "--model", folder)

    def test_weights_of_something_else(self, fails, base, tiny_bert: Path, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        folder = tmp_path / "half"
        shutil.copytree(tiny_bert, folder)
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        assert "the weights lack" in fails(*base, "--model", folder)
        (folder / "model.safetensors").write_bytes(b"\x08")
        assert "not readable" in fails(*base, "--model", folder)
        assert not (tmp_path / "run").exists(), "a start that fails leaves nothing behind"

    def test_output_folder_of_another_run(self, fails, base, tmp_path: Path, capsys) -> None:
        main([str(part) for part in base])
        capsys.readouterr()
        said = fails(*base, "--seed", 5, "--batch_size", 4)
        assert "holds another run: --batch_size was 32, is 4; --seed was 0, is 5" in said
        assert "is not empty, and --resume no starts anew" in fails(*base, "--resume", "no")
        other = tmp_path / "photos"
        other.mkdir()
        (other / "a.jpg").touch()
        assert "holds files that are no run of pal-dist" in fails(*base, "--output_dir", other)
        assert "expected a folder, found a file" in fails(*base, "--output_dir", other / "a.jpg")

    def test_longer_than_the_model_can_read(self, fails, base) -> None:
        assert "tiny_bert0 has 64 positions" in fails(*base, "--max_length", 100)

    def test_layers_that_are_not_there(self, fails, base) -> None:
        assert "has layers 0 to 1" in fails(*base, "--adapter_layers", "1,2")

    def test_unknown_adapter(self, fails, base) -> None:
        assert "--adapter pall: known kinds are none, pal" in fails(*base, "--adapter", "pall")

    def test_data_that_changed_under_a_run(self, fails, base, capsys) -> None:
        main([str(part) for part in base])
        capsys.readouterr()
        file = base[2] / "sts-train.csv"
        file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
        assert "the data of train/sts has changed" in fails(*base)

    def test_two_runs_in_one_folder(self, fails, base, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with FileLock(tmp_path / "run" / ".lock"):
            assert "another process is training there" in fails(*base)

    def test_half_precision_on_a_cpu(self, fails, base) -> None:
        assert "--precision fp16 needs a GPU" in fails(*base, "--precision", "fp16")

    def test_evaluate_without_a_run(self, fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "there is no finished run under ./runs" in fails("evaluate")
        assert "no such run or model folder" in fails("evaluate", "nowhere")
        assert "found neither" in fails("evaluate", tmp_path)

    def test_predict_needs_its_parts(self, fails) -> None:
        assert "needs --task NAME" in fails("predict", "--text", "a film")
        assert "give the first as --text" in fails("predict", "--text_b", "a film")

    def test_data_and_convert_say_how(self, fails) -> None:
        assert "pal-dist data fetch --data_dir" in fails("data")
        assert "convert needs --checkpoint, --bert_config, --tasks" in fails("convert", "--output_dir", "x")


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
    def test_while_saving(self, fails, base, small_disk: Path) -> None:
        """The first checkpoints fit; then the disk is full; what was saved is whole; after cleaning the run goes on."""
        command = [*base, "--output_dir", small_disk / "run", "--max_steps", 4, "--evaluate_every", 1]
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (2 << 20))
        said = fails(*command)
        assert "the disk is full" in said
        assert "start the same command again" in said
        filler.unlink()
        main([str(part) for part in command])
        assert json.loads((small_disk / "run" / "results.json").read_text())["steps"] == 4

    def test_while_tokenising(self, fails, base, small_disk: Path) -> None:
        (small_disk / "filler").write_bytes(b"x" * (3 << 20))
        assert "the disk is full" in fails(*base, "--cache_dir", small_disk / "cache")


class TestHelp:
    def test_every_verb_has_a_page(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--help"])
        overview = capsys.readouterr().out
        for verb in VERBS:
            assert f"\n  {verb}" in overview
            main([verb, "--help"])
            assert capsys.readouterr().out.startswith(f"pal-dist {verb}: ")

    def test_help_tables_and_text_import_no_engine(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        text = ["data", "tokenize", "--data_dir", small_data, "--model", tiny_bert, "--cache_dir", tmp_path]
        code = (
            "import sys; from pal_dist.cli import main; main(['--help']); main(['tasks']); main(['config']); "
            f"main({[str(word) for word in text]}); "
            "print(sorted({'torch', 'accelerate', 'transformers', 'deepspeed', 'bitsandbytes'} & set(sys.modules)))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "[]"

    def test_config_tells_origins(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["config", "--batch_size", "8"])
        shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["batch", "batch_size", "8", "command", "line"] in shown
        assert ["train", "epochs", "3", "default"] in shown

    def test_tasks_lists_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["tasks"])
        assert len(capsys.readouterr().out.splitlines()) == 2 + len(TASKS)

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--version"])
        assert capsys.readouterr().out == f"{__version__}\n"
