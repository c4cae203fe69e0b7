"""Multi-task fine-tuning of BERT with per-task adapters: one gradient everywhere, no wasted tokens."""

__version__ = "0.1.0"
