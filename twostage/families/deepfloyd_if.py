"""DeepFloyd IF, stage I: a U-Net that draws pictures of 64 pixels."""

from __future__ import annotations

from twostage.pixel_cascade import PixelStage


class DeepFloydIF(PixelStage):
    """What it draws is for the next stage to enlarge."""

    pipeline = "IFPipeline"
    title = "DeepFloyd IF, stage I"


FAMILY = DeepFloydIF()
