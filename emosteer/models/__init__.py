"""Models of transformers: loading them, finding their blocks, patching them, placing their tokens."""
