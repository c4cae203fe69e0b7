"""Encoders, adapters, the multi-task model; pretrained weights in, finished models out."""
