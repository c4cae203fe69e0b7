"""One shared BERT, an adapter and a head per task: a `PreTrainedModel` like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging as transformers_logging

from pal_dist.config.schema import ModelConfig, TrainConfig
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.data.batch import Batch
from pal_dist.models.adapters import Adapter, Geometry, ZeroLinear
from pal_dist.models.adapters.slices import AdapterSlices
from pal_dist.models.attention import SelfAttention
from pal_dist.models.dropout import Dropout
from pal_dist.models.encoder import ACTIVATION_FUNCTIONS, Encoder, Layer
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import autocast
from pal_dist.models.pretrained import PAL_BERT, read_model_config
from pal_dist.models.regions import Regions
from pal_dist.models.weight_copies import WeightCopies
from pal_dist.tasks.registry import Task, task_from_dict, task_to_dict


class MultiTaskBertConfig(BertConfig):
    """BERT's own config, and what stands beside it. Plain values only, so that it is written as JSON."""

    model_type = PAL_BERT

    def __init__(
        self,
        tasks: list[dict[str, Any]] | None = None,
        adapter: str = "none",
        adapter_hidden: int = 204,
        adapter_heads: int = 12,
        adapter_layers: list[int] | None = None,
        pooling: str = "pooler",
        head_layers: int = 0,
        head_dropout: float = 0.1,
        adapter_bottleneck: int = 50,
        trained_length: int = 128,
        **bert: Any,
    ):
        super().__init__(**bert)
        self.tasks = tasks or []
        self.adapter, self.adapter_hidden, self.adapter_heads = adapter, adapter_hidden, adapter_heads
        self.adapter_layers, self.adapter_bottleneck = adapter_layers, adapter_bottleneck
        self.trained_length = trained_length  # word pieces that training cut to, and so that answering should
        self.pooling, self.head_layers, self.head_dropout = pooling, head_layers, head_dropout

    def task_table(self) -> dict[str, Task]:
        tasks = [task_from_dict(entry, where="the model's config") for entry in self.tasks]
        return {task.name: task for task in tasks}

    def geometry(self) -> Geometry:
        layers = range(self.num_hidden_layers) if self.adapter_layers is None else self.adapter_layers
        return Geometry(
            encoder_hidden=self.hidden_size,
            layers=tuple(layers),
            hidden=self.adapter_hidden,
            heads=self.adapter_heads,
            dropout=self.attention_probs_dropout_prob,
            bottleneck=self.adapter_bottleneck,
        )


class Head(nn.Sequential):
    """Hidden layers of dropout, linear, ReLU; then dropout and the output layer. (R, D) -> (R, outputs)."""

    def __init__(self, hidden: int, layers: int, dropout: float, outputs: int):
        inner = [module for _ in range(layers) for module in (Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU())]
        super().__init__(*inner, Dropout(dropout), nn.Linear(hidden, outputs))


class MultiTaskBert(PreTrainedModel):
    """Logits of each task's rows of a packed batch. Task A's rows never touch task B's adapter or head."""

    config_class = MultiTaskBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: MultiTaskBertConfig):
        super().__init__(config)
        tasks = config.task_table()
        self.bert = Encoder(config, pooler=config.pooling == "pooler")
        self.adapters = nn.ModuleDict({name: Adapter.registry[config.adapter](config.geometry()) for name in tasks})
        self.heads = nn.ModuleDict(
            {
                name: Head(config.hidden_size, config.head_layers, config.head_dropout, task.objective.outputs)
                for name, task in tasks.items()
            }
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's initialisation, N(0, 0.02) with zero biases; called by Transformers for what no checkpoint filled."""
        if isinstance(module, nn.ParameterDict):  # gates and the like: an adapter is born as nothing
            for parameter in module.values():
                init.zeros_(parameter)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits of each segment of the batch, (its rows, C) with C the width of its task, in float32 or wider.

        Features that come with the batch spare the encoder.
        """
        pooled_RD = self.pooled(batch) if batch.pooled_RD is None else batch.pooled_RD
        with autocast(pooled_RD, None):
            return [self.heads[segment.task](pooled_RD[segment.rows]) for segment in batch.segments]

    def pooled(self, batch: Batch) -> Tensor:
        """What the heads read of the batch's rows, (R, D), in float32 or wider."""
        rows = PackedRows(batch.row_starts, batch.lengths, batch.longest)
        of_segments = [
            PackedRows(starts, batch.lengths[segment.rows], batch.longest)
            for segment, starts in zip(batch.segments, batch.segment_row_starts, strict=True)
        ]
        adapters = AdapterSlices([self.task_adapters[segment.task] for segment in batch.segments], rows, of_segments)
        hidden = self.bert(
            batch.input_ids_T,
            batch.token_type_ids_T,
            batch.positions_T,
            rows,
            adapters=adapters,
            first_only=self.config.pooling != "mean",
        )
        with autocast(hidden, None):
            return self.pool(hidden, rows)

    def pool(self, hidden: Tensor, rows: PackedRows) -> Tensor:
        """One vector for each row, (R, D), from the hidden states of its first token, (R, D), or of all, (T, D)."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.bert.pooler is not None:
            return self.bert.pooler(hidden)
        return hidden if self.config.pooling == "first" else rows.mean(hidden)

    def weight_copies(self) -> Iterator[WeightCopies]:
        """What keeps copies of weights in 16 bits from one micro-batch to the next."""
        for module in self.modules():
            if isinstance(copies := getattr(module, "copies", None), WeightCopies):
                yield copies

    def forget_weight_copies(self) -> None:
        """The parameters have changed."""
        for copies in self.weight_copies():
            copies.forget()

    def keep_no_weight_copies(self, modules: Sequence[nn.Module] = ()) -> None:
        """The parameters of these modules (none named: of all) are whole only while their module runs, so its copies go
        when it ends, and nothing reads them without calling it."""
        for outer in modules or [self]:
            for module in outer.modules():
                if isinstance(copies := getattr(module, "copies", None), WeightCopies):
                    copies.keeps = False

    @property
    def checkpoint_layers(self) -> int:
        """Every how many encoder layers one is computed again in backward instead of kept; 0: none."""
        return self.bert.checkpoint_layers

    @checkpoint_layers.setter
    def checkpoint_layers(self, every: int) -> None:
        self.bert.checkpoint_layers = every

    def use_regions(self, regions: Regions) -> None:
        """Have the encoder's layers call these: compiled, or plain."""
        for layer in self.encoder_layers:
            cast(Layer, layer).regions = regions

    # What others may ask instead of knowing parameters by their names.

    @property
    def encoder(self) -> Encoder:
        """The shared layers: all that is no adapter and no head."""
        return self.bert

    @property
    def encoder_layers(self) -> list[nn.Module]:
        """The encoder's layers, the lowest first: the units in which strategies share a model out."""
        return list(self.bert.encoder.layer)

    @property
    def task_adapters(self) -> dict[str, Adapter]:
        """Each task's adapter."""
        return {task: cast(Adapter, adapter) for task, adapter in self.adapters.items()}

    @classmethod
    def is_shared(cls, name: str) -> bool:
        """Whether the parameter of this name in the model belongs to the encoder, which all tasks share."""
        return name.startswith(f"{cls.base_model_prefix}.")

    def shared_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that all tasks share."""
        return [value for name, value in self.named_parameters() if value.requires_grad and self.is_shared(name)]

    def modules_read_whole(self) -> list[nn.Module]:
        """Modules that read the parameters of the modules inside them without calling those."""
        return [module for module in self.modules() if isinstance(module, (Layer, SelfAttention))]

    def parameters_read_directly(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """(module whose forward pass reads it, parameter) of those that are read without calling their own module."""
        for name, holder in self.named_modules():
            if isinstance(holder, nn.ParameterDict):
                inside_the_model = name.startswith("adapters.")  # its layers reach into an adapter, which is not called
                reader = self if inside_the_model else self.get_submodule(name.rpartition(".")[0])
                for parameter in holder.values():
                    yield reader, parameter

    @property
    def stage(self) -> tuple[int, ...]:
        """Of each task's adapter, see `Adapter.stage`."""
        return tuple(adapter.stage for adapter in self.task_adapters.values())

    def set_progress(self, progress: float) -> None:
        """Tell every adapter which share (0 to 1) of the run's steps is done."""
        for adapter in self.task_adapters.values():
            adapter.set_progress(progress)

    def task_parts(self) -> dict[str, nn.ModuleList]:
        """What belongs to one task alone: its adapter and its head."""
        return {name: nn.ModuleList([self.adapters[name], self.heads[name]]) for name in self.heads}

    def task_state(self, task: str) -> dict[str, Tensor]:
        """Parameters that belong to one task alone, under their names in the whole model."""
        return task_values(self.state_dict(), task)

    def load_task(self, file: str | Path, task: str) -> None:
        """Read one task's adapter and head from its own file. Raises UserError where they do not fit this model."""
        values, wanted = load_file(file), self.task_state(task)
        if values.keys() != wanted.keys() or any(values[name].shape != wanted[name].shape for name in values):
            differing = sorted(values.keys() ^ wanted.keys()) or [
                n for n in values if values[n].shape != wanted[n].shape
            ]
            raise UserError(f"{file}: does not fit task `{task}` of this model; first difference: {differing[0]}")
        self.load_state_dict(values, strict=False)

    def freeze_encoder(self) -> None:
        """Leave only adapters and heads to be trained (mode `pretrain`)."""
        self.bert.requires_grad_(False)

    @property
    def trains_heads_only(self) -> bool:
        """Whether nothing below the heads is trained, so that what they read of an example never changes."""
        return all(name.startswith("heads.") for name, value in self.named_parameters() if value.requires_grad)

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters: all, trained, shared, and of each task alone."""
        counts = {
            "total": sum(parameter.numel() for parameter in self.parameters()),
            "trained": sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad),
            "shared": sum(parameter.numel() for parameter in self.bert.parameters()),
        }
        for name, parts in self.task_parts().items():
            counts[name] = sum(parameter.numel() for parameter in parts.parameters())
        return counts


def serves_cached_features(options: TrainConfig, model: MultiTaskBert) -> bool:
    """Whether a run computes once what its heads read, so that its steps are without the encoder."""
    return options.features == "auto" and model.trains_heads_only


def task_values(values: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """What belongs to one task alone among a model's values."""
    return {name: value for name, value in values.items() if name.startswith((f"adapters.{task}.", f"heads.{task}."))}


def check_model_options(name: str, encoder: dict[str, Any], options: ModelConfig, max_length: int) -> None:
    """Raises UserError for what the encoder of this config.json cannot do, before any work is done."""
    encoder = {**BertConfig().to_dict(), **encoder}
    problems = []
    if encoder["hidden_act"] not in ACTIVATION_FUNCTIONS:
        problems.append(f"{name}: activation {encoder['hidden_act']!r}; known are {', '.join(ACTIVATION_FUNCTIONS)}")
    kind = Adapter.registry.get(options.adapter)
    if kind is None:
        problems.append(f"--adapter {options.adapter}: known kinds are {', '.join(Adapter.registry)}")
    elif kind.has_heads and (width := options.adapter_hidden or kind.width) % options.adapter_heads:
        problems.append(
            f"--adapter_hidden {width} cannot be split into --adapter_heads {options.adapter_heads}: choose a multiple "
            "(204 with 12 or 6 heads, 192 with 12)"
        )
    layers, depth = options.adapter_layers, encoder["num_hidden_layers"]
    if layers is not None and (not layers or min(layers) < 0 or max(layers) >= depth):
        problems.append(f"--adapter_layers {','.join(map(str, layers))}: {name} has layers 0 to {depth - 1}")
    positions = encoder["max_position_embeddings"]
    if max_length > positions:
        problems.append(f"--max_length {max_length}: {name} has {positions} positions; choose at most that")
    if problems:
        raise UserError("\n".join(problems))


def model_config(
    encoder: dict[str, Any], tasks: tuple[Task, ...], options: ModelConfig, max_length: int
) -> MultiTaskBertConfig:
    """The model's config for these tasks on an encoder of this config.json."""
    foreign = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
    fields = BertConfig().to_dict().keys() - foreign
    shared = {name: value for name, value in encoder.items() if name in fields}
    if options.dropout is not None:
        shared |= {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    head_dropout = shared.get("hidden_dropout_prob", 0.1) if options.head_dropout is None else options.head_dropout
    return MultiTaskBertConfig(
        tasks=[task_to_dict(task) for task in tasks],
        adapter=options.adapter,
        adapter_hidden=options.adapter_hidden or Adapter.registry[options.adapter].width,
        adapter_heads=options.adapter_heads,
        adapter_layers=None if options.adapter_layers is None else list(options.adapter_layers),
        adapter_bottleneck=options.adapter_bottleneck,
        pooling=options.pooling or "pooler",
        head_layers=options.head_layers,
        head_dropout=head_dropout,
        trained_length=max_length,
        **shared,
    )


def build_model(folder: Path, tasks: tuple[Task, ...], options: ModelConfig, max_length: int = 128) -> MultiTaskBert:
    """A model for these tasks on the encoder in `folder`: a BERT, or a model of ours whose fitting tasks go on.

    What no weight was found for is new and drawn from torch's random state. Raises UserError where the folder's
    encoder is not whole.
    """
    return load_model(folder, model_config(read_model_config(folder), tasks, options, max_length))


def load_model(folder: Path, config: MultiTaskBertConfig | None = None) -> MultiTaskBert:
    """`from_pretrained` in float32, quiet unless something is wrong with the encoder's weights."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        load = partial(MultiTaskBert.from_pretrained, folder, dtype=torch.float32, local_files_only=True)
        model, loading = load(config=config, output_loading_info=True)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder}: the weights are not readable: {error}") from None
    finally:
        transformers_logging.set_verbosity(level)
    missing = [
        name for name in loading["missing_keys"] if name.startswith("bert.") and not name.startswith("bert.pooler")
    ]
    if model.bert.pooler is not None and any(name.startswith("bert.pooler") for name in loading["missing_keys"]):
        say(f"note: {folder.name} has no pooler, so a new one is trained; --pooling first and mean need none")
    if missing:
        raise UserError(f"{folder}: the weights lack {len(missing)} of the encoder's parameters, first `{missing[0]}`")
    if config is None and loading["missing_keys"]:
        raise UserError(f"{folder}: the saved model lacks {', '.join(sorted(loading['missing_keys'])[:3])}")
    return model
