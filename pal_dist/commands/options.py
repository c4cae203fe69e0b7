"""What verbs take beside the settings of a run: each option with its help. The table of verbs is in cli.py."""

from __future__ import annotations

RUN_OPTIONS = {
    "recipe": "A recipe that `pal-dist recipes` lists, or the path of one.",
    "config": "A yaml of the settings below. Recipe < config < command line.",
}
"""Of every verb that takes the settings of a run."""

JSON_OPTION = {"json": "true: JSON, for programs."}

PLAN_OPTIONS = {
    "gpu": "Kind of GPU: t4, p100, v100-16, v100-32, a10g, l4, rtx3090, rtx4090, a100-40, a100-80, h100, h200, or cpu; "
    "by default the one at hand.",
    "gpus": "GPUs of each node (default: 1).",
    "nodes": "Nodes (default: 1). With several GPUs or nodes, a step's time on 1, 2, 4, ... of them is estimated too.",
    "network": "Gbit/s between nodes, of all network cards of one (default: as clouds rent such GPUs).",
    "task_graphs": "Task graphs alive at once (default: 1); as many as tasks for methods that keep them all.",
    **JSON_OPTION,
}

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

PROFILE_OPTIONS = {
    "force_tokens": "Run micro-batches of so many tokens whatever was planned: must end with exit code 4.",
}

EVALUATE_OPTIONS = {
    "run": "Folder of a run, also as the first argument; without any, the newest under ./runs.",
    "model": "Folder of a saved model, instead of a run.",
    "tasks": "Tasks of the model, separated by commas; without it, all that have the file.",
    "split": "train, dev or test, or another split of the task; evaluate takes dev, predict test by default.",
}

PREDICT_OPTIONS = {
    **EVALUATE_OPTIONS,
    "predictions_dir": "Where the files go; by default RUN/predictions.",
    "task": "The one task to ask.",
    "text": "A text to predict from, instead of a split.",
    "text_b": "The second text, where the task reads pairs.",
}

COMPARE_OPTIONS = {
    "output_dir": "Where compare.html and compare.md go (default: compare).",
    "title": "Heading of the page.",
    "baseline": "Name of the group that the others are held against, as the page gives it (default: the first).",
}

TASKS_OPTIONS = {"tasks": "Names or paths of task yamls, separated by commas (default: the whole table)."}

FETCHED_TASKS = "sst,cfimdb,para,sts"

FETCH_OPTIONS = {
    "data_dir": "fetch: folder that the files go to.",
    "tasks": f"fetch: tasks, separated by commas (default: {FETCHED_TASKS}).",
}

CONVERT_OPTIONS = {
    "checkpoint": "The authors' checkpoint: .safetensors, or a PyTorch state dict.",
    "bert_config": "Its bert_config.json.",
    "tasks": "Our names of their tasks 0, 1, ..., separated by commas.",
    "output_dir": "Where the model goes.",
}
