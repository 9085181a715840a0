"""The model owner's white-box metrics: one file each, pure functions of embeddings or scores with a frozen result."""
