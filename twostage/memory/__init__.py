"""What makes training fit."""
