"""Upload of a folder to the Hugging Face hub."""

from __future__ import annotations

import pathlib

from blip2_jax.data.hub_errors import LOGIN, HubError, HubName, explained


def check_login() -> None:
    """Check that the hub accepts this user's token, before long work for an upload.

    Raises:
      HubError: there is no token, it is invalid, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError("an upload needs the hub, but HF_HUB_OFFLINE is set: unset it")
    try:
        with explained(HubName("", typed="the upload")):
            HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise HubError(f"an upload needs a token: {LOGIN}") from error


def upload(
    folder: pathlib.Path, repository: str, message: str, private: bool = False
) -> str:
    """Upload a folder to a model repository, which is created if it is new.

    Args:
      folder: the folder.
      repository: ORG/NAME.
      message: of the commit.
      private: of a new repository.

    Returns:
      The URL of the repository.

    Raises:
      HubError: the user may not write there, or the hub cannot be reached; the folder
        stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with explained(HubName(repository, typed=f"hf://{repository}")):
            url = api.create_repo(repository, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=message
            )
    except HubError as error:
        raise HubError(
            f"{error}; {folder} is complete: `hf upload {repository} {folder}` uploads "
            "it later"
        ) from error
    return str(url)
