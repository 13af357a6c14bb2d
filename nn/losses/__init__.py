"""Terms that a model's quantizers add to the loss."""
