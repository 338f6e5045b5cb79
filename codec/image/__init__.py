"""Images: reading, colour, transparency and metadata."""
