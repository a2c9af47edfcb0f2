"""A GPU without a GPU: runs the PTX that Triton emits, with the checks of a sanitizer, and predicts times from its SASS."""
