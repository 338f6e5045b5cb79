"""The codecs that `tessera bench` compares, one file each."""
