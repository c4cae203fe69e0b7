"""Per-task adapters. Importing this package registers every kind: one class each, in the files named here."""

from pal_dist.models.adapters import houlsby, lhuc, lora, low_rank, pal, top_attention
from pal_dist.models.adapters.base import Adapter, Geometry, ZeroLinear

__all__ = ["Adapter", "Geometry", "ZeroLinear", "houlsby", "lhuc", "lora", "low_rank", "pal", "top_attention"]
