"""The engine of one rank."""

from __future__ import annotations

import torch

from pal_dist.distributed.engine import Engine


def test_random_numbers_are_a_function_of_seed_step_and_rank() -> None:
    engine = Engine()
    drawn = {}
    for numbers in ((0, 1), (0, 2), (1, 1)):
        engine.set_seed(*numbers)
        drawn[numbers] = torch.rand(4)
        torch.rand(1000)
        engine.set_seed(*numbers)
        assert torch.equal(torch.rand(4), drawn[numbers])
    engine.rank = 1
    engine.set_seed(0, 1)
    drawn[0, 1, "other rank"] = torch.rand(4)
    assert len({tuple(values.tolist()) for values in drawn.values()}) == 4
    engine.close()
