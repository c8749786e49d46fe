"""Pictures side by side, with words: what people look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 12, 4
INK, FAINT, PAPER = (34, 34, 40), (120, 120, 130), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """Pictures in a row, what they are, and (optional) a caption under each."""

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def contact_sheet(rows: Sequence[Row], side: int = 128) -> Image.Image:
    """Rows of pictures, each `side` pixels wide and high, with titles above and captions below.

    Args:
        rows: of any lengths; pictures are square.
        side: of a picture on the sheet, in pixels.
    """
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    captions = [[_wrapped(text, small, side - 2) for text in row.captions] for row in rows]
    heights = [26 + side + 14 * max((len(lines) for lines in texts), default=0) + 8 for texts in captions]
    columns = max(len(row.pictures) for row in rows)
    sheet = Image.new("RGB", (2 * MARGIN + columns * (side + GAP) - GAP, 2 * MARGIN + sum(heights)), PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for row, texts, height in zip(rows, captions, heights, strict=True):
        pen.text((MARGIN, top), row.title, INK, font)
        for column, picture in enumerate(row.pictures):
            left = MARGIN + column * (side + GAP)
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top + 24))
            for line, text in enumerate(texts[column] if column < len(texts) else ()):
                pen.text((left + 1, top + 26 + side + 14 * line), text, FAINT, small)
        top += height
    return sheet
