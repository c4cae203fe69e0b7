"""The help pages: every verb, every setting it takes, from the one table of settings."""

from __future__ import annotations

import textwrap

from pal_dist.config.resolve import describe, format_value, names_where, settings

ANSWER_OPTIONS = {
    "run": "Folder of a run, also as the first word; without any, the newest under ./runs.",
    "model": "Folder of a saved model, instead of a run.",
    "tasks": "Tasks of the model, separated by commas; without it, all that have the file.",
    "split": "train, dev or test, or another split of the task; evaluate takes dev, predict test by default.",
    "predictions_dir": "predict: where the files go; by default RUN/predictions.",
    "task": "predict: the one task to ask.",
    "text": "predict: a text to predict from, instead of a split.",
    "text_b": "predict: the second text, where the task reads pairs.",
}
"""What evaluate and predict take beside those."""

PLAN_OPTIONS = {
    "gpu": "Kind of GPU: t4, p100, v100-16, v100-32, a10g, l4, rtx3090, rtx4090, a100-40, a100-80, h100, h200, or cpu; "
    "by default the one at hand.",
    "gpus": "GPUs of each node (default: 1).",
    "nodes": "Nodes (default: 1). With several GPUs or nodes, a step's time on 1, 2, 4, ... of them is estimated too.",
    "network": "Gbit/s between nodes, of all network cards of one (default: as clouds rent such GPUs).",
    "attention": "sdpa (fused, what pal-dist runs on GPUs) or eager (every score kept, as older programs do).",
    "task_graphs": "Task graphs alive at once (default: 1); as many as tasks for methods that keep them all.",
    "json": "true: one line of JSON.",
}
"""What plan takes beside the settings of train."""


LAUNCH_OPTIONS = {
    "on": "slurm, local, kubernetes or skypilot (default: slurm where there is sbatch, else local).",
    "nodes": "Machines (default: 1).",
    "gpus_per_node": "GPUs of each (default: 1; local: all there are). 0: train on processors.",
    "processes": "Processes on each node (default: one per GPU; 1 without).",
    "strategy": "A name of accelerate_configs or a yaml's path (default: ddp).",
    "gpu": "Kind of GPU that the run is planned for, as in `pal-dist plan --help`; SkyPilot rents it.",
    "plan": "off: submit without planning.",
    "extra": 'Words for sbatch, kubectl or sky, in quotes: --extra "--partition=long --time=8:00:00".',
    "name": "Kubernetes, SkyPilot: name of the job (default: pal-dist).",
    "image": "Kubernetes: image with pal-dist (launch/kubernetes/Dockerfile).",
    "claim": "Kubernetes: PersistentVolumeClaim that holds runs and data.",
    "dry_run": "Print what would be submitted and what each node would run; submit nothing.",
}
"""What launch takes before the `--`."""

COMPARE_OPTIONS = {
    "output_dir": "Where compare.html and compare.md go (default: compare).",
    "title": "Heading of the page.",
    "baseline": "Name of the group that the others are held against, as the page gives it (default: the first).",
}
"""What compare takes beside the runs."""


def page(verb: str | None, about: dict[str, str]) -> str:
    """The overview, or one verb's page with every setting it takes; `about` is what each verb does."""
    if verb is None:
        rows = [[name, text.split("\n")[0]] for name, text in about.items()]
        width = max(map(len, about))
        lines = [f"  {name.ljust(width)}  {text}" for name, text in rows]
        return "\n".join(
            ["pal-dist VERB [--setting value ...]", "", *lines, "", "pal-dist VERB --help shows a verb's settings."]
        )
    lines = [f"pal-dist {verb}: {about[verb]}"]
    if verb == "plan":
        lines += ["", *(f"  --{name}\n      {text}" for name, text in PLAN_OPTIONS.items())]
        lines += [
            "",
            "A setting of train that is given is fixed; precision, optimizer, checkpointing and token budget are",
            "else searched. With --data_dir the training files' token lengths are used. Exit code 3: does not fit.",
        ]
    if verb == "launch":
        lines += ["", *(f"  --{name}\n      {text}" for name, text in LAUNCH_OPTIONS.items())]
        lines += ["", "After `--`: train, profile, doctor or evaluate, and the settings of that verb."]
    if verb == "compare":
        lines += ["", *(f"  --{name}\n      {text}" for name, text in COMPARE_OPTIONS.items())]
        lines += [
            "",
            "RUN is a run's folder, or one with runs below it. Runs that differ only in their seed are one group;",
            "a difference between groups is tested against the spread over seeds. The page needs no network.",
        ]
    if verb == "profile":
        lines += [
            "",
            "  --force_tokens N",
            "      Run micro-batches of N tokens whatever was planned: must end with exit code 4.",
        ]
    if verb in ("doctor", "status"):
        lines += ["", "  --json true", "      JSON, for programs."]
    if verb in ("train", "config", "plan", "profile", "doctor"):
        lines += ["", "  --recipe NAME", "      A recipe that `pal-dist recipes` lists, or the path of one."]
        lines += [
            "  --config FILE",
            "      A yaml of the settings below. Recipe < config < command line.",
        ]
        for setting in settings().values():
            lines.append(f"  --{setting.name} {describe(setting.kind)}   (default: {format_value(setting.default)})")
            lines += textwrap.wrap(setting.help, 100, initial_indent="      ", subsequent_indent="      ")
    if verb in ("evaluate", "predict"):
        lines += ["", *(f"  --{name}\n      {text}" for name, text in ANSWER_OPTIONS.items())]
        lines.append(
            f"  --{', --'.join(names_where(for_saved_model=True))}\n      As for train; by default those of the run."
        )
    return "\n".join(lines)
