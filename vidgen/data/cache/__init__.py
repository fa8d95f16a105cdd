"""Latents and text features on disk, in place of the encoders."""
