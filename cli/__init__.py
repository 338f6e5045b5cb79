"""The `tessera` command: parses, calls one library function, reports."""
