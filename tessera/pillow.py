"""Pillow plugin: after `import tessera.pillow`, Pillow opens and saves .tsr files. `codec.pillow` describes the options."""

from codec.pillow import TesseraImageFile

__all__ = ["TesseraImageFile"]
