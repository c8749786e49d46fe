"""What a result is worth: embedders, judges and the scores made of them."""
