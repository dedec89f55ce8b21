"""The champion as the project's own database has it, read without MLflow, which takes two seconds to import.

In: the project's directory. Out: what `Registry` says as well. Nothing is found here where the store is a server's or
anything is amiss; `Registry` then finds it, or says what is missing.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clip4vla.evaluation.scores import Scores
from clip4vla.registry.registry import CHAMPION, SCORES_PATH
from clip4vla.tracking.store import own_database

QUERY = f"""
SELECT version, artifact_uri, model_version_tags.value
FROM registered_model_aliases
JOIN model_versions USING (workspace, name, version)
JOIN model_version_tags USING (workspace, name, version)
JOIN runs ON run_uuid = run_id
WHERE registered_model_aliases.name = ? AND alias = '{CHAMPION}' AND key = '{SCORES_PATH}'
"""


def read_champion(root: Path, name: str) -> tuple[str, Scores] | None:
    """Version of the champion of the model `name` and its scores; None where they aren't found here."""
    database = own_database(root)
    if database is None:
        return None
    try:
        with closing(sqlite3.connect(database)) as connection:
            row = connection.execute(QUERY, [name]).fetchone()
        if row is None:
            return None
        version, artifacts, scores = row
        return str(version), Scores.read(Path(unquote(urlsplit(artifacts).path)) / scores)
    except (sqlite3.Error, ValueError, OSError):
        return None
