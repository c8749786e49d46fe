"""Real work on the pocket model, killed outright at random moments, gone on with, and compared bit by bit."""
