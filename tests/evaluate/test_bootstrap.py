"""What the bootstrap draws."""

from __future__ import annotations

import numpy as np
import pytest

from bert_kd.evaluate.bootstrap import over_seeds


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_draws_of_seeds_vary_as_other_seeds_would(seeds: int):
    """Of seeds from one distribution the variance of draws is, in the mean, that of the mean of as
    many new ones.
    """
    generator = np.random.default_rng(1)
    variances = []
    for _ in range(400):
        values = np.tile(generator.normal(size=seeds), (500, 1))
        chosen = generator.integers(seeds, size=values.shape)
        variances.append(over_seeds(values, chosen).var())
    assert np.mean(variances) == pytest.approx(1 / seeds, rel=0.12)


def test_the_draws_of_seeds_lie_around_their_mean():
    values = np.array([[1.0, 3.0]] * 4)
    chosen = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    stretched = 2**0.5
    found = over_seeds(values, chosen)
    assert found == pytest.approx([2 - stretched, 2, 2, 2 + stretched])
    assert over_seeds(values[:, :1], chosen[:, :1] * 0) == pytest.approx([1.0] * 4)
