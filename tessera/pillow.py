"""Pillow plugin: after `import tessera.pillow`, Pillow opens and saves .tsr files. `codec.pillow` describes the options."""

from codec.pillow import FORMAT, TesseraImageFile

__all__ = ["FORMAT", "TesseraImageFile"]
