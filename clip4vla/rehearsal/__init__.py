"""`clip4vla rehearse`: the graph with a preset at full size on made clips, before the real corpus is there."""
