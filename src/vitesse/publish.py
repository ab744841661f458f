"""Our own models on the Hugging Face Hub: the files under their usual names, and a card of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitesse.errors import ConfigError, WeightsError, require
from vitesse.files import write_atomically
from vitesse.models.loading import manifest_for
from vitesse.runtime.artefact import read_artefact
from vitesse.spec import Manifest, Task, to_mapping
from vitesse.weights.files import read_checkpoint_header
from vitesse.weights.hub import is_transfer_error

HUB_NAMES = {".onnx": "model.onnx", ".safetensors": "model.safetensors"}
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What is to be published: `files` by their names in the repository, the card among them."""

    repo_id: str
    files: Mapping[str, bytes | Path]


def prepare(files: Sequence[Path], repo_id: str) -> Repository:
    """Read an artefact, a checkpoint or both, and write the card of them.

    Args:
        files: at most one `.onnx` and one `.safetensors`; both are of one model.
        repo_id: `OWNER/REPO`.

    Raises:
        ConfigError: no or other files, two of a kind, files of two models, no name of a repository.
        ArtefactError, WeightsError: a file cannot be used.
    """
    try:
        require("huggingface_hub.utils", "torch").validate_repo_id(repo_id)
    except require("huggingface_hub.errors", "torch").HFValidationError as error:
        raise ConfigError(f"--to: expected OWNER/REPO, {repo_id!r} is no repository's name") from error
    if "/" not in repo_id:
        raise ConfigError(f"--to: expected OWNER/REPO, got {repo_id!r}")
    named: dict[str, Path] = {}
    for path in files:
        target = HUB_NAMES.get(path.suffix)
        if target is None or target in named:
            raise ConfigError(
                f"{path}: expected at most one artefact (.onnx) and one checkpoint (.safetensors)"
            )
        named[target] = path
    manifests = [_manifest(path) for path in sorted(named.values(), key=lambda path: path.suffix)]
    if not manifests:
        raise ConfigError("expected an artefact (.onnx), a checkpoint (.safetensors) or both, got no file")
    if len({(m.model.name, m.model.image_size, m.class_names, m.preprocess) for m in manifests}) > 1:
        raise ConfigError(f"{files[0]} and {files[1]} hold different models: push each to its own repository")
    use = _use(repo_id, tuple(named), manifests[0].model.in_chans)
    card = _card(manifests[0], repo_id.partition("/")[2], use)
    return Repository(repo_id=repo_id, files={**named, CARD: card.encode()})


def push(repository: Repository, *, private: bool = False) -> str:
    """Upload a repository in one commit, made first where it does not exist; gives its address.

    Raises:
        WeightsError: not logged in, not allowed, or the hub cannot be reached; nothing was changed then.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", "torch")
    errors = require("huggingface_hub.errors", "torch")
    try:
        api = hub.HfApi()
        url = str(api.create_repo(repository.repo_id, private=private, exist_ok=True))
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in repository.files.items()
        ]
        api.create_commit(repository.repo_id, operations, commit_message="Publish model")
    except errors.LocalTokenNotFoundError as error:
        raise WeightsError(_login(repository.repo_id)) from error
    except errors.HfHubHTTPError as error:
        raise WeightsError(_refusal(repository.repo_id, error)) from error
    except Exception as error:
        if not is_transfer_error(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{repository.repo_id}: not published, {hub.constants.ENDPOINT} cannot be reached ({reason})"
        ) from error
    return url


def write(repository: Repository, folder: Path) -> str:
    """Write what `push` would upload to a folder, and give its path.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in repository.files.items():
        write_atomically(folder / name, content if isinstance(content, bytes) else content.read_bytes())
    return str(folder)


def write_card(path: Path, folder: Path) -> Path:
    """Write the card of an artefact or checkpoint that stays on this machine, as `README.md`.

    Raises:
        ArtefactError, WeightsError: the file cannot be used.
        OSError: the card cannot be written.
    """
    manifest = _manifest(path)
    use = f"```sh\nvitesse predict photo.jpg --model {path.name}\n```"
    card = folder / CARD
    write_atomically(card, _card(manifest, manifest.model.name, use).encode())
    return card


def _login(repo_id: str) -> str:
    return f"{repo_id}: you are not logged in to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN"


def _refusal(repo_id: str, error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return _login(repo_id)
    if status == 403:
        return f"{repo_id}: your token may not write there; take a token with write access, or another owner"
    reason = " ".join(str(error.server_message or error).split())
    return f"{repo_id}: the hub answers {status}: {reason}"


def _manifest(path: Path) -> Manifest:
    if path.suffix == ".onnx":
        return read_artefact(path).manifest
    return manifest_for(*read_checkpoint_header(path))


HUB_TASKS: Mapping[Task, str] = {
    "classify": "image-classification",
    "detect": "object-detection",
    "segment": "image-segmentation",
    "promptable": "mask-generation",
}
METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "ap": ("mAP", "AP"),
    "ap50": ("mAP", "AP50"),
    "mask_ap": ("mAP", "mask AP"),
    "miou": ("mean_iou", "mean IoU"),
}
"""Figures of a manifest: type and name on the Hub."""


def _card(manifest: Manifest, name: str, use: str) -> str:
    """The model card: facts of the manifest and nothing else."""
    sections = [
        f"---\n{_front_matter(manifest, name)}\n---\n\n# {name}",
        _summary(manifest),
        f"## Use\n\n{use}",
        f"## Preprocessing\n\n{_facts(to_mapping(manifest.preprocess))}",
        f"## Accuracy\n\n{_facts(manifest.accuracy)}" if manifest.accuracy else "",
        f"## Classes\n\n{', '.join(manifest.class_names)}",
        f"## Provenance\n\n{origin}" if (origin := _facts(manifest.provenance)) else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: Manifest, name: str) -> str:
    hub = require("huggingface_hub", "torch")
    results = None
    if manifest.accuracy:
        dataset = str(manifest.accuracy["dataset"])
        results = [
            hub.EvalResult(
                task_type=HUB_TASKS[manifest.task],
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=manifest.accuracy.get("split"),
                metric_type=kind,
                metric_name=metric,
                metric_value=manifest.accuracy[key],
            )
            for key, (kind, metric) in METRICS.items()
            if key in manifest.accuracy
        ]
    data = hub.ModelCardData(
        license=("other" if " " in manifest.licence else manifest.licence.lower()) or None,
        license_name=manifest.licence if " " in manifest.licence else None,
        library_name="vitesse",
        pipeline_tag=HUB_TASKS[manifest.task],
        tags=[HUB_TASKS[manifest.task], "vitesse", manifest.model.name],
        model_name=name if results else None,
        eval_results=results,
    )
    return str(data.to_yaml()).strip()


def _summary(manifest: Manifest) -> str:
    model = manifest.model
    size = "x".join(map(str, model.image_size))
    trained = f", trained on {manifest.trained_on}" if manifest.trained_on else ""
    channels = f"{model.in_chans} channel{'s' if model.in_chans > 1 else ''}"
    pictures = f"pictures of {size} pixels and {channels}"
    return f"`{model.name}`: {model.num_classes} classes, {pictures}, {manifest.precision}{trained}."


def _use(repo_id: str, files: Sequence[str], in_chans: int) -> str:
    picture = "photo.jpg" if in_chans in (1, 3) else "scene.npy"
    if "model.onnx" in files:
        return f"```sh\nvitesse predict {picture} --model hf:{repo_id}\n```"
    return (
        f"```sh\nhf download {repo_id} model.safetensors --local-dir .\n"
        f"vitesse predict {picture} --model model.safetensors\n```"
    )


def _facts(values: Mapping[str, Any]) -> str:
    """A list of names and plain values; what is nested further stays in the file's own metadata."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    return "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in plain.items())
