"""The rules of torch's caching allocator, one by one; sizes in bytes."""

import pytest

from twostage.memory.allocator import CachingAllocator

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_a_request_opens_a_segment_of_its_class(size, segment):
    allocator = CachingAllocator()
    allocator.allocate(0, size)
    assert allocator.reserved == segment


def test_small_requests_share_a_segment_until_it_is_full():
    allocator = CachingAllocator()
    for key in range(4096):
        allocator.allocate(key, 100)  # Rounded to 512.
    assert allocator.reserved == 2 * MIB
    allocator.allocate(4096, 1)
    assert allocator.reserved == 4 * MIB


def test_what_was_freed_is_taken_again_the_smallest_that_will_do_first():
    allocator = CachingAllocator()
    for key, size in enumerate((30 * MIB, 12 * MIB)):
        allocator.allocate(key, size)
    allocator.release(0)
    allocator.release(1)
    allocator.allocate(2, 12 * MIB)
    allocator.allocate(3, 30 * MIB)
    assert allocator.reserved == 42 * MIB


def test_free_neighbours_are_one_block_again():
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 5 * MIB)
    for key in (0, 2, 1, 3):
        allocator.release(key)
    allocator.allocate(4, 20 * MIB - 512 - 10 * MIB)
    allocator.allocate(5, 9 * MIB)
    assert allocator.reserved == 20 * MIB


def test_fragments_that_are_no_neighbours_help_nobody():
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 5 * MIB)
    allocator.release(0)
    allocator.release(2)
    allocator.allocate(4, 8 * MIB)
    assert allocator.reserved == 40 * MIB
