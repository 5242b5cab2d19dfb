"""One kind of picture per file: what to compute, and what to call it."""
