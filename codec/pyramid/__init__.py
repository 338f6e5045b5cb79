"""The residual pyramid: its network, and how images become tokens and tokens images."""
