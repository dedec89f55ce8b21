"""Speed, memory, parity, kills and a comparison of presets: each module is one command that prints JSON lines.

`results/` keeps dated figures.
"""
