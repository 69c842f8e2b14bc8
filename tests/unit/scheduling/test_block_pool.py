from __future__ import annotations

from furiosa_llm.scheduling.block_pool import BlockPool


def test_a_released_block_is_found_by_its_hash_until_it_is_handed_out_again() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.remember(first, b"prefix")
    pool.release([first, second])

    assert pool.lookup(b"prefix") == first
    pool.allocate(2)
    assert pool.lookup(b"prefix") is None


def test_blocks_with_nothing_to_find_are_handed_out_first() -> None:
    pool = BlockPool(3)
    first, second, third = pool.allocate(3)
    pool.remember(first, b"prefix")
    pool.release([first, second, third])

    pool.allocate(2)

    assert pool.lookup(b"prefix") == first


def test_the_block_unused_for_longest_loses_its_prefix_first() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.remember(first, b"old")
    pool.remember(second, b"new")
    pool.release([first])
    pool.release([second])

    pool.allocate(1)

    assert (pool.lookup(b"old"), pool.lookup(b"new")) == (None, second)


def test_a_shared_block_is_free_once_its_last_holder_lets_go() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.remember(block, b"prefix")
    pool.share([block])

    pool.release([block])
    assert pool.num_free_blocks == 0
    pool.release([block])
    assert pool.num_free_blocks == 1


def test_two_blocks_with_the_same_tokens_leave_the_first_findable() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)

    pool.remember(first, b"prefix")
    pool.remember(second, b"prefix")
    pool.release([second])

    assert pool.lookup(b"prefix") == first
    pool.check_integrity([first])
