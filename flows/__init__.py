"""Prefect flows over the stages of `dvc.yaml`, and a local Prefect stack: the only importers of prefect."""

import os

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # a flow without a server starts one for itself, which takes longer than the default 20 s on a busy laptop
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}
for _name, _value in SETTINGS.items():  # prefect reads them when it is imported
    os.environ.setdefault(_name, _value)
