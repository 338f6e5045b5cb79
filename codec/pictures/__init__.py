"""Pictures before and after the network: reading them, transparency, colour profiles and other metadata. No torch."""
