"""No adapter: plain shared BERT with a head per task."""

from pal_dist.adapters.base import Adapter


class NoAdapter(Adapter, kind="none"):
    """Changes nothing and has no parameters."""
