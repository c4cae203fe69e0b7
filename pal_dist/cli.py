"""The verbs. The only room that reads the command line and the environment's folders, and prints results."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from pal_dist.commands.help import ANSWER_OPTIONS, COMPARE_OPTIONS, PLAN_OPTIONS, page
from pal_dist.config.resolve import from_command_line, names_where
from pal_dist.core.console import table
from pal_dist.core.errors import DoesNotFitError, RankLostError, StoppedError, UserError
from pal_dist.core.exit_codes import exit_code_for_launcher

Verb = Callable[..., None]


def default_cache() -> Path:
    """Where tokenised corpora go unless --cache_dir says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pal_dist"


def train(**flags: str) -> None:
    """Train a model on several tasks at once. Writes the model, its scores and its logs into --output_dir."""
    run, origins = from_command_line(flags)
    from pal_dist.commands.train import train as start

    start(run, origins, cache_dir=default_cache())


def plan(**flags: str) -> None:
    """Say whether a run fits a GPU, and what to change: pal-dist plan --gpu t4 [--gpus 1] [settings of train]."""
    own = {name: flags.pop(name) for name in PLAN_OPTIONS if name in flags}
    as_json = own.pop("json", "false").lower() == "true"
    run, origins = from_command_line(flags)
    from pal_dist.commands.plan import ask

    found = ask(run, origins, own, cache_dir=default_cache())
    print(found.json() if as_json else found.text())
    leave(0 if found.planned.fits else DoesNotFitError.exit_code)


def launch(*words: str) -> None:
    """Run on one machine or many: pal-dist launch --nodes 2 --gpus_per_node 4 --gpu t4 -- train [settings of train]."""
    from pal_dist.commands.launch import fits, preview, read_launch, start

    asked = read_launch(words, os.environ)
    fits(asked, default_cache())
    if asked.dry_run:
        print(preview(asked))
        return
    code, said = start(asked)
    if said:
        print(said)
    leave(code)


def doctor(**flags: str) -> None:
    """Will runs work here? Versions, devices, memory, disks, network, two steps of training. Exit code 1: no."""
    as_json = flags.pop("json", "false").lower() == "true"
    run, _ = from_command_line(flags)
    from pal_dist.commands.doctor import diagnose

    found = diagnose(run, cache_dir=default_cache(), rank=int(os.environ.get("RANK", "0")))
    if found.is_main:
        print(found.json() if as_json else found.text())
    leave(found.exit_code)


def profile(**flags: str) -> None:
    """Measure a few steps on the worst batch of each task against the plan; exit code 4 where they differ."""
    flags.setdefault("output_dir", "runs/profile")
    forced = flags.pop("force_tokens", None)
    if forced is not None and not forced.isdigit():
        raise UserError(f"--force_tokens takes a whole number; found {forced!r}")
    run, origins = from_command_line(flags)
    from pal_dist.commands.memory_check import check_memory as start

    found = start(run, origins, cache_dir=default_cache(), force_tokens=int(forced) if forced else None)
    for path in found.files:
        print(path)
    leave(0 if found.agrees else 4)


def config(**flags: str) -> None:
    """Show every setting's effective value and where it came from, without starting anything."""
    run, origins = from_command_line(flags)
    from pal_dist.commands.listing import settings_table

    print(settings_table(run, origins, cache_dir=default_cache()))


def recipes(name: str | None = None, **flags: str) -> None:
    """List the recipes, or show one: what it reproduces, hardware, time, expected scores: pal-dist recipes [NAME]."""
    _only(flags, set())
    from pal_dist.commands.listing import recipes_text

    print(recipes_text(name))


def tasks(**flags: str) -> None:
    """List the tasks of the table, or those of --tasks: what they predict and which files they read."""
    _only(flags, {"tasks"})
    from pal_dist.commands.listing import tasks_table

    print(tasks_table(flags.get("tasks")))


def evaluate(run: str | None = None, **flags: str) -> None:
    """Score a saved model on a whole split: pal-dist evaluate RUN [--split dev] [--tasks sst]. Prints JSON last."""
    split = flags.pop("split", "dev")
    opened, chosen = _open(run, flags)
    from pal_dist.commands.predict import score_split

    scores = score_split(opened, chosen, split)
    rows = [[name, metric, f"{value:.4f}"] for name, entry in scores.items() for metric, value in entry.items()]
    if opened.engine.is_main:
        if opened.paths.synthetic:
            print("SYNTHETIC text: these scores say nothing about real data", file=sys.stderr)
        print(table(["task", "metric", split], rows), file=sys.stderr)
        print(json.dumps({split: scores}))
    opened.engine.close()


def predict(run: str | None = None, **flags: str) -> None:
    """Predict a split into files, or one text: pal-dist predict RUN [--split test] | --task sst --text "..." ."""
    asked = {name: flags.pop(name) for name in ("text", "text_b", "task", "split", "predictions_dir") if name in flags}
    if "text" in asked and "task" not in asked:
        raise UserError('predict --text "..." needs --task NAME, the task to ask')
    if "text_b" in asked and "text" not in asked:
        raise UserError("predict --text_b is the second text of a pair: give the first as --text")
    if "task" in asked and "text" not in asked:
        flags["tasks"] = asked["task"]
    opened, chosen = _open(run, flags)
    from pal_dist.commands.predict import answer, write_predictions

    if "text" in asked:
        found = answer(opened, asked["task"], asked["text"], asked.get("text_b"))
        if opened.engine.is_main:
            print(json.dumps(found))
    else:
        folder = Path(asked.get("predictions_dir") or opened.folder / "predictions")
        for path in write_predictions(opened, chosen, asked.get("split", "test"), folder):
            print(path)
    opened.engine.close()


def _open(path: str | None, flags: dict[str, str]) -> tuple[Any, list[str] | None]:
    """The saved model that RUN, --run or --model names; without any, the newest run of this folder."""
    given = [name for name in (path, flags.pop("run", None), flags.pop("model", None)) if name]
    if len(given) > 1:
        raise UserError(f"name one run or model folder, found {', '.join(given)}")
    chosen = flags.pop("tasks").split(",") if "tasks" in flags else None
    _only(flags, {*names_where(for_saved_model=True), *ANSWER_OPTIONS})
    from pal_dist.monitoring.status import newest_model
    from pal_dist.training.saved_model import open_model

    folder = Path(given[0]) if given else newest_model(Path("runs"))

    return open_model(folder, flags, cache_dir=default_cache()), chosen


def status(folder: str | None = None, **flags: str) -> None:
    """Say how a run does, from its folder: pal-dist status RUN; a folder of runs (default: ./runs) is listed."""
    _only(flags, {"json"})
    from pal_dist.monitoring.status import runs_below, runs_table, status_of

    place = Path(folder or "runs").expanduser()
    as_json = flags.get("json", "false").lower() == "true"
    if (place / "status.json").is_file() or not place.is_dir():
        one = status_of(place)
        print(one.json() if as_json else one.text())
        return
    runs = runs_below(place)
    print("\n".join(run.json() for run in runs) if as_json else runs_table(runs))


def compare(*folders: str, **flags: str) -> None:
    """Set runs against each other in one page, seeds told from settings: pal-dist compare RUN... [--baseline NAME]."""
    _only(flags, set(COMPARE_OPTIONS))
    from pal_dist.monitoring.compare import compare as write

    place = Path(flags.pop("output_dir", "compare")).expanduser()
    for path in write([Path(folder).expanduser() for folder in folders], place, **flags):
        print(path)


def convert(**flags: str) -> None:
    """Read the PAL authors' checkpoint: --checkpoint FILE --bert_config FILE --tasks a,b --output_dir X."""
    known = ("checkpoint", "bert_config", "tasks", "output_dir")
    _only(flags, set(known))
    missing = [f"--{name}" for name in known if name not in flags]
    if missing:
        raise UserError(f"convert needs {', '.join(missing)}")
    from pal_dist.models.convert import convert_files

    convert_files(Path(flags["checkpoint"]), Path(flags["bert_config"]), flags["tasks"].split(","),
                  Path(flags["output_dir"]))  # fmt: skip
    print(flags["output_dir"])


def data(action: str = "", **flags: str) -> None:
    """Get or prepare data: pal-dist data fetch --data_dir DATA [--tasks ...] | data tokenize [settings of train]."""
    if action == "tokenize":
        run, _ = from_command_line(flags)
        from pal_dist.training.inputs import tokenize

        tokenize(run, cache_dir=default_cache())
        return
    if action != "fetch" or "data_dir" not in flags:
        raise UserError("use: pal-dist data fetch --data_dir FOLDER [--tasks sst,para,sts,cola,...], or data tokenize")
    _only(flags, {"data_dir", "tasks"})
    from pal_dist.data.download import fetch

    for path in fetch(Path(flags["data_dir"]).expanduser(), flags.get("tasks", "sst,cfimdb,para,sts").split(",")):
        print(path)


VERBS: dict[str, Verb] = {
    verb.__name__: verb
    for verb in (
        train, plan, launch, doctor, profile, evaluate, predict, status, compare, config, recipes, tasks, data, convert,
    )
}  # fmt: skip


def _only(flags: dict[str, str], known: set[str]) -> None:
    for name in flags:
        if name not in known:
            raise UserError(f"unknown setting --{name}: {_meant(name, sorted(known), '--')}")


def _meant(word: str, known: Iterable[str], before: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {before}{near[0]}?" if near else f"known: {', '.join(before + each for each in known)}"


def _about() -> dict[str, str]:
    return {name: function.__doc__ or "" for name, function in VERBS.items()}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in what was given (said in plain words), 3 does not fit,
    4 measured memory differs from the plan, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("--help", "-h", "help"):
        print(page(None, _about()))
        return
    try:
        _dispatch(given)
    except UserError as error:
        # Every rank of a node finds the same mistake, and one says it; what all ranks agreed on, one of all; a loss is
        # seen from where one stands.
        rank = os.environ.get("RANK" if isinstance(error, StoppedError) else "LOCAL_RANK", "0")
        if rank == "0" or isinstance(error, RankLostError):
            print(f"pal-dist: {error}", file=sys.stderr)
        leave(error.exit_code)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\npal-dist: interrupted; run the same command again to resume from the last checkpoint", file=sys.stderr)
        leave(130)


def leave(code: int) -> NoReturn:
    sys.exit(exit_code_for_launcher(code, os.environ.get("PAL_DIST_EXIT_FILE")))


def _dispatch(given: list[str]) -> None:
    verb = given[0]
    if verb == "--version":
        from pal_dist import __version__

        print(__version__)
        return
    if verb not in VERBS:
        raise UserError(f"unknown verb `{verb}`: {_meant(verb, VERBS)}")
    if "--help" in given or "-h" in given:
        print(page(verb, _about()))
        return
    if verb == "launch":  # Fire keeps what follows `--` for itself
        launch(*given[1:])
        return
    import fire
    from fire.decorators import SetParseFn

    def checked(*positional: str, **flags: str) -> None:
        """Fire hands over what it read; more words than the verb takes are a mistake, not a second command."""
        takes = {"evaluate": 1, "predict": 1, "data": 1, "status": 1, "recipes": 1, "compare": sys.maxsize}.get(verb, 0)
        if len(positional) > takes:
            raise UserError(f"{verb} takes settings as --name value; found the loose word `{positional[takes]}`")
        VERBS[verb](*positional, **flags)

    fire.Fire(SetParseFn(str)(checked), command=given[1:], name=f"pal-dist {verb}")
