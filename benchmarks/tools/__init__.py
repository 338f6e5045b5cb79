"""Programs that make this repository's own tables and images. They are not installed: run them from its root."""
