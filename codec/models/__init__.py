"""Models: what every family provides, and where model files are found."""
