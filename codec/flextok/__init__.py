"""The tokenizer of FlexTok (arXiv 2502.13967)."""
