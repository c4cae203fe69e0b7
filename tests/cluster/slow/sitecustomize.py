"""Put on PYTHONPATH by tests of jobs that something happens to: their steps take time, but no processor's.

Once Slurm has put the job back nothing more happens to it, and it may be quick.
"""

import os
import time

from pal_dist.training.preemption import Preemption

request = Preemption.request


def slowly(self: Preemption) -> int:
    if "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(float(os.environ["PAL_DIST_TEST_STEP_SECONDS"]))
    return request(self)


Preemption.request = slowly
