"""What a pass takes: predicted by the emulator's model, or measured on a GPU. The two are never mixed."""
