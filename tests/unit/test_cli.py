"""The command line as a person meets it: every mistake has a message and exit code 2, and no traceback."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from pal_dist import __version__
from pal_dist.cli import VERBS, main, parse_arguments
from pal_dist.commands.verb import Verb
from tests.support.command_line import mistake, tiny_training

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail with exit code 2; gives what it said."""
    return lambda *words: mistake(capsys, words)


@pytest.fixture
def base(tiny_bert: Path, small_data: Path, tmp_path: Path) -> list[object]:
    """A training command that would work."""
    return tiny_training(tiny_bert, small_data, tmp_path)


@pytest.fixture
def data(base: list[object], tmp_path: Path) -> Path:
    """The data of that command."""
    return tmp_path / "data"


class TestWords:
    def test_unknown_verb(self, fails: Fails) -> None:
        assert "did you mean train?" in fails("trian")

    def test_unknown_flag(self, fails: Fails, base: list[object]) -> None:
        assert "unknown setting --learning_rat (command line): did you mean --learning_rate?" in fails(
            *base, "--learning_rat", 1
        )
        assert "did you mean --split?" in fails("evaluate", "x", "--spilt", "dev")
        assert "unknown setting --text: known: --bad_rows, " in fails("evaluate", "x", "--text", "a film")
        assert "unknown setting --name: this verb takes none" in fails("recipes", "--name", "pal_finetune")

    @pytest.mark.parametrize("name", VERBS)
    def test_every_verb_refuses_what_it_does_not_take(self, name: str, fails: Fails) -> None:
        before = {"data": ["fetch", "--data_dir", "nowhere"]}.get(name, [])
        after = ["--", "train"] if name == "launch" else []
        assert "unknown setting --frobnicate" in fails(name, *before, "--frobnicate", "1", *after)

    @pytest.mark.parametrize(
        "name", [name for name, verb in VERBS.items() if verb.positionals < 2 and not verb.as_typed]
    )
    def test_loose_words(self, name: str, fails: Fails) -> None:
        words = ["a", "b", "c"][: VERBS[name].positionals + 1]
        assert f"{name} takes settings as --name value; found the loose word `{words[-1]}`" in fails(name, *words)

    def test_all_are_text(self) -> None:
        words = ["a", "1", "--seed", "3", "--max_steps=none", "--tasks", "sst,para", "--json"]
        flags = {"seed": "3", "max_steps": "none", "tasks": "sst,para", "json": "True"}
        assert parse_arguments("train", words) == (("a", "1"), flags)

    @pytest.mark.parametrize("name", VERBS)
    def test_functions_take_what_the_table_says(self, name: str) -> None:
        """As many loose words, and flags where there are any."""
        verb = VERBS[name]
        kinds = [parameter.kind for parameter in inspect.signature(verb.function).parameters.values()]
        loose = [
            kind for kind in kinds if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        ]
        assert len(loose) == min(verb.positionals, 1) or verb.as_typed or name == "recipes"
        assert (inspect.Parameter.VAR_KEYWORD in kinds) == (bool(verb.flags) and not verb.as_typed)


class TestHelp:
    def test_every_verb_has_a_page(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--help"])
        overview = capsys.readouterr().out
        for name, verb in VERBS.items():
            assert f"\n  {name}" in overview
            main([name, "--help"])
            page = capsys.readouterr().out
            assert page.startswith(f"pal-dist {name}: ")
            assert [flag for flag in verb.flags if f"--{flag}" not in page] == []

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--version"])
        assert capsys.readouterr().out == f"{__version__}\n"


class TestExitCodes:
    @pytest.mark.parametrize(("code", "ends"), [(None, None), (0, 0), (3, 3)])
    def test_a_verb_returns_its_own(self, code: int | None, ends: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(VERBS, "example", Verb(lambda: code))
        if ends is None:
            main(["example"])
            return
        with pytest.raises(SystemExit) as ended:
            main(["example"])
        assert ended.value.code == ends

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        monkeypatch.setitem(VERBS, "example", Verb(interrupted))
        with pytest.raises(SystemExit) as ended:
            main(["example"])
        assert ended.value.code == 130
        assert "run the same command again to resume" in capsys.readouterr().err

    @pytest.mark.parametrize(("local_rank", "says"), [("0", True), ("1", False)])
    def test_one_rank_of_a_node_says_it(
        self, local_rank: str, says: bool, fails: Fails, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert ("unknown verb" in fails("trian")) == says


class TestData:
    def test_unknown_task(self, fails: Fails, base: list[object]) -> None:
        assert "unknown task `para2`. Did you mean `para`?" in fails(*base, "--tasks", "sst,para2")

    def test_missing_file(self, fails: Fails, base: list[object], data: Path) -> None:
        (data / "sts-train.csv").unlink()
        (data / "sts-trian.csv").touch()
        message = fails(*base)
        assert "sts-train.csv: there is no such file; task `sts` reads it. Did you mean" in message
        assert "tokenising" not in message

    def test_missing_data_folder(self, fails: Fails, base: list[object]) -> None:
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
    def test_bad_content(self, content: str, says: str, fails: Fails, base: list[object], data: Path) -> None:
        (data / "ids-sst-train.csv").write_text(content)
        assert says in fails(*base)

    def test_wrong_encoding(self, fails: Fails, base: list[object], data: Path) -> None:
        text = "\tid\tsentence\tsentiment\n0\ta\tcaf\xe9\t1\n"
        (data / "ids-sst-train.csv").write_bytes(text.encode("latin-1"))
        message = fails(*base)
        assert "ids-sst-train.csv, line 2: expected UTF-8, found byte 0xe9 at column 8" in message
        assert "iconv" in message

    def test_data_that_changed_under_a_run(
        self, fails: Fails, base: list[object], data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([str(word) for word in base])
        file = data / "sts-train.csv"
        file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
        assert "the data of train/sts has changed" in fails(*base)


class TestModels:
    def test_a_model_that_is_no_bert(self, fails: Fails, base: list[object], tmp_path: Path) -> None:
        folder = tmp_path / "gpt"
        folder.mkdir()
        assert "expected a model folder with config.json" in fails(*base, "--model", folder)
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        assert "expected a BERT" in fails(*base, "--model", folder)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        assert "expected weights in model.safetensors or pytorch_model.bin" in fails(*base, "--model", folder)

    def test_weights_of_something_else(self, fails: Fails, base: list[object], tiny_bert: Path, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        folder = tmp_path / "half"
        shutil.copytree(tiny_bert, folder)
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        assert "the weights lack" in fails(*base, "--model", folder)
        (folder / "model.safetensors").write_bytes(b"\x08")
        assert "not readable" in fails(*base, "--model", folder)
        assert not (tmp_path / "run").exists(), "a start that fails leaves nothing behind"

    def test_longer_than_the_model_can_read(self, fails: Fails, base: list[object]) -> None:
        assert "tiny_bert0 has 64 positions" in fails(*base, "--max_length", 100)

    def test_layers_that_are_not_there(self, fails: Fails, base: list[object]) -> None:
        assert "has layers 0 to 1" in fails(*base, "--adapter_layers", "1,2")

    def test_unknown_adapter(self, fails: Fails, base: list[object]) -> None:
        assert "--adapter pall: known kinds are none, pal" in fails(*base, "--adapter", "pall")

    def test_half_precision_on_a_cpu(self, fails: Fails, base: list[object]) -> None:
        assert "--precision fp16 needs a GPU" in fails(*base, "--precision", "fp16")


class TestOutputFolders:
    def test_of_another_run(self, fails: Fails, base: list[object], tmp_path: Path) -> None:
        main([str(word) for word in base])
        message = fails(*base, "--seed", 5, "--batch_size", 4)
        assert "holds another run: --batch_size was 32, is 4; --seed was 0, is 5" in message
        assert "is not empty, and --resume no starts anew" in fails(*base, "--resume", "no")
        other = tmp_path / "photos"
        other.mkdir()
        (other / "a.jpg").touch()
        assert "holds files that are no run of pal-dist" in fails(*base, "--output_dir", other)
        assert "expected a folder, found a file" in fails(*base, "--output_dir", other / "a.jpg")

    def test_two_runs_in_one(self, fails: Fails, base: list[object], tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with FileLock(tmp_path / "run" / ".lock"):
            assert "another process is training there" in fails(*base)


class TestSavedModels:
    def test_evaluate_without_a_run(self, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "there is no finished run under ./runs" in fails("evaluate")
        assert "no such run or model folder" in fails("evaluate", "nowhere")
        assert "found neither" in fails("evaluate", tmp_path)
        assert "name one run or model folder, found a, b" in fails("evaluate", "a", "--model", "b")

    def test_predict_needs_its_parts(self, fails: Fails) -> None:
        assert "needs --task NAME" in fails("predict", "--text", "a film")
        assert "give the first as --text" in fails("predict", "--text_b", "a film")


def test_data_and_convert_say_how(fails: Fails) -> None:
    assert "pal-dist data fetch --data_dir" in fails("data")
    assert "convert needs --checkpoint, --bert_config, --tasks" in fails("convert", "--output_dir", "x")
