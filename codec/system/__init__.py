"""Files, processes, memory and devices of the operating system."""
