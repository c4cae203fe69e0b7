"""Law 8: every yaml and json is found, read by us and by the library that consumes it, and says what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pal_dist.core.errors import UserError
from pal_dist.distributed.strategy import choose_strategy, from_json, read_strategy, strategy_names
from tests.support.paths import ROOT

YAMLS = sorted((ROOT / "accelerate_configs").rglob("*"))


JSONS = sorted((ROOT / "ds_configs").rglob("*"))


EXPECTED = {
    "cpu_1",
    "cpu_2",
    "t4_single",
    "gpu_single",
    "ddp",
    "ddp_multinode",
    "zero1",
    "zero2",
    "zero2_offload",
    "zero3",
    "zero3_offload",
    "zero3_multinode",
    "fsdp2",
}


def test_nothing_is_left_out() -> None:
    assert {path.stem for path in YAMLS} == EXPECTED == set(strategy_names())
    assert all(path.suffix == ".yaml" for path in YAMLS)
    assert all(path.suffix == ".json" for path in JSONS)
    engines = [yaml.safe_load(path.read_text()).get("deepspeed_config", {}) for path in YAMLS]
    named = {engine["deepspeed_config_file"] for engine in engines if engine}
    assert {f"ds_configs/{path.name}" for path in JSONS} == named


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    text, values = path.read_text(), yaml.safe_load(path.read_text())
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes == values.get("num_processes", -1)
    assert values.get("num_processes", 1) == 1, "how many processes is the command's to say"
    assert not {"main_process_ip", "machine_rank", "num_machines", "gpu_ids"} & set(values)
    for word in ("# Memory:", "# Command:", "# Not for:", f"accelerate_configs/{path.name}"):
        assert word in text
    strategy = read_strategy(str(path))
    assert strategy == read_strategy(path.stem)
    assert strategy.stage == (int(path.stem[4]) if path.stem.startswith("zero") else 0)
    assert strategy.offload == path.stem.endswith("offload")
    assert (strategy.kind == "fsdp2") == (path.stem == "fsdp2")


@pytest.mark.parametrize("path", JSONS, ids=lambda path: path.stem)
def test_deepspeed_reads_it(path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    strategy = from_json(path.stem, path)
    config = DeepSpeedConfig(strategy.deepspeed_config(max_norm=0.7))
    assert config.gradient_clipping == 0.7
    assert int(config.zero_config.stage) == strategy.stage
    assert config.zero_config.reduce_bucket_size == strategy.bucket == 25_000_000
    assert "auto" not in json.dumps(strategy.deepspeed_config(max_norm=0.0))
    assert json.loads(path.read_text())["gradient_clipping"] == "auto", "DeepSpeed's own default clips at 1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fp16": {"enabled": True}}, "`fp16` is not for this file: --precision"),
        ({"optimizer": {"type": "AdamW"}}, "`optimizer` is not for this file"),
        ({"gradient_clipping": 1.0}, "`gradient_clipping` is the run's"),
        ({"zero_optimization": {"stage": 4}}, "stage` is 1, 2 or 3; found 4"),
        (
            {
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
                "zero_force_ds_cpu_optimizer": 1,
            },
            "must be false",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "NVMe is not supported"),
    ],
)
def test_mistakes_in_a_json(change: dict[str, object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**json.loads(JSONS[0].read_text()), **change}))
    with pytest.raises(UserError, match=words):
        from_json("mine", path)


def test_mistakes_in_a_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, words in {
        "distributed_type: TPU": "distributed_type is 'TPU'",
        "distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}": "write fsdp_version: 2",
        "distributed_type: DEEPSPEED": "expected deepspeed_config",
        "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: none.json}": "there is no none.json",
        "distributed_type: [": "not readable",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_strategy(str(path))
    with pytest.raises(UserError, match="did you mean zero2"):
        read_strategy("zero_2")


def test_what_the_launcher_says() -> None:
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}
    assert choose_strategy("auto", zero).stage == 2
    assert choose_strategy("zero2", zero).stage == 2
    assert choose_strategy("auto", {}).kind == "replicated"
    assert choose_strategy("auto", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}).kind == "fsdp2"
    with pytest.raises(UserError, match="--strategy zero3, but the launcher's config asks for zero2"):
        choose_strategy("zero3", zero)
