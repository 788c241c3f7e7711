"""Names of the Hugging Face hub, and errors that say why their files cannot be had."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class HubError(FileNotFoundError):
    """A name of the hub whose files cannot be had; the message says why."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """The name of a repository, or of a file or folder in it.

    Attributes:
      repository: ORG/NAME.
      revision: branch, tag or commit; None: the default branch.
      path: of a file or folder in the repository; "" for all.
      kind: "model" or "dataset".
      typed: what the user wrote, for messages.
    """

    repository: str
    revision: str | None = None
    path: str = ""
    kind: str = "model"
    typed: str = dataclasses.field(default="", compare=False)

    def at(self, commit: str) -> str:
        """Return the name with a commit as its revision."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        path = f"/{self.path}" if self.path else ""
        return f"hf://{prefix}{self.repository}@{commit}{path}"


@contextlib.contextmanager
def explained(name: HubName) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into a HubError of one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except (
        errors.HTTPError,  # of any connection; the base of HfHubHTTPError
        errors.OfflineModeIsEnabled,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.FileMetadataError,
    ) as error:
        raise HubError(_explanation(name, error)) from error


def _explanation(name: HubName, error: Exception) -> str:
    """Return what went wrong and the likely fix."""
    from huggingface_hub import constants, errors

    # Where the hub cannot be asked, the error that says why is the cause of another.
    cause: BaseException = error
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
    typed, hub = name.typed, constants.ENDPOINT
    url = f"{hub}/{'datasets/' * (name.kind == 'dataset')}{name.repository}"
    local = "" if typed.startswith("hf:") else f"no file or folder {typed!r}, and "
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"{local}the files of {typed} are not all in the cache "
            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: unset it once to "
            "fetch them"
        )
    if isinstance(cause, errors.GatedRepoError):
        return f"{typed} is gated: accept its terms at {url}, then {LOGIN}"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"{local}{hub} has no {name.kind} repository {name.repository!r}: check "
            f"the spelling; if it is private, {LOGIN}"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return (
            f"{typed}: the repository has no revision {name.revision!r}: name a "
            f"branch, tag or commit of {url}/commits"
        )
    if isinstance(cause, errors.HFValidationError):
        return f"{local}{typed} is no valid name of a repository: {cause}"
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        if status in (401, 403):
            return (
                f"{typed}: {hub} refuses access ({status}), because the token is "
                f"invalid or may not do this: {LOGIN}"
            )
        return f"{typed}: {hub} answers with status {status}: try again later"
    return (
        f"{local}{hub} cannot be reached for {typed} ({type(cause).__name__}): check "
        "the network and HF_ENDPOINT"
    )
