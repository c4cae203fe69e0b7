"""From files to micro-batches: rows, tokens on disk, which examples a step serves, how they are batched."""
