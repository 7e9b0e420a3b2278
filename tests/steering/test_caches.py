"""What a cache says of the columns in it, by each name that transformers has had for it."""

import pytest
import torch
from transformers import DynamicCache

from emosteer.models.caches import KEYS, Filled, given


@pytest.mark.parametrize("name", KEYS)
def test_a_cache_is_seen_by_any_of_its_names(name):
    """From 5.24 on every cache is `cache`: not seen, a continued text was taken for a new one."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    assert Filled([name]).columns({name: cache}) == 3
    assert given({name: cache}) is cache
    assert Filled([name]).columns({name: None}) == 0


def test_a_flag_is_no_cache():
    assert Filled(["cache"]).columns({"cache": True}) == 0
