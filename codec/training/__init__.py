"""Learning models from photographs: what all families share, and the integer prior that the pyramid's files are coded with."""
