"""Training: a job in, a run result out; objective, engine, loop and launch are one file each."""
