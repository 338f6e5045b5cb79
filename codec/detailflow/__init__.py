"""The tokenizer of DetailFlow (arXiv 2505.21473)."""
