"""The residual pyramid: its network, and how pictures become tokens and tokens pictures."""
