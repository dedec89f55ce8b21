"""Training: a spec in, a model directory out; objectives, engine, trainer and launch are one file each."""
