"""The standard model: a residual pyramid of tokens.

       encode                                                      decode

    pixels (H, W, 3)                                            pixels (H, W, 3)
       |                                                           ^
       |  encode_pixels             tiles.py                       |  decode_pixels
       v                                                           |
    latents (C, H/16, W/16)                                     latents, map of known tokens
       |                                                           ^
       |  quantize                  tokenizer.py                   |  dequantize
       v                                                           |
    PyramidSequence  ------>  file (bitstream/)  ------>  PyramidPrefix

`quantize` and `dequantize` run over the levels, coarse to fine. Both rebuild the same latents, so each level codes only the
difference between the encoder's latents and their prediction:

    latents  ->  (-)  ->  analyse  ->  choose  ->  digits  ->  update  ->  latents of this level
                  ^                                              ^             |
                  |                                              |             v
                  +---------------------- predict ---------------+---  next level

`runtime/` computes the network's part of each step with ONNX Runtime or torch; `network.py` defines the network. `model.py`
reads and writes model files. `refinement.py` improves the latents of one image, for efforts above the default. `training.py`
and `integer_model.py` (the entropy model in integers) make models.
"""
