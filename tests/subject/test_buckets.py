"""twostage/subject/buckets.py: a photo keeps about its shape, and no bucket needs more memory than the square."""

from __future__ import annotations

import math

import pytest

from twostage.subject.buckets import bucket_size

SHAPES = [(100, 100), (400, 300), (300, 400), (4032, 3024), (1600, 900), (900, 1600), (3, 2), (1000, 999)]


@pytest.mark.parametrize("resolution", [64, 512, 768])
@pytest.mark.parametrize("photo", SHAPES)
def test_a_bucket_has_the_squares_area_and_the_photos_shape(photo, resolution):
    width, height = bucket_size(photo, resolution, 8)
    assert width % 8 == height % 8 == 0
    assert 0.8 * resolution**2 < width * height <= resolution**2
    off = abs(math.log(width / height) - math.log(photo[0] / photo[1]))
    assert off < math.log(1.13 if resolution == 64 else 1.02)


def test_a_square_is_its_own_bucket():
    assert bucket_size((77, 77), 512, 8) == (512, 512)
    assert bucket_size((77, 77), 16, 16) == (16, 16)


@pytest.mark.parametrize("photo", SHAPES)
def test_a_turned_photo_has_the_turned_bucket(photo):
    assert bucket_size(photo[::-1], 512, 8) == bucket_size(photo, 512, 8)[::-1]


def test_a_sliver_is_cropped_rather_than_given_a_sliver():
    assert bucket_size((1, 5000), 512, 8) == (256, 1024)
    assert bucket_size((5000, 1), 8, 8) == (8, 8)
