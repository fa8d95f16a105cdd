"""Prefetch: worker processes fill leased slots, and a lane copies them to the device in advance."""
