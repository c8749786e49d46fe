"""The report of a comparison: one HTML file that needs no network, and Markdown, JSON and CSV beside it.

It reads evaluation.json files and pictures alone. `writing` has the steps in order: runs are read (`reading`), pooled
(`pooling`), judged in words (`verdict`, `cautions`), and shown as pictures (`gallery`), charts (`charts`) and tables
(`tables`) on one page (`page`).
"""

from twostage.report.writing import build

__all__ = ["build"]
