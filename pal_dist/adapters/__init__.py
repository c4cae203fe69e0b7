"""Per-task adapters. Importing this package registers every kind: one file, one class, one line here."""

from pal_dist.adapters.base import Adapter, Geometry, ZeroLinear
from pal_dist.adapters.none import NoAdapter
from pal_dist.adapters.pal import ProjectedAttentionLayers

__all__ = ["Adapter", "Geometry", "NoAdapter", "ProjectedAttentionLayers", "ZeroLinear"]
