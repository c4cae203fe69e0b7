"""BERT's encoder under Transformers' parameter names, with places in every layer for an adapter.

It computes what Transformers' BertModel computes (a test holds it to 1e-5 in float32), with two savings: no mask where
nothing is padded, and a last layer that computes only the first token where only that is read.

Shapes: B examples, L tokens, Q queries (L or 1), D hidden, F intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig

from pal_dist.models.adapters.base import Adapter, Geometry
from pal_dist.models.attention import Dropout, SelfAttention

OutputHook = Callable[[Tensor], Tensor]
"""An adapter's way into a block: the block's output (B, Q, D) -> the output that is used."""

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

NO_GEOMETRY = Geometry(encoder_hidden=0, layers=(), hidden=0, heads=0, dropout=0.0)
"""Of an encoder without adapters."""


class Embeddings(nn.Module):
    """Word + position + token type, LayerNorm, dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BL: Tensor, token_type_ids_BL: Tensor) -> Tensor:
        length = input_ids_BL.shape[1]
        # The position rows are the first L of the table: a slice, not a lookup, has a cheap backward.
        fixed_LD = self.position_embeddings.weight[:length]
        types_BLD = F.embedding(token_type_ids_BL, self.token_type_embeddings.weight)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids_BL) + types_BLD + fixed_LD))


class ResidualOutput(nn.Module):
    """dropout(dense(x)) + residual, normalised."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual_BQD: Tensor, hook: OutputHook) -> Tensor:
        return self.LayerNorm(hook(self.dropout(self.dense(inner))) + residual_BQD)


class Attention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        heads, p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.self = SelfAttention(config.hidden_size, heads, p)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, index: int, hidden_BLD: Tensor, mask: Tensor | None, queries: int, adapter: Adapter) -> Tensor:
        context = self.self(hidden_BLD, mask, queries, partial(adapter.projected, index))
        return self.output(context, hidden_BLD[:, :queries], partial(adapter.after_attention, index))


class Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    def forward(self, attended_BQD: Tensor) -> Tensor:
        return self.activation(self.dense(attended_BQD))


class Layer(nn.Module):
    """out = LN(dropout(FFN(a)) + a + residual(h, a)), where a = LN(h + dropout(W_O attention(h)))."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(self, index: int, adapter: Adapter, mask: Tensor | None, queries: int, hidden_BLD: Tensor) -> Tensor:
        attended_BQD = self.attention(index, hidden_BLD, mask, queries, adapter)
        added_BQD = adapter.residual(index, hidden_BLD, attended_BQD, mask, queries)
        residual_BQD = attended_BQD if added_BQD is None else attended_BQD + added_BQD
        hook = partial(adapter.after_feed_forward, index)
        return adapter.after_layer(index, self.output(self.intermediate(attended_BQD), residual_BQD, hook))


class Layers(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden_BLD[:, 0]))


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
        input_ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        mask_BL: Tensor | None,
        *,
        adapter: Adapter | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Hidden states of the last layer, (B, L, D), or (B, 1, D) where only the first token is wanted and the adapter
        does not need the others."""
        adapter = adapter or Adapter.registry["none"](NO_GEOMETRY)
        first_only = first_only and not adapter.reads_all_tokens
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        hidden = self.embeddings(input_ids_BL, token_type_ids_BL)
        last = len(self.encoder.layer) - 1
        for index, layer in enumerate(self.encoder.layer):
            queries = 1 if first_only and index == last else hidden.shape[1]
            run = partial(layer, index, adapter, mask, queries)
            if self.training and torch.is_grad_enabled() and is_checkpointed(index, self.checkpoint_layers):
                hidden = checkpoint(run, hidden, use_reentrant=False)  # dropout draws the same masks again
            else:
                hidden = run(hidden)
        return adapter.on_top(hidden, mask)


def is_checkpointed(layer: int, every: int) -> bool:
    """Whether the layer is computed again in backward, when every `every`-th is."""
    return every > 0 and layer % every == 0
