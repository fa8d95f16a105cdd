"""Decoding clips and writing videos."""
