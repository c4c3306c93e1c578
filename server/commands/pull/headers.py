"""Models on the hub, looked at before they are downloaded: a sparse file of each, of which the header has come.

It is as long as the model and begins as that does; the rest is a hole. Whatever reads a header takes it for the model,
and so do dry runs, which read no weights. These files stay in the cache folder, by commit and within bounds,
for the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from coe.engine.files import cache_folder, private_folder

from . import download
from .errors import HubUnreachableError, PullError, disk_error
from .files import COMMAND_LINE, HubFile, PlannedModel, Remedies, Repository, look_up
from .pruning import prune
from .ranges import RangedModel


@dataclass(frozen=True)
class RemoteModel:
    """A model on the hub of which the header is here. path: its first file's place here."""

    model: PlannedModel
    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files here, in order."""
        return tuple(self.model.folder / file.path for file in self.model.files)


class HubHeaders:
    """The model hub, of which only listings and headers are asked."""

    def __init__(
        self,
        token: str | None,
        tell: Callable[[str, int, int], None] | None = None,
        remedies: Remedies = COMMAND_LINE,
    ) -> None:
        """token: None for the one that huggingface_hub has saved. tell: called with a file's name,
        and the bytes that came, of how many.

        Raises PullError where there is no cache folder to write to.
        """
        self._endpoint, self._token, self._remedies = download.hub_endpoint(), token, remedies
        self._tell = tell or (lambda file, done, total: None)
        self._found: dict[tuple[str, str | None], Repository | PullError] = {}
        self._folder = cache_folder() / "headers"
        self.fetched_bytes = 0
        try:
            for folder in (cache_folder(), self._folder):
                private_folder(folder)
            prune(self._folder)
        except OSError as error:
            free = download.free_bytes(cache_folder())
            elsewhere, again = "name another cache folder by XDG_CACHE_HOME", remedies.again
            raise disk_error(error, self._folder, 1, free, elsewhere, again) from error

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """Its files; asked once. Raises PullError."""
        key = name, revision
        if key not in self._found:
            # One wait for a hub that does not answer is enough, however many repositories are asked for.
            silent = next((one for one in self._found.values() if isinstance(one, HubUnreachableError)), None)
            self._found[key] = silent or look_up(self._endpoint, name, self._token, revision, self._remedies)
        found = self._found[key]
        if isinstance(found, PullError):
            raise found
        return found

    def look(
        self,
        repository: Repository,
        files: tuple[HubFile, ...],
        more: Callable[[Path], Iterable[tuple[Path, int, int]]] | None = None,
    ) -> RemoteModel:
        """Bring a model's header here, where it is not here already.

        more: gives further ranges that are wanted (a file's place here, offset, bytes) once the header is here.
        Raises PullError, or ModelFileError for a header that does not hold together; what came stays.
        """
        folder = self._folder / repository.name.replace("/", "--") / repository.revision[:16]
        model = PlannedModel((repository.name,), repository.name, repository.revision, folder, files)
        before = self.fetched_bytes

        def told(done: int, total: int) -> None:
            self.fetched_bytes = before + done
            self._tell(PurePosixPath(files[0].path).name, done, total)

        with RangedModel(self._endpoint, self._token, model, told, self._remedies) as ranged:
            ranged.fetch_headers()
            if more is not None:
                ranged.fetch(more(ranged.path))
            return RemoteModel(model, ranged.path)
