"""Next-item losses: full and sampled softmax, lookups in the item table, and the cloze task."""
