"""BERT's encoder under Transformers' parameter names, over packed rows, with places in every layer for adapters.

It computes what Transformers' BertModel computes (a test holds it to 1e-5 in float32), with three savings: no padding,
one product for query, key and value, and a last layer that computes only first tokens where only they are read. Where
autocast asks for 16 bits, everything within a layer is in 16 bits, its LayerNorms' inputs and outputs too (their sums
are in float32): no tensor changes its format between two operations.

Shapes: T tokens of R rows, Q tokens that ask (T, or R: the first of each row), D hidden, F intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig

from pal_dist.models.adapters.slices import AdapterSlices
from pal_dist.models.attention import JoinedWeights, SelfAttention
from pal_dist.models.dropout import Dropout
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import autocast, compute_dtype
from pal_dist.models.regions import PLAIN, Regions
from pal_dist.models.weight_copies import AttentionRecipe, WeightCopies

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Embeddings(nn.Module):
    """Word + position + token type, LayerNorm, dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_T: Tensor, token_type_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        types_TD, places_TD = self.token_type_embeddings(token_type_ids_T), self.position_embeddings(positions_T)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids_T) + types_TD + places_TD))


class DenseAndNorm(NamedTuple):
    """Weights of a `ResidualOutput`."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class ResidualOutput(nn.Module):
    """dropout(dense(x)) + residual, normalised."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def own_weights(self) -> list[Tensor]:
        """As `DenseAndNorm` has them."""
        return [self.dense.weight, self.dense.bias, self.LayerNorm.weight, self.LayerNorm.bias]

    def inner(self, values: Tensor, weights: DenseAndNorm) -> Tensor:
        """What is to be added to the residual."""
        return self.dropout(F.linear(values, weights.weight, weights.bias))

    def normalised(self, regions: Regions, values_QD: Tensor, residual_QD: Tensor, weights: DenseAndNorm) -> Tensor:
        """The sum of both, normalised."""
        return regions.add_norm(values_QD, residual_QD, weights.norm_weight, weights.norm_bias, self.LayerNorm.eps)


class Attention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        heads, p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.self = SelfAttention(config.hidden_size, heads, p)
        self.output = ResidualOutput(config.hidden_size, config)


class Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]


class LayerWeights(NamedTuple):
    """What a layer multiplies with: its parameters, or copies of them in 16 bits."""

    attention: JoinedWeights | None
    """None: attention reads its own parameters."""
    attention_output: DenseAndNorm
    intermediate: tuple[Tensor, Tensor]
    output: DenseAndNorm


class Layer(nn.Module):
    """out = LN(dropout(FFN(a)) + a + residual(h, a)), where a = LN(h + dropout(W_O attention(h))).

    It reads its submodules' parameters itself, so a strategy that shares them out gathers the layer as a whole.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)
        self.copies = WeightCopies(AttentionRecipe())
        self.regions = PLAIN
        """Compiled, or as they are."""

    def forward(
        self, index: int, adapters: AdapterSlices, rows: PackedRows, first_only: bool, hidden_TD: Tensor
    ) -> Tensor:
        hook = adapters.projection_hook(index, first_only)
        weights = self._weights(hidden_TD, pads=hook is None)
        attention = self.attention
        context_QD = attention.self(hidden_TD, rows, first_only, hook, weights.attention)
        inner_QD = attention.output.inner(context_QD, weights.attention_output)
        inner_QD = adapters.after_attention(index, inner_QD, first_only)
        asking_QD = rows.asked(hidden_TD, first_only)
        attended_QD = attention.output.normalised(self.regions, inner_QD, asking_QD, weights.attention_output)
        added_QD = adapters.residual(index, hidden_TD, attended_QD, first_only)
        residual_QD = attended_QD if added_QD is None else attended_QD + added_QD
        wide_QF = self.regions.activated(self.intermediate.activation, attended_QD, *weights.intermediate)
        fed_QD = adapters.after_feed_forward(index, self.output.inner(wide_QF, weights.output), first_only)
        out_QD = self.output.normalised(self.regions, fed_QD, residual_QD, weights.output)
        return adapters.after_layer(index, out_QD, first_only)

    def _weights(self, hidden_TD: Tensor, *, pads: bool) -> LayerWeights:
        attention, intermediate = self.attention.self, self.intermediate.dense
        own = [
            *self.attention.output.own_weights(),
            intermediate.weight,
            intermediate.bias,
            *self.output.own_weights(),
        ]
        form = attention.copy_form(hidden_TD, pads=pads)
        joined: JoinedWeights | None = None
        if form is not None and form.dtype != intermediate.weight.dtype:
            weight, bias, *own = self.copies.of(form, [*attention.projection_parameters(), *own])
            joined = weight, bias
        return LayerWeights(joined, DenseAndNorm(*own[:4]), (own[4], own[5]), DenseAndNorm(*own[6:]))


class Layers(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_RD: Tensor) -> Tensor:
        return torch.tanh(self.dense(first_RD))


class Encoder(nn.Module):
    """The module tree of Transformers' BertModel: embeddings, encoder.layer.N, pooler."""

    def __init__(self, config: BertConfig, *, pooler: bool = True):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.pooler = Pooler(config) if pooler else None
        self.checkpoint_layers = 0
        """Every how many layers one is computed again in backward instead of kept: 0 none, 1 all, 2 every other."""

    def forward(
        self,
        input_ids_T: Tensor,
        token_type_ids_T: Tensor,
        positions_T: Tensor,
        rows: PackedRows,
        *,
        adapters: AdapterSlices | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Hidden states of the last layer, (T, D), or (R, D) where only first tokens are wanted.

        Args:
            adapters: of the tasks whose rows these are; None: none.
            first_only: only the first token of each row is read.
        """
        adapters = adapters or AdapterSlices.none(rows)
        hidden = self.embeddings(input_ids_T, token_type_ids_T, positions_T)
        adapters.compute_dtype = compute_dtype(hidden)
        hidden = hidden.to(adapters.compute_dtype or hidden.dtype)
        with autocast(hidden, None):  # it would have LayerNorms in float32, between two changes of format
            hidden = self._through_layers(hidden, rows, adapters, first_only and not adapters.read_all_tokens)
            hidden = adapters.on_top(hidden)
        return rows.first(hidden) if first_only and adapters.read_all_tokens else hidden

    def _through_layers(self, hidden: Tensor, rows: PackedRows, adapters: AdapterSlices, first_only: bool) -> Tensor:
        last = len(self.encoder.layer) - 1
        for index, layer in enumerate(self.encoder.layer):
            run = partial(layer, index, adapters, rows, first_only and index == last)
            if self.training and torch.is_grad_enabled() and is_checkpointed(index, self.checkpoint_layers):
                # Dropout draws the same masks again.
                hidden = checkpoint(partial(_without_autocast, run), hidden, use_reentrant=False)
            else:
                hidden = run(hidden)
        return hidden


def _without_autocast(run: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """For a layer that is computed again in backward, where autocast may be on."""
    with autocast(hidden, None):
        return run(hidden)


def is_checkpointed(layer: int, every: int) -> bool:
    """Whether the layer is computed again in backward, when every `every`-th is."""
    return every > 0 and layer % every == 0
