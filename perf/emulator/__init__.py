"""A GPU without a GPU: runs the PTX that Triton emits, with a sanitizer's checks, and predicts times from its SASS."""
