"""Prefetch: worker processes fill leased slots, a lane brings them to the device ahead of time."""
