"""Multi-task fine-tuning of BERT with per-task adapters: one gradient everywhere, no wasted tokens."""

__version__ = "0.2.0.dev0"
"""The one place where it is written; 0.1.0 is what stood before the package was put into folders."""
