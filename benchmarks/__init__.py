"""Speed, memory, parity and what presets are worth: each module is one command that prints one JSON line.

`results/` keeps dated figures.
"""
