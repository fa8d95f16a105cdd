"""Measures of a video, for curation, evaluation, validation and receipts: one file a family."""
