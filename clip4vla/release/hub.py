"""Upload of an exported folder to the Hugging Face Hub, or to the server in HF_ENDPOINT."""

from pathlib import Path


def require_token() -> None:
    """Do nothing where there is a token of the Hub.

    Raises:
        ValueError: there is none.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError(
            "there is no token of the Hugging Face Hub: set HF_TOKEN, or run `hf auth login`, with a token that may "
            "write (https://huggingface.co/settings/tokens)"
        )


def push(directory: Path, repository: str) -> str:
    """Upload the files of `directory` in one commit, in place of those that the repository has; its address.

    Args:
        directory: an exported folder.
        repository: `NAME` or `OWNER/NAME`; it is made, private, if there is none.

    Raises:
        ValueError: there is no token, or the upload failed; the message says why.
    """
    from huggingface_hub import HfApi

    require_token()
    api = HfApi()
    try:
        created = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=directory,
            commit_message="Upload an exported model",
            delete_patterns="*",
        )
    except Exception as error:
        # names, rights, network and server fail in many ways, which the library reports by as many classes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{repository} can't be uploaded: {reason}") from error
    return str(created)
