"""What several export formats need: original names, low rank, files, and the proof that a file draws the same."""
