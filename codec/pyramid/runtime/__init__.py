"""The pyramid's network on ONNX Runtime and on torch, behind one interface."""
