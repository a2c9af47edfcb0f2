"""The ways from a call to the kernels, and derivatives: plain tensors, operators, DTensors."""
