"""A team's set-up for real: MLflow and Prefect on PostgreSQL, with logins, and DVC's remote in a store that speaks S3.

`make test-team` installs what it needs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from benchmarks.clips import write_clips
from clip4vla.records import Decision
from clip4vla.registry.registry import Registry
from clip4vla.utils.supervise import supervised
from tests.project import REPOSITORY
from tests.servers import free_port, serving
from tests.test_backup import documented

pytestmark = pytest.mark.team

USER = "clip4vla"
PASSWORD = "correct@horse-battery"
"""Of MLflow's user `admin`."""
PREFECT_LOGIN = "team:correct-horse"
HOST = "mlflow.example.org"
MLFLOW_AUTH = """[mlflow]
default_permission = EDIT
database_uri = postgresql://{user}@{database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
MLFLOW = [sys.executable, "-m", "mlflow"]
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def postgres_program(name: str) -> str:
    """Debian keeps those of each version in a folder of their own."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found, "PostgreSQL isn't installed: `make test-team` does it"
    return str(found[-1])


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address `HOST:PORT` of a server with the databases mlflow and prefect, run by somebody who isn't root."""
    directory = Path(tempfile.mkdtemp(prefix="postgres"))
    owner = "postgres" if os.geteuid() == 0 else None
    if owner is not None:
        shutil.chown(directory, owner, owner)
    port = free_port()

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, user=owner, cwd=directory)

    call(postgres_program("initdb"), "-D", f"{directory}/data", "-U", USER, "-A", "trust")
    options = f"-p {port} -k {directory} -h 127.0.0.1"
    control = (postgres_program("pg_ctl"), "-D", f"{directory}/data", "-l", f"{directory}/log", "-w")
    call(*control, "-o", options, "start")
    try:
        for database in ("mlflow", "prefect"):
            call(postgres_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", USER, database)
        yield f"127.0.0.1:{port}"
    finally:
        call(*control, "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def mlflow(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on PostgreSQL that asks for a login, with the login in it."""
    with mlflow_server(f"{postgres}/mlflow", tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@contextmanager
def mlflow_server(database: str, directory: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    (directory / "mlflow-auth.ini").write_text(MLFLOW_AUTH.format(user=USER, database=database))
    command = [
        *MLFLOW,
        *("server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"),
        *("--app-name", "basic-auth", "--allowed-hosts", f"{HOST},{url.removeprefix('http://')}"),
        *("--backend-store-uri", f"postgresql://{USER}@{database}"),
        *("--artifacts-destination", str(directory / "artifacts")),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "mlflow-auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any long random text",
    }
    with serving(supervised(command), f"{url}/health", environment, directory / "log"):
        yield url.replace("//", f"//admin:{quote(PASSWORD)}@")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, and nothing of MLflow's."""
    directory = tmp_path_factory.mktemp("project")
    shutil.copy(REPOSITORY / "params.yaml", directory)
    return directory


def try_to_run(project: Path, mlflow: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": mlflow}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def run(project: Path, mlflow: str, *arguments: str) -> str:
    done = try_to_run(project, mlflow, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BETTER = count(1)
"""Numbers of candidates, each better than all before, so that no test depends on which ran before it."""


def promote_candidate(project: Path, mlflow: str, number: int | None = None) -> str:
    """What is printed when a candidate is promoted, by default one that is better than all before."""
    number = next(BETTER) if number is None else number
    code = f"from pathlib import Path; from tests.candidates import *; make_candidate(Path.cwd(), {number}); promote()"
    return run(project, mlflow, "-c", code)


def test_candidates_are_judged_promoted_and_rolled_back_on_a_server(project: Path, mlflow: str) -> None:
    assert "version 1: promoted" in promote_candidate(project, mlflow)
    assert "version 2: promoted" in promote_candidate(project, mlflow)
    assert "version 2" in run(project, mlflow, "-m", "clip4vla", "champion")
    worse = promote_candidate(project, mlflow, 0)
    assert "version 3: not promoted" in worse
    assert "FAIL: text_to_clip/both/R@1 is 70 against the champion's" in worse
    assert "version 1 is the champion again" in run(project, mlflow, "-m", "clip4vla", "rollback")
    assert not (project / "mlruns").exists()


def test_old_versions_are_removed_on_a_server_with_their_artifacts(
    project: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = tmp_path_factory.getbasetemp()

    def weights() -> int:
        return len(list(kept.glob("mlflow[0-9]*/artifacts/**/model.safetensors")))

    for _ in range(3):
        promote_candidate(project, mlflow)
    before, code = weights(), "from pathlib import Path; from clip4vla.registry.registry import *; "
    code += "registry = Registry(Path.cwd()); old = registry.{}('clip4vla', 1); print([v.version for v in old])"
    listed = run(project, mlflow, "-c", code.format("old_versions"))
    assert run(project, mlflow, "-c", code.format("remove_old_versions")) == listed
    assert weights() == before - listed.count("'") // 2 < before
    assert run(project, mlflow, "-c", code.format("old_versions")) == "[]\n"
    assert "champion" in run(project, mlflow, "-m", "clip4vla", "rollback")


def test_without_the_right_login_mlflow_answers_nothing(project: Path, mlflow: str) -> None:
    address = mlflow.rpartition("@")[2]
    for login in ("", "admin:wrong-horse-battery@"):
        done = try_to_run(project, f"http://{login}{address}", "-m", "clip4vla", "champion")
        assert done.returncode == 1
        assert "401" in done.stdout + done.stderr or "not authenticated" in done.stdout + done.stderr
        assert "wrong-horse" not in done.stdout + done.stderr


def test_mlflow_answers_to_its_own_name_and_not_to_one_that_leads_there(mlflow: str) -> None:
    def status(host: str) -> int:
        request = urllib.request.Request(f"http://{mlflow.rpartition('@')[2]}/", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (status(HOST), status("stranger.example")) == (401, 403)


def test_a_password_in_the_address_stays_out_of_links_logs_tags_and_artifacts(
    project: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = promote_candidate(project, mlflow)
    code = "from pathlib import Path; from clip4vla.tracking.store import *; from clip4vla.registry.registry import *; "
    shown = (
        f"{code} client = open_client(Path.cwd()); print(version_page(Path.cwd(), 'clip4vla', '1')); "
        "runs = client.search_runs([e.experiment_id for e in client.search_experiments()]); "
        "print([run.to_dictionary() for run in runs], run_page(Path.cwd(), runs[0].info.run_id)); "
        "print([dict(version) for version in client.search_model_versions(\"name = 'clip4vla'\")])"
    )
    said += run(project, mlflow, "-c", shown)
    assert f"http://{urlsplit(mlflow).hostname}" in said
    kept = [path for path in (*project.rglob("*"), *tmp_path_factory.getbasetemp().rglob("artifacts/**/*"))
            if path.is_file()]  # fmt: skip
    assert kept
    for secret in (PASSWORD, quote(PASSWORD)):
        assert secret not in said
        assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    project: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        promote_candidate(project, mlflow)
    run(project, mlflow, "-m", "clip4vla", "rollback")
    for name, value in {"URI": mlflow, "USERNAME": "", "PASSWORD": ""}.items():  # so that what is set later is undone
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    registry = Registry(project)
    champion = registry.champion_version("clip4vla")
    others = [str(int(champion) + step) for step in (1, -1)]
    registry._client.delete_model_version_tag("clip4vla", others[0], "rolled_back")

    def promote(version: str) -> str:
        try:
            decision = Registry(project).promote("clip4vla", version, Decision(True, ("pass: better",)), champion)
        except ValueError as error:
            return str(error)
        return "promoted" if decision.promote else decision.reasons[-1]

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(promote, others))
    assert answers.count("promoted") == 1
    assert "is under way" in answers[0] or "has become the champion meanwhile" in answers[0]
    assert registry.champion_version("clip4vla") in others


def test_prefect_deploys_to_a_server_on_postgresql_with_the_right_login_only(postgres: str, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{USER}@{postgres}/prefect",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": PREFECT_LOGIN,
        "PREFECT_SERVER_API_AUTH_STRING": PREFECT_LOGIN,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(REPOSITORY),
    }

    def prefect(*arguments: str, login: str = PREFECT_LOGIN, status: int = 0) -> str:
        command, variables = [*PREFECT, *arguments], environment | {"PREFECT_API_AUTH_STRING": login}
        done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    server = supervised([*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)])
    with serving(server, f"http://127.0.0.1:{port}/api/health", environment, tmp_path / "log"):
        prefect("work-pool", "create", "local", "--type", "process")
        prefect("deploy", "--all")
        assert "pretrain/nightly" in prefect("deployment", "ls")
        for login in ("", "team:wrong-horse"):
            assert "401 Unauthorized" in prefect("deployment", "run", "pretrain/nightly", login=login, status=1)
    assert not list(tmp_path.glob("prefect.db*"))


def test_dumps_of_the_databases_are_restored_with_champion_and_deployments(
    postgres: str, project: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    promote_candidate(project, mlflow)
    champion = run(project, mlflow, "-m", "clip4vla", "champion")

    def call(script: str, suffix: str) -> str:
        variables = os.environ | {
            "PATH": f"{Path(postgres_program('psql')).parent}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{USER}@{postgres}/mlflow{suffix}",
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{USER}@{postgres}/prefect{suffix}",
        }
        command = ["sh", "-ec", script]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout

    call(documented("back up PostgreSQL"), "")
    host, _, port = postgres.partition(":")
    for database in ("mlflow", "prefect"):
        call(f"createdb -h {host} -p {port} -U {USER} {database}_restored", "")
    call(documented("restore PostgreSQL"), "_restored")
    [artifacts] = tmp_path_factory.getbasetemp().glob("mlflow[0-9]*/artifacts")
    with mlflow_server(f"{postgres}/mlflow_restored", artifacts.parent) as restored:
        assert run(project, restored, "-m", "clip4vla", "champion") == champion
        assert "is the champion again" in run(project, restored, "-m", "clip4vla", "rollback")
    count = f"psql -tA -c 'SELECT count(*) FROM deployment' postgresql://{USER}@{postgres}/prefect"
    assert call(count, "") == call(f"{count}_restored", "") != "0\n"


@contextmanager
def s3_store(log: Path) -> Iterator[dict[str, str]]:
    """A stand-in for S3 with the empty bucket `clip4vla`; the environment of its clients."""
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "PYTHONPATH": str(REPOSITORY),
    }
    server = supervised([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]])
    with serving(server, f"{url}/moto-api/", environment, log):
        command = [sys.executable, "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='clip4vla')"]
        subprocess.run(command, env=environment, check=True)
        yield environment


READ_CLIPS = """
import sys
from pathlib import Path
import boto3
from clip4vla.clips.dataset import ClipDataset
here = Path(sys.argv[1])
for file in here.rglob("*"):
    if file.is_file():
        boto3.client("s3").upload_file(str(file), "clip4vla", f"mine/train.lance/{file.relative_to(here).as_posix()}")
local, remote = ClipDataset([here]), ClipDataset(["s3://clip4vla/mine/train.lance"])
order = [15, 0, 7]
assert len(remote) == 16
assert [(c.clip_id, c.frames, c.texts) for c in remote.take(order)] == [
    (c.clip_id, c.frames, c.texts) for c in local.take(order)
]
assert list(remote.sentences()) == list(local.sentences())
try:
    len(ClipDataset(["s3://clip4vla/other/train.lance"]))
except ValueError as error:
    print(error)
"""


def test_clips_are_read_from_a_store_that_speaks_s3(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "train.lance")
    with s3_store(tmp_path / "log") as environment:
        command = [sys.executable, "-c", READ_CLIPS, str(clips)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no clips can be read from s3://clip4vla/other/train.lance: ")
    assert done.stdout.count("\n") == 1


def test_dvc_pushes_to_and_pulls_from_a_store_that_speaks_s3(tmp_path: Path) -> None:
    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def dvc(*arguments: str) -> None:
        call(sys.executable, "-m", "dvc", *arguments)

    project = tmp_path / "project"
    project.mkdir()
    with s3_store(tmp_path / "log") as environment:
        environment["DVC_REMOTE_URL"] = "s3://clip4vla/dvc"
        call("git", "init", "-q")
        dvc("init", "-q")
        (project / "clips.bin").write_bytes(b"clips")
        dvc("add", "-q", "clips.bin")
        shutil.copy(REPOSITORY / "Makefile", project)
        call("make", "-o", ".venv/ready", "-o", "setup", f"BIN={Path(sys.executable).parent}", "dvc-remote")
        assert (project / ".dvc/config.local").is_file()
        dvc("push", "-q")
        (project / "clips.bin").unlink()
        shutil.rmtree(project / ".dvc/cache")
        dvc("pull", "-q")
        assert (project / "clips.bin").read_bytes() == b"clips"
