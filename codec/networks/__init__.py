"""Parts of networks that families of models share, and the tokenizer of images that are coded block by block."""
