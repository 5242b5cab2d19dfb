"""Pure tensor functions: tensors in, tensors or arrays out, no state."""
