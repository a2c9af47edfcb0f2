"""How it is done: what a device can do, settings, caches, launches. Nothing here knows of gradients."""
