"""Convolutional tokenizers with one token per cell of 16x16 or 8x8 pixels: MaskBit, Open-MAGVIT2, IBQ and LlamaGen."""
