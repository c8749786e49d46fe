"""What the user brings: photos, captions, and the name of the new token."""
