"""Bases that are known by name, without a file of their weights."""

import pytest

from twostage.families import known_families
from twostage.planning.outlined import known_bases, outline_base

# Parameters of the denoiser and of all text encoders, in millions, as their authors give them.
SIZES = {"sd15": (860, 123), "sd21": (866, 340), "sdxl": (2567, 818), "if-i-xl": (4305, 4762), "if-ii-l": (1243, 4762)}


def test_a_base_of_every_family_is_known():
    assert {outline_base(name).family.pipeline for name in known_bases()} == set(known_families())


@pytest.mark.parametrize("name", SIZES)
def test_their_nets_are_of_the_published_sizes(name):
    base = outline_base(name)

    def millions(*parts):
        return sum(parameter.numel() for part in parts for parameter in base.outline(part).parameters()) / 1e6

    denoiser, text = SIZES[name]
    assert millions(base.family.denoiser) == pytest.approx(denoiser, rel=2e-3)
    assert millions(*base.family.text) == pytest.approx(text, rel=2e-3)
