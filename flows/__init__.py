"""Prefect flows: the only importers of prefect. A flow's module is the command of its DVC stage."""
