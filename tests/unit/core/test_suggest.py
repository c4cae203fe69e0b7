"""The nearest known name."""

from __future__ import annotations

from pal_dist.core.suggest import did_you_mean, nearest


def test_nearest() -> None:
    assert nearest("batch_sise", ["batch_size", "seed"]) == "batch_size"
    assert nearest("zzz", ["batch_size", "seed"]) is None


def test_did_you_mean() -> None:
    assert did_you_mean("sed", ["seed"], before="--") == "did you mean --seed?"
    assert did_you_mean("sed", ["seed"], quote="`") == "did you mean `seed`?"
    assert did_you_mean("zzz", ["seed", "mode"], before="--") == "known: --seed, --mode"
    assert did_you_mean("zzz", ["seed"], otherwise="there is none") == "there is none"
