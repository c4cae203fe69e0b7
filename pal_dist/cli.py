"""The verbs: what each reads from the command line, what it prints, which exit code it ends with.

The only room that reads the command line and the environment's folders, and prints results. What a verb does is in
`pal_dist/commands`, imported when it is asked for: help and tables must not wait for PyTorch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from pal_dist.commands.help import overview, verb_page
from pal_dist.commands.options import (
    COMPARE_OPTIONS,
    CONVERT_OPTIONS,
    EVALUATE_OPTIONS,
    FETCH_OPTIONS,
    JSON_OPTION,
    LAUNCH_OPTIONS,
    PLAN_OPTIONS,
    PREDICT_OPTIONS,
    PROFILE_OPTIONS,
    TASKS_OPTIONS,
)
from pal_dist.commands.verb import Verb, refuse_others
from pal_dist.config.resolve import from_command_line
from pal_dist.core.console import say
from pal_dist.core.errors import DoesNotFitError, RankLostError, StoppedError, UserError
from pal_dist.core.exit_codes import exit_code_for_launcher
from pal_dist.core.suggest import did_you_mean

DIFFERS_FROM_PLAN = 4
"""Exit code of `profile` where the memory measured is not the memory planned."""


def default_cache() -> Path:
    """Where tokenised corpora go unless --cache_dir says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pal_dist"


def train(**flags: str) -> None:
    """Train a model on several tasks at once. Writes the model, its scores and its logs into --output_dir."""
    run, origins = from_command_line(flags)
    from pal_dist.commands.train import train as start

    start(run, origins, cache_dir=default_cache())


def plan(**flags: str) -> int:
    """Say whether a run fits a GPU, and what to change: pal-dist plan --gpu t4 [--gpus 1] [settings of train]."""
    as_json = _wants_json(flags)
    options = {name: flags.pop(name) for name in PLAN_OPTIONS if name in flags}
    run, origins = from_command_line(flags)
    from pal_dist.commands.plan import plan_from_flags
    from pal_dist.commands.plan_text import plan_json, plan_text

    report = plan_from_flags(run, origins, options, cache_dir=default_cache())
    print(plan_json(report) if as_json else plan_text(report))
    return 0 if report.fits else DoesNotFitError.exit_code


def launch(*arguments: str) -> int | None:
    """Run on one machine or many: pal-dist launch --nodes 2 --gpus_per_node 4 --gpu t4 -- train [settings of train]."""
    from pal_dist.commands.launch import check_fits, preview, read_launch, start

    request = read_launch(arguments, os.environ)
    check_fits(request, default_cache())
    if request.dry_run:
        print(preview(request))
        return None
    exit_code, text = start(request)
    if text:
        print(text)
    return exit_code


def doctor(**flags: str) -> int:
    """Will runs work here? Versions, devices, memory, disks, network, two steps of training. Exit code 1: no."""
    as_json = _wants_json(flags)
    run, _ = from_command_line(flags)
    from pal_dist.commands.doctor import diagnose

    diagnosis = diagnose(run, cache_dir=default_cache(), rank=int(os.environ.get("RANK", "0")))
    if diagnosis.is_main:
        print(diagnosis.json() if as_json else diagnosis.text())
    return diagnosis.exit_code


def profile(**flags: str) -> int:
    """Measure a few steps on the largest micro-batch against the plan; exit code 4 where they differ."""
    flags.setdefault("output_dir", "runs/profile")
    tokens = flags.pop("force_tokens", None)
    if tokens is not None and not tokens.isdigit():
        raise UserError(f"--force_tokens takes a whole number; found {tokens!r}")
    run, origins = from_command_line(flags)
    from pal_dist.commands.memory_check import check_memory

    check = check_memory(run, origins, cache_dir=default_cache(), force_tokens=int(tokens) if tokens else None)
    for path in check.files:
        print(path)
    return 0 if check.agrees else DIFFERS_FROM_PLAN


def evaluate(name: str | None = None, /, **flags: str) -> None:
    """Score a saved model on a whole split: pal-dist evaluate RUN [--split dev] [--tasks sst]. Prints JSON last."""
    from pal_dist.commands.evaluate import evaluate as start

    scores = start(name, flags, cache_dir=default_cache())
    if scores is not None:
        print(scores)


def predict(name: str | None = None, /, **flags: str) -> None:
    """Predict a split into files, or one text: pal-dist predict RUN [--split test] | --task sst --text "..." ."""
    from pal_dist.commands.predict import predict as start

    for line in start(name, flags, cache_dir=default_cache()):
        print(line)


def status(folder: str = "runs", /, **flags: str) -> None:
    """Say how a run does, from its folder: pal-dist status RUN; a folder of runs (default: ./runs) is listed."""
    from pal_dist.commands.status import status as status_text

    print(status_text(Path(folder).expanduser(), as_json=_wants_json(flags)))


def compare(*folders: str, **flags: str) -> None:
    """Set runs against each other in one page, seeds told from settings: pal-dist compare RUN... [--baseline NAME]."""
    from pal_dist.monitoring.compare import compare as write

    output_dir = Path(flags.pop("output_dir", "compare")).expanduser()
    for path in write([Path(folder).expanduser() for folder in folders], output_dir, **flags):
        print(path)


def config(**flags: str) -> None:
    """Show every setting's effective value and where it came from, without starting anything."""
    run, origins = from_command_line(flags)
    from pal_dist.commands.listing import settings_table

    print(settings_table(run, origins, cache_dir=default_cache()))


def recipes(name: str | None = None) -> None:
    """List the recipes, or show one: what it reproduces, hardware, time, expected scores: pal-dist recipes [NAME]."""
    from pal_dist.commands.listing import recipes_text

    print(recipes_text(name))


def tasks(**flags: str) -> None:
    """List the tasks of the table, or those of --tasks: what they predict and which files they read."""
    from pal_dist.commands.listing import tasks_table

    print(tasks_table(flags.get("tasks")))


def data(action: str = "", /, **flags: str) -> None:
    """Get or prepare data: pal-dist data fetch --data_dir DATA [--tasks ...] | data tokenize [settings of train]."""
    from pal_dist.commands.data import prepare_data

    for path in prepare_data(action, flags, cache_dir=default_cache()):
        print(path)


def convert(**flags: str) -> None:
    """Read the PAL authors' checkpoint: --checkpoint FILE --bert_config FILE --tasks a,b --output_dir X."""
    from pal_dist.commands.convert import convert as start

    print(start(flags))


PLAN_NOTES = (
    "A setting of train that is given is fixed; precision, optimizer, checkpointing and token budget are else "
    "searched. With --data_dir the training files' token lengths are used. Exit code 3: does not fit."
)
LAUNCH_NOTES = "After `--`: train, profile, doctor or evaluate, and the settings of that verb."
DATA_NOTES = "`data fetch` takes these; `data tokenize` takes the settings of train, below."
COMPARE_NOTES = (
    "RUN is a run's folder, or one with runs below it. Runs that differ only in their seed are one group; a difference "
    "between groups is tested against the spread over seeds. The page needs no network."
)

VERBS: dict[str, Verb] = {
    "train": Verb(train, settings="run"),
    "plan": Verb(plan, settings="run", options=PLAN_OPTIONS, notes=PLAN_NOTES),
    "launch": Verb(launch, as_typed=True, options=LAUNCH_OPTIONS, notes=LAUNCH_NOTES),
    "doctor": Verb(doctor, settings="run", options=JSON_OPTION),
    "profile": Verb(profile, settings="run", options=PROFILE_OPTIONS),
    "evaluate": Verb(evaluate, positionals=1, settings="saved_model", options=EVALUATE_OPTIONS),
    "predict": Verb(predict, positionals=1, settings="saved_model", options=PREDICT_OPTIONS),
    "status": Verb(status, positionals=1, options=JSON_OPTION),
    "compare": Verb(compare, positionals=sys.maxsize, options=COMPARE_OPTIONS, notes=COMPARE_NOTES),
    "config": Verb(config, settings="run"),
    "recipes": Verb(recipes, positionals=1),
    "tasks": Verb(tasks, options=TASKS_OPTIONS),
    "data": Verb(data, positionals=1, settings="run", options=FETCH_OPTIONS, notes=DATA_NOTES),
    "convert": Verb(convert, options=CONVERT_OPTIONS),
}
"""All verbs, in the order of the help. How many positional arguments each takes, and which options, is said here."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in what was given (said in plain words), 3 does not fit,
    4 measured memory differs from the plan, 130 interrupted."""
    try:
        exit_code = run_verb(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        # Every rank of a node finds the same mistake, and one says it; what all ranks agreed on, one of all; a loss is
        # seen from where one stands.
        rank = os.environ.get("RANK" if isinstance(error, StoppedError) else "LOCAL_RANK", "0")
        if rank == "0" or isinstance(error, RankLostError):
            say(f"pal-dist: {error}")
        exit_code = error.exit_code
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except KeyboardInterrupt:
        say("\npal-dist: interrupted; run the same command again to resume from the last checkpoint")
        exit_code = 130
    if exit_code is not None:
        leave(exit_code)


def leave(exit_code: int) -> NoReturn:
    """End this process; under a launch script the code takes the way that gets past the launcher."""
    sys.exit(exit_code_for_launcher(exit_code, os.environ.get("PAL_DIST_EXIT_FILE")))


def run_verb(arguments: list[str]) -> int | None:
    """Do what the command line says; returns the exit code, None for a 0. Raises UserError."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview(VERBS))
        return None
    if name == "--version":
        from pal_dist import __version__

        print(__version__)
        return None
    if name not in VERBS:
        raise UserError(f"unknown verb `{name}`: {did_you_mean(name, VERBS)}")
    verb = VERBS[name]
    if "--help" in rest or "-h" in rest:
        print(verb_page(name, verb))
        return None
    if verb.as_typed:
        return verb.function(*rest)
    positionals, flags = parse_arguments(name, rest)
    if len(positionals) > verb.positionals:
        first = positionals[verb.positionals]
        raise UserError(f"{name} takes settings as --name value; found the loose word `{first}`")
    if verb.settings != "run":  # resolving a run's settings finds every mistake in them at once
        refuse_others(flags, verb.flags)
    return verb.function(*positionals, **flags)


def parse_arguments(name: str, arguments: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The positional arguments, and those behind a `--name`, as Fire parses them: all of them text.

    Args:
        name: the verb's.
        arguments: what stands after it.
    """
    import fire
    from fire.decorators import SetParseFn

    positionals: list[str] = []
    flags: dict[str, str] = {}

    def collect(*positional: str, **named: str) -> None:
        positionals.extend(positional)
        flags.update(named)

    fire.Fire(SetParseFn(str)(collect), command=arguments, name=f"pal-dist {name}")
    return tuple(positionals), flags


def _wants_json(flags: dict[str, str]) -> bool:
    """Takes --json out of the flags."""
    return flags.pop("json", "false").lower() == "true"
