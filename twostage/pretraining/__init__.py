"""How the pocket models were made: rendered pictures, stock nets in small sizes, one resumable loop."""
