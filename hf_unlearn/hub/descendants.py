"""Models on the Hub that descend from another: those that name it as their base model, and those that name these."""

from dataclasses import dataclass

from hf_unlearn.errors import UserError

MOST = 1000  # models; beyond, the list says that it is not complete


@dataclass(frozen=True)
class Descendant:
    """A model that descends from the one asked about: its Hub id, the model it names, and how many steps away it is."""

    repo_id: str
    base: str
    distance: int


def find_descendants(repo_id: str, token: str | None = None) -> tuple[tuple[Descendant, ...], bool]:
    """List every public model that names a model, or one of its descendants, as its base.

    Args:
        repo_id: A Hub id.
        token: A token, to see private models too. Without one the Hub is asked as anybody could, whoever is logged in:
            the list is for publishing.

    Returns:
        The descendants, nearest first, each once; and whether the list is complete.

    Raises:
        UserError: The Hub cannot be reached, or it is no repository name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no repository name; give owner/name.") from error
    api, seen, found, frontier = HfApi(token=token or False), {repo_id}, list[Descendant](), [repo_id]
    distance = 0
    while frontier:
        distance, nearer = distance + 1, frontier
        frontier = []
        for base in nearer:
            try:
                names = sorted(model.id for model in api.list_models(filter=f"base_model:{base}", limit=MOST + 1))
            except (HTTPError, OSError) as error:
                raise UserError(f"the Hub cannot be asked ({type(error).__name__}); try again later.") from error
            for name in names:
                if name in seen:
                    continue
                if len(found) == MOST:
                    return tuple(found), False
                seen.add(name)
                frontier.append(name)
                found.append(Descendant(name, base, distance))
    return tuple(found), True
