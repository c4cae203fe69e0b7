"""Memory: predict it without a GPU, plan with it, watch it, survive its end.

`trace` is for anybody's model; the other rooms serve pal-dist's own runs.
"""

from pal_dist.memory.devices import DEVICES, Device, find_device
from pal_dist.memory.trace import Trace, trace

__all__ = ["DEVICES", "Device", "Trace", "find_device", "trace"]
