"""The commands of ``python -m normtriton.perf``: each reads its options, has figures made, and shows them."""
