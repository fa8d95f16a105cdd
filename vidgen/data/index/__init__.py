"""Which clips there are, and which step reads which: manifest, buckets, order."""
