"""Ranks, devices and strategies: the only folder that knows Accelerate, DeepSpeed and torch.distributed."""
