"""Programs that make this repository's own tables and pictures. They are not installed: run them from its root."""
