"""Sessions as flat arrays, in memory or on disk."""
