"""The pyramid's network with ONNX Runtime and with torch, behind one interface (`backend.py`)."""
