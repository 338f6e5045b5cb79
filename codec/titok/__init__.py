"""The tokenizers of TiTok (arXiv 2406.07550) and One-D-Piece (2501.10064)."""
