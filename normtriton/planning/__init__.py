"""What is to be done: norms by their axes, groupings, tiles, launches. Pure integers; neither torch nor triton."""
