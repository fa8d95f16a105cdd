"""Video metrics for curation, evaluation, validation and receipts: one file per family."""
